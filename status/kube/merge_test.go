package kube

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"signalbox.dev/source"
	"signalbox.dev/translator"
)

// now is when merges of these tests happen.
var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// tree reads YAML as JSON would be read, numbers as int64.
func tree(t *testing.T, text string) map[string]any {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := utiljson.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// wantOf reads what signalbox says of an object of the kind; nothing if text is empty.
func wantOf(t *testing.T, kind source.Kind, text string) translator.Status {
	t.Helper()
	s := translator.Status{Ref: source.Ref{Kind: kind, Namespace: "default", Name: "o"}}
	if text == "" {
		return s
	}
	var into any
	switch kind {
	case source.KindGatewayClass:
		s.GatewayClass = &gatewayv1.GatewayClassStatus{}
		into = s.GatewayClass
	case source.KindGateway:
		s.Gateway = &gatewayv1.GatewayStatus{}
		into = s.Gateway
	case source.KindHTTPRoute:
		s.HTTPRoute = &gatewayv1.HTTPRouteStatus{}
		into = s.HTTPRoute
	case source.KindInferencePool:
		s.Pool = &inferencev1.InferencePoolStatus{}
		into = s.Pool
	case source.KindBackendTLSPolicy:
		s.Policy = &gatewayv1.PolicyStatus{}
		into = s.Policy
	}
	if err := yaml.UnmarshalStrict([]byte(named(text)), into); err != nil {
		t.Fatal(err)
	}
	return s
}

// named puts our controller's name and a time of no meaning into a text.
func named(text string) string {
	return strings.NewReplacer("OURS", translator.ControllerName, "EARLIER", `"2026-01-01T00:00:00Z"`, "NOW", `"2026-05-01T12:00:00Z"`, "NEVER", `"1970-01-01T00:00:00Z"`).Replace(text)
}

func TestMerge(t *testing.T) {
	for _, test := range []struct {
		name string
		kind source.Kind
		have string
		want string
		// patch is empty if nothing is to be written.
		patch string
	}{
		{"the CRD's default is replaced, with a time", source.KindGateway,
			`conditions: [{type: Accepted, status: Unknown, reason: Pending, message: Waiting for controller, lastTransitionTime: NEVER}]`,
			`conditions: [{type: Accepted, status: "True", reason: Accepted, message: m, observedGeneration: 1}]`,
			`conditions: [{type: Accepted, status: "True", reason: Accepted, message: m, observedGeneration: 1, lastTransitionTime: NOW}]`},
		{"a default that has the right status gets a time", source.KindGatewayClass,
			`conditions: [{type: Accepted, status: Unknown, reason: Pending, message: m, lastTransitionTime: NEVER}]`,
			`conditions: [{type: Accepted, status: Unknown, reason: Pending, message: m}]`,
			`conditions: [{type: Accepted, status: Unknown, reason: Pending, message: m, lastTransitionTime: NOW}]`},
		{"what is the same is not written", source.KindGateway,
			`{addresses: [{type: IPAddress, value: 10.0.0.1}], conditions: [{type: Accepted, status: "True", reason: R, message: m, observedGeneration: 1, lastTransitionTime: EARLIER}],
			listeners: [{name: a, attachedRoutes: 3, supportedKinds: [{group: g, kind: k}], conditions: [{type: Accepted, status: "True", reason: R, message: m, lastTransitionTime: EARLIER}]}]}`,
			`{addresses: [{type: IPAddress, value: 10.0.0.1}], conditions: [{type: Accepted, status: "True", reason: R, message: m, observedGeneration: 1}],
			listeners: [{name: a, attachedRoutes: 3, supportedKinds: [{group: g, kind: k}], conditions: [{type: Accepted, status: "True", reason: R, message: m}]}]}`,
			``},
		{"a time changes only with its status", source.KindGateway,
			`conditions: [{type: Accepted, status: "True", reason: R, message: old, lastTransitionTime: EARLIER}, {type: Programmed, status: "False", reason: R, message: m, lastTransitionTime: EARLIER}]`,
			`conditions: [{type: Accepted, status: "True", reason: R, message: new, observedGeneration: 2}, {type: Programmed, status: "True", reason: R, message: m, observedGeneration: 2}]`,
			`conditions: [{type: Accepted, status: "True", reason: R, message: new, observedGeneration: 2, lastTransitionTime: EARLIER}, {type: Programmed, status: "True", reason: R, message: m, observedGeneration: 2, lastTransitionTime: NOW}]`},
		{"conditions of others stay where they are, with fields of their own", source.KindGateway,
			`{conditions: [{type: example.com/A, status: "True", extra: {deep: 1}}, {type: Accepted, status: "True", reason: R, message: m, lastTransitionTime: EARLIER}, {type: Z, status: "False"}],
			listeners: [{name: a, conditions: [{type: L, status: "True"}]}, {name: gone, conditions: [{type: L, status: "True"}]}]}`,
			`{conditions: [{type: Programmed, status: "True", reason: R, message: m}, {type: Accepted, status: "True", reason: R, message: m}],
			listeners: [{name: a, attachedRoutes: 0, supportedKinds: [], conditions: [{type: Accepted, status: "True", reason: R, message: m}]}]}`,
			`{conditions: [{type: example.com/A, status: "True", extra: {deep: 1}}, {type: Accepted, status: "True", reason: R, message: m, lastTransitionTime: EARLIER}, {type: Z, status: "False"}, {type: Programmed, status: "True", reason: R, message: m, lastTransitionTime: NOW}],
			listeners: [{name: a, attachedRoutes: 0, supportedKinds: [], conditions: [{type: L, status: "True"}, {type: Accepted, status: "True", reason: R, message: m, lastTransitionTime: NOW}]}]}`},
		{"addresses that are gone go", source.KindGateway,
			`{addresses: [{type: IPAddress, value: 10.0.0.1}]}`, `{}`, `{addresses: null}`},
		{"fields that are nobody's we know stay", source.KindGateway,
			`{attachedListenerSets: 2}`, `{}`, ``},
		{"a Gateway that is not ours any more is left alone", source.KindGateway,
			`conditions: [{type: Accepted, status: "True", reason: R, message: m, lastTransitionTime: EARLIER}]`, ``, ``},
		{"features are listed", source.KindGatewayClass,
			`{}`, `{conditions: [{type: Accepted, status: "True", reason: R, message: m}], supportedFeatures: [{name: A}, {name: B}]}`,
			`{conditions: [{type: Accepted, status: "True", reason: R, message: m, lastTransitionTime: NOW}], supportedFeatures: [{name: A}, {name: B}]}`},
		{"a first entry", source.KindHTTPRoute,
			`{}`, `parents: [{controllerName: OURS, parentRef: {name: a}, conditions: [{type: Accepted, status: "True", reason: R, message: m}]}]`,
			`parents: [{controllerName: OURS, parentRef: {name: a}, conditions: [{type: Accepted, status: "True", reason: R, message: m, lastTransitionTime: NOW}]}]`},
		{"entries of others stay as and where they are", source.KindHTTPRoute,
			`parents: [{controllerName: OURS, parentRef: {name: left}, conditions: []}, {controllerName: x, parentRef: {name: b}, later: [1], conditions: [{type: A}]},
			{controllerName: OURS, parentRef: {name: a, sectionName: s}, conditions: [{type: Accepted, status: "False", reason: R, message: m, lastTransitionTime: EARLIER}, {type: PartiallyInvalid, status: "True"}, {type: Foreign}]}, {controllerName: y, parentRef: {name: a, sectionName: s}}]`,
			`parents: [{controllerName: OURS, parentRef: {name: new}, conditions: []}, {controllerName: OURS, parentRef: {name: a, sectionName: s}, conditions: [{type: Accepted, status: "True", reason: R, message: m}]}]`,
			`parents: [{controllerName: x, parentRef: {name: b}, later: [1], conditions: [{type: A}]},
			{controllerName: OURS, parentRef: {name: a, sectionName: s}, conditions: [{type: Accepted, status: "True", reason: R, message: m, lastTransitionTime: NOW}, {type: Foreign}]}, {controllerName: y, parentRef: {name: a, sectionName: s}}, {controllerName: OURS, parentRef: {name: new}, conditions: []}]`},
		{"references that defaults have completed are the same", source.KindHTTPRoute,
			`parents: [{controllerName: OURS, parentRef: {group: gateway.networking.k8s.io, kind: Gateway, name: a, port: 80}, conditions: []}]`,
			`parents: [{controllerName: OURS, parentRef: {name: a, port: 80}, conditions: []}]`, ``},
		{"sections and ports tell references apart", source.KindHTTPRoute,
			`parents: [{controllerName: OURS, parentRef: {name: a, port: 80}, conditions: []}]`,
			`parents: [{controllerName: OURS, parentRef: {name: a, port: 81}, conditions: []}]`,
			`parents: [{controllerName: OURS, parentRef: {name: a, port: 81}, conditions: []}]`},
		{"a route that has left us", source.KindHTTPRoute,
			`parents: [{controllerName: OURS, parentRef: {name: a}, conditions: []}, {controllerName: x, parentRef: {name: b}, conditions: []}]`, ``,
			`parents: [{controllerName: x, parentRef: {name: b}, conditions: []}]`},
		{"a route of ours alone that has left us", source.KindHTTPRoute, `parents: [{controllerName: OURS, parentRef: {name: a}, conditions: []}]`, ``, `parents: []`},
		{"a route that was never ours", source.KindHTTPRoute, `{}`, `parents: []`, ``},
		{"another controller's route", source.KindHTTPRoute, `parents: [{controllerName: x, parentRef: {name: b}, conditions: []}]`, ``, ``},
		{"a pool", source.KindInferencePool,
			`parents: [{parentRef: {name: nobody, namespace: ns}, conditions: []}]`,
			`parents: [{controllerName: OURS, parentRef: {name: g, namespace: ns}, conditions: []}]`,
			`parents: [{parentRef: {name: nobody, namespace: ns}, conditions: []}, {controllerName: OURS, parentRef: {name: g, namespace: ns}, conditions: []}]`},
		{"a policy", source.KindBackendTLSPolicy,
			`ancestors: [{controllerName: OURS, ancestorRef: {name: left}, conditions: []}]`,
			`ancestors: [{controllerName: OURS, ancestorRef: {name: g}, conditions: []}]`,
			`ancestors: [{controllerName: OURS, ancestorRef: {name: g}, conditions: []}]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			have, want := tree(t, named(test.have)), wantOf(t, test.kind, test.want)
			before := tree(t, named(test.have))
			got, err := merge(want, have, now)
			if err != nil {
				t.Fatal(err)
			}
			wanted := map[string]any{}
			if test.patch != "" {
				wanted = tree(t, named(test.patch))
			}
			if d := cmp.Diff(wanted, orEmpty(got)); d != "" {
				t.Errorf("patch (-want +got):\n%s", d)
			}
			if d := cmp.Diff(before, have); d != "" {
				t.Errorf("what the object has was changed:\n%s", d)
			}
			maps.Copy(have, got)
			if again, err := merge(want, have, now.Add(time.Hour)); err != nil || len(again) > 0 {
				t.Errorf("once written it would be written again: %v %v", again, err)
			}
		})
	}
}

func orEmpty(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// The API takes a limited number of entries, of all controllers together: others' have
// their places, and of ours those that fit are better than a write that fails.
func TestMergeLimits(t *testing.T) {
	for _, test := range []struct {
		kind        source.Kind
		field, ref  string
		limit       int
		theirs, our int
	}{
		{source.KindHTTPRoute, "parents", "parentRef", 32, 30, 5},
		{source.KindInferencePool, "parents", "parentRef", 32, 32, 1},
		{source.KindBackendTLSPolicy, "ancestors", "ancestorRef", 16, 2, 16},
	} {
		var have, want []string
		for i := range test.theirs {
			have = append(have, fmt.Sprintf("{controllerName: x, %s: {name: x%d, namespace: ns}, conditions: []}", test.ref, i))
		}
		for i := range test.our {
			want = append(want, fmt.Sprintf("{controllerName: OURS, %s: {name: o%d, namespace: ns}, conditions: []}", test.ref, i))
		}
		old := tree(t, test.field+": ["+strings.Join(have, ", ")+"]")
		got, err := merge(wantOf(t, test.kind, test.field+": ["+strings.Join(want, ", ")+"]"), old, now)
		if err != nil {
			t.Fatal(err)
		}
		merged := list(old, test.field)
		if len(got) > 0 {
			merged = list(got, test.field)
		}
		if d := cmp.Diff(list(old, test.field), merged[:test.theirs]); d != "" {
			t.Errorf("%s: others' entries:\n%s", test.kind, d)
		}
		if len(merged) != test.limit {
			t.Errorf("%s: %d entries, want %d", test.kind, len(merged), test.limit)
		}
	}
}

func TestPace(t *testing.T) {
	for _, test := range []struct {
		name        string
		every, over time.Duration // how often the status changes, for how long
		most        int           // writes
	}{
		{"1,000 routes in 10 s", 10 * time.Millisecond, 10 * time.Second, 9},
		{"1,000 routes in 45 s", 45 * time.Millisecond, 45 * time.Second, 20},
		{"a change a minute is written at once", time.Minute, time.Hour, 60},
	} {
		var p pace
		writes, at := 0, now
		for ; at.Before(now.Add(test.over)); at = at.Add(test.every) {
			if at.Before(p.next) {
				continue
			}
			writes, p = writes+1, p.after(at)
		}
		if writes > test.most {
			t.Errorf("%s: %d writes, want %d at most", test.name, writes, test.most)
		}
		if wait := p.next.Sub(at); wait > maxGap {
			t.Errorf("%s: the last change waits for %s, want %s at most", test.name, wait, maxGap)
		}
		if test.every == time.Minute && writes != test.most {
			t.Errorf("%s: %d writes, want each of %d", test.name, writes, test.most)
		}
	}
}
