package kube

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator"
)

// Statuses are merged as JSON and not as Go types, so that what others have written comes
// out as it went in, fields that these types do not know included.

// merge returns which fields of a status have to be written, and with what: those that
// signalbox has a say in and that differ from what it wants. nil is for a field that has
// to go.
func merge(want translator.Status, have map[string]any, now time.Time) (map[string]any, error) {
	says, err := words(want)
	if err != nil || says == nil {
		return nil, err
	}
	out := map[string]any{}
	set := func(field string, value any) {
		if !same(have[field], value) {
			out[field] = value
		}
	}
	switch want.Ref.Kind {
	case source.KindGatewayClass:
		set("conditions", conditions(list(have, "conditions"), list(says, "conditions"), now))
		set("supportedFeatures", says["supportedFeatures"])
	case source.KindGateway:
		set("conditions", conditions(list(have, "conditions"), list(says, "conditions"), now))
		set("addresses", says["addresses"])
		set("listeners", listeners(list(have, "listeners"), list(says, "listeners"), now))
	case source.KindHTTPRoute, source.KindInferencePool:
		set("parents", entries(list(have, "parents"), list(says, "parents"), "parentRef", maxParents, now))
	case source.KindBackendTLSPolicy:
		set("ancestors", entries(list(have, "ancestors"), list(says, "ancestors"), "ancestorRef", maxAncestors, now))
	}
	return out, nil
}

// How many entries the API allows in a status, those of all controllers together.
const (
	maxParents   = 32
	maxAncestors = 16
)

// words returns what signalbox says of an object. Of a route, a pool or a policy it may
// be that nothing stands between it and any Gateway of ours: our entries go. A
// GatewayClass or a Gateway that is not ours any more is another controller's to write.
func words(s translator.Status) (map[string]any, error) {
	var status any
	switch s.Ref.Kind {
	case source.KindGatewayClass:
		if s.GatewayClass == nil {
			return nil, nil
		}
		status = s.GatewayClass
	case source.KindGateway:
		if s.Gateway == nil {
			return nil, nil
		}
		status = s.Gateway
	case source.KindHTTPRoute:
		status = s.HTTPRoute
	case source.KindInferencePool:
		status = s.Pool
	case source.KindBackendTLSPolicy:
		status = s.Policy
	default:
		return nil, fmt.Errorf("%s has no status of ours", s.Ref)
	}
	if reflect.ValueOf(status).IsNil() {
		return map[string]any{}, nil
	}
	return asMap(status)
}

// asMap returns a status as JSON would have it.
func asMap(status any) (map[string]any, error) {
	return runtime.DefaultUnstructuredConverter.ToUnstructured(status)
}

// same says whether two fields mean the same: no list is an empty one.
func same(a, b any) bool { return empty(a) && empty(b) || reflect.DeepEqual(a, b) }

func empty(v any) bool {
	l, ok := v.([]any)
	return v == nil || ok && len(l) == 0
}

func list(m map[string]any, field string) []any {
	l, _ := m[field].([]any)
	return l
}

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// listeners returns want with the conditions that others have set on listeners of the
// same name.
func listeners(have, want []any, now time.Time) []any {
	out := make([]any, 0, len(want))
	for _, w := range want {
		listener := object(w)
		i := slices.IndexFunc(have, func(h any) bool { return object(h)["name"] == listener["name"] })
		var old []any
		if i >= 0 {
			old = list(object(have[i]), "conditions")
		}
		listener["conditions"] = conditions(old, list(listener, "conditions"), now)
		out = append(out, listener)
	}
	return out
}

// entries merges a list in which each controller has entries of its own, told apart by
// what they refer to. Others' stay as and where they are; ours stay where they are too,
// or two controllers that each put their own last would never come to rest. Those that
// the list has no room for are left out.
func entries(have, want []any, ref string, room int, now time.Time) []any {
	out := []any{} // an empty list is a statement, null is refused
	left := slices.Clone(want)
	for _, h := range have {
		entry := object(h)
		if entry["controllerName"] != translator.ControllerName {
			out = append(out, h)
			continue
		}
		i := slices.IndexFunc(left, func(w any) bool { return target(object(w)[ref]) == target(entry[ref]) })
		if i < 0 {
			continue
		}
		w := maps.Clone(object(left[i]))
		w[ref] = entry[ref] // it may have been completed by defaults
		w["conditions"] = conditions(list(entry, "conditions"), list(w, "conditions"), now)
		out, left = append(out, w), slices.Delete(left, i, i+1)
	}
	for _, l := range left {
		w := maps.Clone(object(l))
		w["conditions"] = conditions(nil, list(w, "conditions"), now)
		out = append(out, w)
	}
	for i := len(out) - 1; i >= 0 && len(out) > room; i-- {
		if object(out[i])["controllerName"] == translator.ControllerName {
			out = slices.Delete(out, i, i+1)
		}
	}
	return out
}

// target is what a reference in a status refers to, defaults filled in.
func target(ref any) string {
	r := object(ref)
	group, kind := r["group"], r["kind"]
	if group == nil {
		group = gatewayv1.GroupName
	}
	if kind == nil {
		kind = "Gateway"
	}
	return fmt.Sprintf("%v %v %v %v %v %v", group, kind, r["namespace"], r["name"], r["sectionName"], r["port"])
}

// ours are the condition types that signalbox sets and therefore may take away.
var ours = []string{
	string(gatewayv1.GatewayConditionAccepted), string(gatewayv1.GatewayConditionProgrammed),
	string(gatewayv1.GatewayConditionResolvedRefs), string(gatewayv1.ListenerConditionConflicted),
	string(gatewayv1.ListenerConditionOverlappingTLSConfig), string(gatewayv1.RouteConditionPartiallyInvalid),
	string(gatewayv1.GatewayClassConditionStatusSupportedVersion),
}

// conditions returns have with want in it: types of others and the order stay, and a time
// changes only with the condition's status. The CRDs' defaults are of 1970: they have no
// time yet.
func conditions(have, want []any, now time.Time) []any {
	out := []any{}
	at := func(w map[string]any, since any) {
		w = maps.Clone(w)
		w["lastTransitionTime"] = since
		out = append(out, w)
	}
	today := now.UTC().Format(time.RFC3339)
	for _, h := range have {
		old := object(h)
		i := slices.IndexFunc(want, func(w any) bool { return object(w)["type"] == old["type"] })
		switch {
		case i < 0:
			if typ, _ := old["type"].(string); !slices.Contains(ours, typ) {
				out = append(out, h)
			}
		case object(want[i])["status"] == old["status"] && old["lastTransitionTime"] != metav1.Unix(0, 0).UTC().Format(time.RFC3339):
			at(object(want[i]), old["lastTransitionTime"])
		default:
			at(object(want[i]), today)
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h any) bool { return object(h)["type"] == object(w)["type"] }) {
			at(object(w), today)
		}
	}
	return out
}
