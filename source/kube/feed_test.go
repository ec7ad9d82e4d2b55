package kube

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

func kindOf(kind source.Kind) source.KindInfo {
	for _, k := range source.Kinds {
		if k.Kind == kind {
			return k
		}
	}
	return source.KindInfo{}
}

// service is a Service whose label x tells versions apart, as an API server sends it.
func service(name, x string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"x": x}, ResourceVersion: "7"}}
}

// newStore returns a feed with one store of Services.
func newStore() (*feed, *store) {
	f := newFeed()
	return f, f.store(kindOf(source.KindService), func(source.Object) {})
}

// fill makes a list the store's content.
func fill(s *store, services ...*corev1.Service) error {
	var list []any
	for _, o := range services {
		if err := s.strip(o); err != nil {
			return err
		}
		list = append(list, o)
	}
	return s.Replace(list, "")
}

// said is a batch in short: "a=1" for an object, "-a" for one that is gone.
func said(f *feed) string {
	batch, some := f.take()
	if !some {
		return "nothing"
	}
	var out []string
	if batch.Synced {
		out = append(out, "synced")
	}
	for _, c := range batch.Changes {
		if c.Object == nil {
			out = append(out, "-"+c.Ref.Name)
		} else {
			out = append(out, c.Ref.Name+"="+c.Object.GetLabels()["x"])
		}
	}
	if batch.ProblemsKnown {
		out = append(out, fmt.Sprintf("%d problems", len(batch.Problems)))
	}
	return strings.Join(out, " ")
}

