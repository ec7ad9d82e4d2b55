package kube

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator"
)

// merge returns the status that the object should have: ours as wanted, everything of
// others as it is, and whether that differs from what the object has. An object whose
// generation has moved on is left alone: a newer status is on its way.
func merge(object source.Object, want translator.Status, now metav1.Time) (status any, changed bool, err error) {
	if want.Generation != 0 && object.GetGeneration() > want.Generation {
		return nil, false, nil
	}
	switch o := object.(type) {
	case *gatewayv1.GatewayClass:
		if want.GatewayClass == nil {
			return nil, false, nil
		}
		s := *want.GatewayClass.DeepCopy()
		s.Conditions = conditions(o.Status.Conditions, s.Conditions, now)
		return s, !equality.Semantic.DeepEqual(o.Status, s), nil
	case *gatewayv1.Gateway:
		if want.Gateway == nil {
			return nil, false, nil
		}
		s := gateway(o.Status, *want.Gateway.DeepCopy(), now)
		return s, !equality.Semantic.DeepEqual(o.Status, s), nil
	case *gatewayv1.HTTPRoute:
		var ours []gatewayv1.RouteParentStatus
		if want.HTTPRoute != nil {
			ours = want.HTTPRoute.DeepCopy().Parents
		}
		s := gatewayv1.HTTPRouteStatus{RouteStatus: gatewayv1.RouteStatus{Parents: parents(o.Status.Parents, ours, now)}}
		return s, !equality.Semantic.DeepEqual(o.Status, s), nil
	case *inferencev1.InferencePool:
		var ours []inferencev1.ParentStatus
		if want.Pool != nil {
			ours = want.Pool.DeepCopy().Parents
		}
		s := inferencev1.InferencePoolStatus{Parents: poolParents(o.Status.Parents, ours, now)}
		return s, !equality.Semantic.DeepEqual(o.Status, s), nil
	case *gatewayv1.BackendTLSPolicy:
		var ours []gatewayv1.PolicyAncestorStatus
		if want.Policy != nil {
			ours = want.Policy.DeepCopy().Ancestors
		}
		s := gatewayv1.PolicyStatus{Ancestors: ancestors(o.Status.Ancestors, ours, now)}
		return s, !equality.Semantic.DeepEqual(o.Status, s), nil
	}
	return nil, false, fmt.Errorf("%T: %w", object, errKind)
}

// gateway merges a Gateway's status: conditions by type, listeners by name.
func gateway(have, want gatewayv1.GatewayStatus, now metav1.Time) gatewayv1.GatewayStatus {
	want.Conditions = conditions(have.Conditions, want.Conditions, now)
	for i, l := range want.Listeners {
		var old []metav1.Condition
		if j := slices.IndexFunc(have.Listeners, func(h gatewayv1.ListenerStatus) bool { return h.Name == l.Name }); j >= 0 {
			old = have.Listeners[j].Conditions
		}
		want.Listeners[i].Conditions = conditions(old, l.Conditions, now)
	}
	return want
}

// ours are the condition types that signalbox sets and therefore may take away.
var ours = []string{"Accepted", "Programmed", "ResolvedRefs", "Conflicted", "OverlappingTLSConfig", "PartiallyInvalid", "SupportedVersion",
	"InsecureFrontendValidationMode", "Exported"}

// conditions returns have with want in it: types of others and the order stay, a time
// changes only with its status.
func conditions(have, want []metav1.Condition, now metav1.Time) []metav1.Condition {
	var out []metav1.Condition
	for _, h := range have {
		i := slices.IndexFunc(want, func(w metav1.Condition) bool { return w.Type == h.Type })
		switch {
		case i >= 0:
			w := want[i]
			if w.LastTransitionTime = h.LastTransitionTime; w.Status != h.Status || h.LastTransitionTime.Unix() == 0 {
				w.LastTransitionTime = now.Rfc3339Copy()
			}
			out = append(out, w)
		case !slices.Contains(ours, h.Type):
			out = append(out, h)
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h metav1.Condition) bool { return h.Type == w.Type }) {
			w.LastTransitionTime = now.Rfc3339Copy()
			out = append(out, w)
		}
	}
	return out
}

// entries merges a list in which each controller has its own entries: those of others
// stay where they are, ours are replaced, with the conditions of the entry that speaks
// of the same parent merged.
func entries[T any](have, want []T, mine func(*T) bool, same func(a, b *T) bool, conds func(*T) *[]metav1.Condition, now metav1.Time) []T {
	out := []T{} // not nil: an empty list is a statement, null is refused
	for i := range have {
		if !mine(&have[i]) {
			out = append(out, have[i])
		}
	}
	for i := range want {
		w := want[i]
		var old []metav1.Condition
		for j := range have {
			if mine(&have[j]) && same(&have[j], &w) {
				old = *conds(&have[j])
				break
			}
		}
		*conds(&w) = conditions(old, *conds(&w), now)
		out = append(out, w)
	}
	return out
}

func parents(have, want []gatewayv1.RouteParentStatus, now metav1.Time) []gatewayv1.RouteParentStatus {
	return entries(have, want,
		func(p *gatewayv1.RouteParentStatus) bool { return p.ControllerName == translator.ControllerName },
		func(a, b *gatewayv1.RouteParentStatus) bool {
			return equality.Semantic.DeepEqual(a.ParentRef, b.ParentRef)
		},
		func(p *gatewayv1.RouteParentStatus) *[]metav1.Condition { return &p.Conditions }, now)
}

func poolParents(have, want []inferencev1.ParentStatus, now metav1.Time) []inferencev1.ParentStatus {
	return entries(have, want,
		func(p *inferencev1.ParentStatus) bool { return p.ControllerName == translator.ControllerName },
		func(a, b *inferencev1.ParentStatus) bool {
			return equality.Semantic.DeepEqual(a.ParentRef, b.ParentRef)
		},
		func(p *inferencev1.ParentStatus) *[]metav1.Condition { return &p.Conditions }, now)
}

func ancestors(have, want []gatewayv1.PolicyAncestorStatus, now metav1.Time) []gatewayv1.PolicyAncestorStatus {
	return entries(have, want,
		func(p *gatewayv1.PolicyAncestorStatus) bool { return p.ControllerName == translator.ControllerName },
		func(a, b *gatewayv1.PolicyAncestorStatus) bool {
			return equality.Semantic.DeepEqual(a.AncestorRef, b.AncestorRef)
		},
		func(p *gatewayv1.PolicyAncestorStatus) *[]metav1.Condition { return &p.Conditions }, now)
}
