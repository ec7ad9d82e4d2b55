package sourcetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

func route(name, host string) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: default}
spec:
  hostnames: ["%s"]
  parentRefs: [{name: gateway}]
  rules:
  - backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: pool}]
`, name, host)
}

const service = `apiVersion: v1
kind: Service
metadata: {name: picker, namespace: default}
spec:
  selector: {app: picker}
  ports: [{port: 9002}]
`

const pool = `apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool, namespace: default}
spec:
  selector: {matchLabels: {app: vllm}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: picker, port: {number: 9002}}
`

const slice = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: picker-1, namespace: default, labels: {kubernetes.io/service-name: picker}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1]}]
ports: [{port: 9002}]
`

const join = "---\n"

func ref(kind source.Kind, name string) source.Ref {
	return source.Ref{Kind: kind, Namespace: "default", Name: name}
}

func routeRef(name string) source.Ref { return ref(source.KindHTTPRoute, name) }

func testEmpty(t *testing.T, s source.Source, _ World) {
	r := Read(t, s)
	r.Sync()
	for got := range r.Objects {
		// A cluster is never quite empty.
		if got.Kind == source.KindHTTPRoute || got.Kind == source.KindGateway {
			t.Errorf("%v came out of an empty world", got)
		}
	}
}

func testInitial(t *testing.T, s source.Source, world World) {
	world.Put(t, route("a", "a.example.com")+join+route("b", "b.example.com")+join+service)
	world.Put(t, pool)
	r := Read(t, s)
	r.Sync()
	for _, want := range []source.Ref{routeRef("a"), routeRef("b"), ref(source.KindService, "picker"), ref(source.KindInferencePool, "pool")} {
		if r.Objects[want] == nil {
			t.Errorf("%v was not there when the source said that it is synced; there were %v", want, slices.Collect(maps.Keys(r.Objects)))
		}
	}
}

func testBusyStart(t *testing.T, s source.Source, world World) {
	const last = 30
	var writers sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		world.Put(t, route(name, "h000.example.com"))
		writers.Go(func() {
			for i := range last {
				world.Put(t, route(name, fmt.Sprintf("h%03d.example.com", i+1)))
			}
		})
	}
	r := Read(t, s)
	r.Sync()
	r.Until(func() bool {
		for _, name := range []string{"a", "b", "c"} {
			if host(r.Objects[routeRef(name)]) != fmt.Sprintf("h%03d.example.com", last) {
				return false
			}
		}
		return true
	})
	writers.Wait()
}

func testDefaults(t *testing.T, s source.Source, world World) {
	world.Put(t, route("a", "a.example.com")+join+service+join+pool+join+slice)
	r := Read(t, s)
	r.Sync()

	rule := r.Objects[routeRef("a")].(*gatewayv1.HTTPRoute).Spec.Rules[0]
	wantMatches := []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Type: ptr.To(gatewayv1.PathMatchPathPrefix), Value: ptr.To("/")}}}
	if d := cmp.Diff(wantMatches, rule.Matches); d != "" {
		t.Errorf("HTTPRoute matches (-want +got):\n%s", d)
	}
	if got := ptr.Deref(rule.BackendRefs[0].Weight, -1); got != 1 {
		t.Errorf("HTTPRoute backend weight is %d, want 1", got)
	}
	port := r.Objects[ref(source.KindService, "picker")].(*corev1.Service).Spec.Ports[0]
	if port.Protocol != corev1.ProtocolTCP || port.TargetPort.IntValue() != 9002 {
		t.Errorf("Service port is %+v, want TCP to 9002", port)
	}
	picker := r.Objects[ref(source.KindInferencePool, "pool")].(*inferencev1.InferencePool).Spec.EndpointPickerRef
	if picker.FailureMode != inferencev1.EndpointPickerFailClose || picker.Kind != "Service" {
		t.Errorf("InferencePool picker is %+v, want FailClose and kind Service", picker)
	}
	slicePort := r.Objects[ref(source.KindEndpointSlice, "picker-1")].(*discoveryv1.EndpointSlice).Ports[0]
	if ptr.Deref(slicePort.Protocol, "") != corev1.ProtocolTCP || slicePort.Name == nil {
		t.Errorf("EndpointSlice port is %+v, want TCP and a name", slicePort)
	}
	for got, object := range r.Objects {
		if got.Namespace == "default" && got.Kind == source.KindHTTPRoute && object.GetGeneration() != 1 {
			t.Errorf("%v has generation %d, want 1", got, object.GetGeneration())
		}
	}
}

