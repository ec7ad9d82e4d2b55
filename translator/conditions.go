package translator

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Empty says whether signalbox has nothing to say of the object.
func (s Status) Empty() bool { return s.content() == nil && len(s.Warnings) == 0 }

// EachCondition calls f with every condition of the status and where it stands: ""
// for the object itself, "listener NAME", or "parent NAMESPACE/NAME" with section and
// port where the reference has them. f may change the condition of a status that was
// copied (WithTimes).
func (s Status) EachCondition(f func(where string, c *metav1.Condition)) {
	each := func(where string, cs []metav1.Condition) {
		for i := range cs {
			f(where, &cs[i])
		}
	}
	switch {
	case s.GatewayClass != nil:
		each("", s.GatewayClass.Conditions)
	case s.Gateway != nil:
		each("", s.Gateway.Conditions)
		for _, l := range s.Gateway.Listeners {
			each("listener "+string(l.Name), l.Conditions)
		}
	case s.HTTPRoute != nil:
		for _, p := range s.HTTPRoute.Parents {
			each(parentName(p.ParentRef), p.Conditions)
		}
	case s.Pool != nil:
		for _, p := range s.Pool.Parents {
			each(fmt.Sprintf("parent %s/%s", p.ParentRef.Namespace, p.ParentRef.Name), p.Conditions)
		}
	case s.Policy != nil:
		for _, a := range s.Policy.Ancestors {
			each(parentName(a.AncestorRef), a.Conditions)
		}
	}
}

func parentName(r gatewayv1.ParentReference) string {
	where := "parent "
	if r.Namespace != nil {
		where += string(*r.Namespace) + "/"
	}
	where += string(r.Name)
	if r.SectionName != nil {
		where += " section " + string(*r.SectionName)
	}
	if r.Port != nil {
		where += fmt.Sprintf(" port %d", *r.Port)
	}
	return where
}

// WithTimes returns a copy of s in which each condition's lastTransitionTime is what
// since says.
func (s Status) WithTimes(since func(where, typ string, status metav1.ConditionStatus) metav1.Time) Status {
	s.GatewayClass = s.GatewayClass.DeepCopy()
	s.Gateway = s.Gateway.DeepCopy()
	s.HTTPRoute = s.HTTPRoute.DeepCopy()
	s.Pool = s.Pool.DeepCopy()
	s.Policy = s.Policy.DeepCopy()
	s.EachCondition(func(where string, c *metav1.Condition) { c.LastTransitionTime = since(where, c.Type, c.Status) })
	return s
}
