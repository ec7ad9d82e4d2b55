package translator

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

// modelRoute is a route for one model, to one of 200 Services.
func modelRoute(i, generation int) *gatewayv1.HTTPRoute {
	r := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("r%05d", i), Generation: int64(generation)}}
	r.Spec.ParentRefs = []gatewayv1.ParentReference{{Name: "gw"}}
	to := func(n int, weight int32) gatewayv1.HTTPBackendRef {
		return gatewayv1.HTTPBackendRef{BackendRef: gatewayv1.BackendRef{
			BackendObjectReference: gatewayv1.BackendObjectReference{Name: gatewayv1.ObjectName(fmt.Sprintf("s%03d", n%200)), Port: ptr.To[gatewayv1.PortNumber](80)},
			Weight:                 &weight,
		}}
	}
	r.Spec.Rules = []gatewayv1.HTTPRouteRule{{
		Matches: []gatewayv1.HTTPRouteMatch{{
			Path:    &gatewayv1.HTTPPathMatch{Type: ptr.To(gatewayv1.PathMatchPathPrefix), Value: ptr.To("/v1")},
			Headers: []gatewayv1.HTTPHeaderMatch{{Name: "X-Gateway-Model-Name", Value: fmt.Sprintf("org/model-%05d", i)}},
		}},
		BackendRefs: []gatewayv1.HTTPBackendRef{to(i, int32(10+generation)), to(i+1, 10)},
	}}
	return r
}

// BenchmarkOneRouteOf10000 changes one route of a table of 10,000.
func BenchmarkOneRouteOf10000(b *testing.B) {
	objects := routeWorld{listeners: []string{""}}.objects()
	for i := range 200 {
		objects = append(objects, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("s%03d", i)}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}})
	}
	for i := range 10_000 {
		objects = append(objects, modelRoute(i, 0))
	}
	tr := New(Options{ExtProc: "127.0.0.1:9004"})
	change := func(objects ...source.Object) Output {
		var changes []source.Change
		for _, o := range objects {
			changes = append(changes, source.Change{Ref: source.RefOf(o), Object: o})
		}
		return tr.Apply(changes, nil)
	}
	change(objects...)
	b.ReportAllocs()
	runs, size := tr.Runs(), 0
	n := 0
	for b.Loop() {
		n++
		out := change(modelRoute(n%10_000, n))
		if len(out.Resources) != 1 {
			b.Fatalf("%d resources changed", len(out.Resources))
		}
		size = len(out.Resources[0].Resource.Any.Value)
	}
	b.ReportMetric(float64(tr.Runs()-runs)/float64(n), "runs/op")
	b.ReportMetric(float64(size), "bytes")
}
