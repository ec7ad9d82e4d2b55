package translator_test

import (
	"fmt"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

var localOptions = translator.Options{ExtProc: "127.0.0.1:9004"}

func named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "default", Name: name, Generation: 1}
}

// poolsWorld has n routes, each for a model of its own, to one of pools pools, each with
// a picker, three endpoints and three Pods.
func poolsWorld(n, pools int) []source.Object {
	class := &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "signalbox"}}
	class.Spec.ControllerName = translator.ControllerName
	gateway := &gatewayv1.Gateway{ObjectMeta: named("gw")}
	gateway.Spec = gatewayv1.GatewaySpec{GatewayClassName: "signalbox", Listeners: []gatewayv1.Listener{{Name: "http", Port: 80, Protocol: gatewayv1.HTTPProtocolType}}}
	out := []source.Object{class, gateway}
	for i := range pools {
		name := fmt.Sprintf("pool-%d", i)
		pool := &inferencev1.InferencePool{ObjectMeta: named(name)}
		pool.Spec = inferencev1.InferencePoolSpec{
			Selector:          inferencev1.LabelSelector{MatchLabels: map[inferencev1.LabelKey]inferencev1.LabelValue{"app": inferencev1.LabelValue(name)}},
			TargetPorts:       []inferencev1.Port{{Number: 8000}},
			EndpointPickerRef: &inferencev1.EndpointPickerRef{Name: inferencev1.ObjectName(name + "-epp"), Port: &inferencev1.Port{Number: 9002}},
		}
		epp := &corev1.Service{ObjectMeta: named(name + "-epp"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 9002}}}}
		out = append(out, pool, epp, slice(name+"-epp", discoveryv1.LabelServiceName, name+"-epp", 9002, "10.9.0.1"), slice(name, "app", name, 8000, "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		for j := range 3 {
			out = append(out, pod(fmt.Sprintf("%s-%d", name, j), name, fmt.Sprintf("10.1.0.%d", j+1)))
		}
	}
	for i := range n {
		out = append(out, modelRoute(i, pools, 1))
	}
	return out
}

func slice(name, label, value string, port int32, addresses ...string) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: named(name), AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}}}
	out.Labels = map[string]string{label: value}
	for _, a := range addresses {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return out
}

func pod(name, app, ip string) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: named(name), Status: corev1.PodStatus{PodIP: ip}}
	out.Labels = map[string]string{"app": app}
	return out
}

func modelRoute(i, pools int, weight int32) *gatewayv1.HTTPRoute {
	out := &gatewayv1.HTTPRoute{ObjectMeta: named(fmt.Sprintf("route-%d", i))}
	out.Spec.ParentRefs = []gatewayv1.ParentReference{{Name: "gw"}}
	ref := gatewayv1.HTTPBackendRef{}
	ref.Group, ref.Kind = ptr.To[gatewayv1.Group](inferencev1.GroupName), ptr.To[gatewayv1.Kind]("InferencePool")
	ref.Name, ref.Weight = gatewayv1.ObjectName(fmt.Sprintf("pool-%d", i%pools)), &weight
	other := *ref.DeepCopy()
	other.Name, other.Weight = gatewayv1.ObjectName(fmt.Sprintf("pool-%d", (i+1)%pools)), ptr.To[int32](1)
	out.Spec.Rules = []gatewayv1.HTTPRouteRule{{
		Matches:     []gatewayv1.HTTPRouteMatch{{Headers: []gatewayv1.HTTPHeaderMatch{{Name: "X-Gateway-Model-Name", Value: fmt.Sprintf("model-%d", i)}}}},
		BackendRefs: []gatewayv1.HTTPBackendRef{ref, other},
	}}
	return out
}