func testVersions(t *testing.T, s source.Source, world World) {
	world.Put(t, `apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: grant, namespace: default}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}]
  to: [{group: "", kind: Service}]
`)
	r := Read(t, s)
	r.Sync()
	if _, ok := r.Objects[ref(source.KindReferenceGrant, "grant")].(*gatewayv1.ReferenceGrant); !ok {
		t.Errorf("a v1beta1 ReferenceGrant was not read as v1")
	}
}

func testIgnored(t *testing.T, s source.Source, world World) {
	world.Put(t, `apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: other, namespace: default}
spec: {minAvailable: 1}
`+join+route("a", "a.example.com"))
	r := Read(t, s)
	r.Sync()
	if r.Objects[routeRef("a")] == nil {
		t.Error("the route beside an object of another kind is missing")
	}
	if len(r.Problems) > 0 {
		t.Errorf("another kind is no problem: %v", r.Problems)
	}
}

func testChanges(t *testing.T, s source.Source, world World) {
	r := Read(t, s)
	r.Sync()
	step := func(what string, do func(), done func() bool, want ...source.Ref) {
		t.Helper()
		do()
		var got []source.Ref
		for _, c := range r.Until(done) {
			if c.Ref.Kind == source.KindHTTPRoute {
				got = append(got, c.Ref)
			}
		}
		slices.SortFunc(got, source.Ref.Compare)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: changed objects (-want +got):\n%s", what, d)
		}
	}
	step("create", func() { world.Put(t, route("a", "a.example.com")) }, r.Has(routeRef("a")), routeRef("a"))
	step("update", func() { world.Put(t, route("a", "new.example.com")) },
		func() bool { return host(r.Objects[routeRef("a")]) == "new.example.com" }, routeRef("a"))
	step("the same again, then another", func() { world.Put(t, route("a", "new.example.com")); world.Put(t, route("b", "b.example.com")) },
		r.Has(routeRef("b")), routeRef("b"))
	step("delete", func() { world.Delete(t, routeRef("a")) }, func() bool { return r.Objects[routeRef("a")] == nil }, routeRef("a"))
	step("create again", func() { world.Put(t, route("a", "a.example.com")) }, r.Has(routeRef("a")), routeRef("a"))
}

func host(o source.Object) string {
	if route, ok := o.(*gatewayv1.HTTPRoute); ok && len(route.Spec.Hostnames) > 0 {
		return string(route.Spec.Hostnames[0])
	}
	return ""
}

func testOrder(t *testing.T, s source.Source, world World) {
	const last = 50
	r := Read(t, s)
	r.Sync()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		for i := range last + 1 {
			world.Put(t, route("a", fmt.Sprintf("h%03d.example.com", i)))
		}
	}()
	before := ""
	r.Until(func() bool {
		now := host(r.Objects[routeRef("a")])
		if now < before {
			t.Errorf("%q came after %q", now, before)
		}
		before = now
		return now == fmt.Sprintf("h%03d.example.com", last)
	})
	<-wrote
}

func testRefused(t *testing.T, s source.Source, world World) {
	world.Put(t, route("a", "a.example.com"))
	r := Read(t, s)
	r.Sync()
	world.Put(t, route("a", "not_a_host"))        // the schema's pattern
	world.Put(t, route("new", "*.*.example.com")) // the same, never good before
	world.Put(t, `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cel, namespace: default}
spec:
  parentRefs: [{name: gateway}]
  rules: [{timeouts: {request: 1s, backendRequest: 2s}}]
`)
	world.Put(t, route("b", "b.example.com"))
	r.Until(r.Has(routeRef("b")))
	if got := host(r.Objects[routeRef("a")]); got != "a.example.com" {
		t.Errorf("after a refused update the host is %q, want the last good one", got)
	}
	for _, name := range []string{"new", "cel"} {
		if r.Objects[routeRef(name)] != nil {
			t.Errorf("%s is invalid but was sent", name)
		}
	}
	world.Put(t, route("a", "right.example.com"))
	r.Until(func() bool { return host(r.Objects[routeRef("a")]) == "right.example.com" })
}

func testImmutable(t *testing.T, s source.Source, world World) {
	world.Put(t, route("a", "a.example.com")+join+service)
	r := Read(t, s)
	r.Sync()
	kept := r.Objects[routeRef("a")]
	world.Put(t, route("a", "b.example.com"))
	r.Until(func() bool { return host(r.Objects[routeRef("a")]) == "b.example.com" })
	if host(kept) != "a.example.com" {
		t.Error("an update was written into the object sent before")
	}
}

func testEnd(t *testing.T, s source.Source, world World) {
	world.Put(t, route("a", "a.example.com"))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, make(chan source.Batch)) }()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Run returned %v", err)
		}
	case <-time.After(patience):
		t.Error("Run did not return")
	}
}