func TestFeed(t *testing.T) {
	f, s := newStore()
	other := f.store(kindOf(source.KindPod), func(source.Object) {})
	for i, step := range []struct {
		what string
		do   func() error
		want string
	}{
		{"nothing yet", func() error { return nil }, "nothing"},
		{"one store of two is filled", func() error { return fill(s, service("b", "1"), service("a", "1")) }, "nothing"},
		{"a problem, before anything is known", func() error { other.trouble(&source.Problem{Where: "pods", Message: "no"}); return nil }, "1 problems"},
		{"both are filled", func() error { other.trouble(nil); return other.Replace(nil, "") }, "synced a=1 b=1 0 problems"},
		{"filled again with the same", func() error { return fill(s, service("b", "1"), service("a", "1")) }, "nothing"},
		{"an update", func() error { return s.Update(service("a", "2")) }, "synced a=2"},
		{"an update of what is stripped", func() error {
			o := service("a", "2")
			o.ResourceVersion, o.ManagedFields = "9", []metav1.ManagedFieldsEntry{{Manager: "x"}}
			return s.Update(o)
		}, "nothing"},
		{"there and back", func() error { return firstError(s.Update(service("a", "3")), s.Update(service("a", "2"))) }, "nothing"},
		{"come and gone", func() error { return firstError(s.Add(service("c", "1")), s.Delete(service("c", "1"))) }, "nothing"},
		{"gone and come", func() error { return firstError(s.Delete(service("a", "2")), s.Add(service("a", "2"))) }, "nothing"},
		{"gone and come otherwise", func() error { return firstError(s.Delete(service("a", "2")), s.Add(service("a", "4"))) }, "synced a=4"},
		{"gone", func() error { return s.Delete(service("a", "4")) }, "synced -a"},
		{"gone twice", func() error { return s.Delete(service("a", "4")) }, "nothing"},
		{"a list without one", func() error { return fill(s, service("d", "1")) }, "synced -b d=1"},
		{"a problem", func() error { s.trouble(&source.Problem{Where: "services", Message: "no"}); return nil }, "synced 1 problems"},
		{"the same problem", func() error { s.trouble(&source.Problem{Where: "services", Message: "no"}); return nil }, "nothing"},
		{"none", func() error { s.trouble(nil); return nil }, "synced 0 problems"},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%d %s: %v", i, step.what, err)
		}
		if got := said(f); got != step.want {
			t.Errorf("%d %s: said %q, want %q", i, step.what, got, step.want)
		}
	}
	if err := s.Update(&corev1.Pod{}); err == nil {
		t.Error("a Pod went into the store of Services")
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func many(n int, x string) (out []*corev1.Service) {
	for i := range n {
		out = append(out, service(fmt.Sprintf("s%02d", i), x))
	}
	return out
}

func TestDoubtfulList(t *testing.T) {
	for _, test := range []struct {
		had, left int
		doubtful  bool
	}{
		{30, 14, true}, {30, 0, true}, {11, 0, true},
		{30, 15, false}, {10, 0, false}, {21, 11, false},
	} {
		t.Run(fmt.Sprintf("%d of %d", test.left, test.had), func(t *testing.T) {
			f, s := newStore()
			if err := fill(s, many(test.had, "1")...); err != nil {
				t.Fatal(err)
			}
			said(f)
			rest := append(many(test.left, "1"), service("new", "1"))
			err := fill(s, rest...)
			if (err != nil) != test.doubtful || s.doubts() != test.doubtful {
				t.Fatalf("error %v, doubts %v; want a doubt: %v", err, s.doubts(), test.doubtful)
			}
			if !test.doubtful {
				return
			}
			if got, want := said(f), "synced new=1"; got != want {
				t.Errorf("after a doubtful list %q, want %q", got, want)
			}
			if err := fill(s, rest...); err != nil || s.doubts() {
				t.Errorf("the second list is not believed: %v", err)
			}
			if got := strings.Count(said(f), "-"); got != test.had-test.left {
				t.Errorf("%d objects are gone after the second list, want %d", got, test.had-test.left)
			}
		})
	}
	t.Run("the second list is whole", func(t *testing.T) {
		f, s := newStore()
		if err := firstError(fill(s, many(20, "1")...)); err != nil {
			t.Fatal(err)
		}
		said(f)
		if fill(s) == nil {
			t.Fatal("an empty list was believed")
		}
		if err := fill(s, many(20, "1")...); err != nil {
			t.Fatal(err)
		}
		if got := said(f); got != "nothing" {
			t.Errorf("said %q", got)
		}
		if fill(s) == nil {
			t.Error("the next empty list was believed at once")
		}
	})
}

func TestStrip(t *testing.T) {
	meta := metav1.ObjectMeta{
		Name: "a", Namespace: "default", Generation: 3, UID: "u", ResourceVersion: "7", Labels: map[string]string{"l": "1"},
		Annotations:   map[string]string{"a": "1", corev1.LastAppliedConfigAnnotation: "{}"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}},
	}
	kept := metav1.ObjectMeta{Name: "a", Namespace: "default", Generation: 3, UID: "u", Labels: meta.Labels, Annotations: map[string]string{"a": "1"}}
	for _, test := range []struct{ in, want source.Object }{
		{&gatewayv1.Gateway{ObjectMeta: meta, Spec: gatewayv1.GatewaySpec{GatewayClassName: "c"}, Status: gatewayv1.GatewayStatus{Conditions: []metav1.Condition{{Type: "Accepted"}}}},
			&gatewayv1.Gateway{ObjectMeta: kept, Spec: gatewayv1.GatewaySpec{GatewayClassName: "c"}}},
		{&gatewayv1.HTTPRoute{ObjectMeta: meta, Status: gatewayv1.HTTPRouteStatus{RouteStatus: gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{{}}}}},
			&gatewayv1.HTTPRoute{ObjectMeta: kept}},
		{&corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", HostIP: "10.1.1.1", StartTime: &metav1.Time{},
			Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "r", LastProbeTime: metav1.Now()}}}},
			&corev1.Pod{ObjectMeta: kept, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1",
				Conditions: []corev1.PodCondition{{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "r"}}}}},
		{&discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: "IPv4", Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}, NodeName: ptr.To("n"), TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "a", Namespace: "default", UID: "u"}},
			{Addresses: []string{"10.0.0.2"}}}},
			&discoveryv1.EndpointSlice{ObjectMeta: kept, AddressType: "IPv4", Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "a"}},
				{Addresses: []string{"10.0.0.2"}}}}},
		{&corev1.Service{ObjectMeta: meta, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "10.0.0.9"}}}}},
			&corev1.Service{ObjectMeta: kept, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "10.0.0.9"}}}}}},
	} {
		o := test.in.DeepCopyObject().(source.Object)
		var observed source.Object
		s := newFeed().store(kindOf(source.RefOf(o).Kind), func(o source.Object) { observed = o.DeepCopyObject().(source.Object) })
		if err := s.strip(o); err != nil {
			t.Fatal(err)
		}
		test.want.GetObjectKind().SetGroupVersionKind(kindOf(source.RefOf(o).Kind).GVK)
		if d := cmp.Diff(test.want, o); d != "" {
			t.Errorf("%T (-want +got):\n%s", o, d)
		}
		if d := cmp.Diff(test.in, observed); d != "" {
			t.Errorf("%T was not observed as it came (-came +observed):\n%s", o, d)
		}
	}
}