// TestWorkOfOneChange: what one change costs does not grow with the world, but for what
// the changed table itself holds.
func TestWorkOfOneChange(t *testing.T) {
	changes := map[string]source.Object{
		"route":         modelRoute(7, 20, 5),
		"EndpointSlice": slice("pool-7", "app", "pool-7", 8000, "10.0.0.9"),
		"Pod":           pod("pool-7-0", "pool-7", "10.1.0.9"),
		"nobody's Pod":  pod("nobodys", "nobody", "10.1.0.9"),
	}
	want := map[string][]xds.Type{"route": {xds.Route}, "EndpointSlice": {xds.Endpoint}, "Pod": {xds.Endpoint}, "nobody's Pod": nil}
	runs := map[string]map[int]int{}
	for _, n := range []int{100, 10_000} {
		tr := translator.New(localOptions)
		tr.Apply(added(poolsWorld(n, 20)...), nil)
		for name, o := range changes {
			before := tr.Runs()
			out := tr.Apply(added(o), nil)
			if runs[name] == nil {
				runs[name] = map[int]int{}
			}
			runs[name][n] = tr.Runs() - before
			var types []xds.Type
			for _, c := range out.Resources {
				types = append(types, c.Type)
			}
			if fmt.Sprint(types) != fmt.Sprint(want[name]) || len(out.Statuses) > 0 {
				t.Errorf("%s, %d routes: changed %v and %d statuses, want %v alone", name, n, types, len(out.Statuses), want[name])
			}
		}
	}
	for name, r := range runs {
		if r[100] != r[10_000] {
			t.Errorf("%s: %d functions ran among 100 routes and %d among 10,000", name, r[100], r[10_000])
		}
	}
}

// TestThousandAdapters: one rule on a base model serves 1,000 adapters, each by its name
// and with the base's header; one more is one table.
func TestThousandAdapters(t *testing.T) {
	adapters := func(n int) *corev1.ConfigMap {
		out := &corev1.ConfigMap{ObjectMeta: named("adapters"), Data: map[string]string{"baseModel": "org/base"}}
		out.Labels = map[string]string{"inference.networking.k8s.io/bbr-managed": "true"}
		for i := range n {
			out.Data["adapters"] += fmt.Sprintf("- lora-%d\n", i)
		}
		return out
	}
	route := modelRoute(0, 1, 1)
	route.Spec.Rules[0].Matches[0].Headers[0] = gatewayv1.HTTPHeaderMatch{Name: "X-Gateway-Base-Model-Name", Value: "org/base"}
	tr := translator.New(localOptions)
	w := worldOf(tr.Apply(added(append(poolsWorld(0, 1), route, adapters(1000))...), nil))
	if err := w.fault(); err != nil {
		t.Fatal(err)
	}
	models := modelsOf(t, w)
	if len(models) != 1001 {
		t.Fatalf("%d models have routes, want the 1,000 adapters and their base", len(models))
	}
	for model, routes := range models {
		if len(routes) != 1 || routes[0].Name != "httproute/default/route-0/rule/0/match/0" ||
			len(routes[0].RequestHeadersToAdd) != 1 || routes[0].RequestHeadersToAdd[0].Header.Value != "org/base" {
			t.Errorf("%s: %v", model, routes)
		}
	}
	out := tr.Apply(added(adapters(1001)), nil)
	if len(out.Resources) != 1 || out.Resources[0].Type != xds.Route || len(out.Statuses) != 0 {
		t.Errorf("one more adapter changes %v and %d statuses, want one table", out.Resources, len(out.Statuses))
	}
	w.take(out)
	if got := len(modelsOf(t, w)); got != 1002 {
		t.Errorf("%d models have routes after one more adapter", got)
	}
}

// modelsOf returns the lists of the one host of the one table.
func modelsOf(t *testing.T, w *world) map[string][]*routev3.Route {
	t.Helper()
	var rc routev3.RouteConfiguration
	if err := w.resources[place{"default/gw", xds.Route, "http/80"}].Any.UnmarshalTo(&rc); err != nil {
		t.Fatal(err)
	}
	out := map[string][]*routev3.Route{}
	for model, on := range rc.VirtualHosts[0].Matcher.GetMatcherTree().GetExactMatchMap().GetMap() {
		var list routev3.RouteList
		if err := on.GetAction().GetTypedConfig().UnmarshalTo(&list); err != nil {
			t.Fatal(err)
		}
		out[model] = list.Routes
	}
	return out
}

// BenchmarkFromScratch10000 translates 10,000 routes to 200 pools.
func BenchmarkFromScratch10000(b *testing.B) {
	objects := poolsWorld(10_000, 200)
	b.ReportAllocs()
	for b.Loop() {
		translator.Translate(objects, localOptions)
	}
}

// BenchmarkOneEndpointSliceOf10000 changes one pool's endpoints among 10,000 routes.
func BenchmarkOneEndpointSliceOf10000(b *testing.B) {
	tr := translator.New(localOptions)
	tr.Apply(added(poolsWorld(10_000, 200)...), nil)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		out := tr.Apply(added(slice("pool-7", "app", "pool-7", 8000, fmt.Sprintf("10.0.%d.%d", n>>8&255, n&255))), nil)
		if len(out.Resources) != 1 {
			b.Fatalf("%d resources changed", len(out.Resources))
		}
	}
}
