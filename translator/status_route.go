package translator

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// Verdicts on HTTPRoutes, by parent. Those on references that cannot be followed are
// declared with the backends (status_pool.go).
var (
	routeAccepted            = declare(source.KindHTTPRoute, gatewayv1.RouteConditionAccepted, metav1.ConditionTrue, gatewayv1.RouteReasonAccepted)
	routeNotAllowed          = declare(source.KindHTTPRoute, gatewayv1.RouteConditionAccepted, metav1.ConditionFalse, gatewayv1.RouteReasonNotAllowedByListeners)
	routeNoHostname          = declare(source.KindHTTPRoute, gatewayv1.RouteConditionAccepted, metav1.ConditionFalse, gatewayv1.RouteReasonNoMatchingListenerHostname)
	routeNoParent            = declare(source.KindHTTPRoute, gatewayv1.RouteConditionAccepted, metav1.ConditionFalse, gatewayv1.RouteReasonNoMatchingParent)
	routeUnsupportedValue    = declare(source.KindHTTPRoute, gatewayv1.RouteConditionAccepted, metav1.ConditionFalse, gatewayv1.RouteReasonUnsupportedValue)
	routeIncompatibleFilters = declare(source.KindHTTPRoute, gatewayv1.RouteConditionAccepted, metav1.ConditionFalse, gatewayv1.RouteReasonIncompatibleFilters)

	routeResolvedRefs = declare(source.KindHTTPRoute, gatewayv1.RouteConditionResolvedRefs, metav1.ConditionTrue, gatewayv1.RouteReasonResolvedRefs)

	routePartiallyInvalid = declare(source.KindHTTPRoute, gatewayv1.RouteConditionPartiallyInvalid, metav1.ConditionTrue, gatewayv1.RouteReasonUnsupportedValue)
)

// refusedVerdicts are the verdicts that attach can come to, by reason.
var refusedVerdicts = map[string]verdict{
	routeNotAllowed.Reason: routeNotAllowed,
	routeNoHostname.Reason: routeNoHostname,
	routeNoParent.Reason:   routeNoParent,
}

// Messages on HTTPRoutes.
const (
	msgRouteAccepted            = "The route is served by the listeners %s."
	msgRouteResolved            = "All references are resolved."
	msgRouteFilter              = "%s: a filter of the type %s is not supported here"
	msgRouteField               = "%s is not supported"
	msgRouteValue               = "%s: %v"
	msgRouteRedirectAndRewrite  = "%s: RequestRedirect and URLRewrite cannot be combined"
	msgRouteRedirectAndBackends = "%s: RequestRedirect and backendRefs cannot be combined"
	msgRouteExtension           = "%s.filters[%d]: there are no filters of the kind %s (group %q)"
	msgRouteHostname            = "hostnames[%d]: %q is not a DNS name, or one after \"*.\""
	msgRuleAnswers500           = "%s; requests that match the rule are answered 500."
	msgRuleLeftOut              = "%s; the rule is left out."
	// The spec wants the first words (RouteConditionPartiallyInvalid).
	msgRouteDropped = "Dropped Rule(s) %s: %s"

	warnRouteManyRules = "the route has %d of at most 16 rules; rules for adapters of one base model can be one rule that matches X-Gateway-Base-Model-Name"
)

// conditions is what a parent says of the route.
func (b *routeBuilder) conditions(a attachment) []metav1.Condition {
	accepted, partially := b.accepted(a)
	out := []metav1.Condition{accepted, b.resolvedRefs()}
	if partially != nil {
		out = append(out, *partially)
	}
	for i := range out {
		out[i].Message = bounded(out[i].Message)
	}
	return atGeneration(b.route.Generation, out...)
}

// maxMessage bounds a condition's message, in bytes: the API server refuses a status with
// one of more than 32 KiB, and 16 rules can each quote 4 KiB of what a user has written.
const maxMessage = 8 << 10

func bounded(message string) string {
	if len(message) <= maxMessage {
		return message
	}
	cut := maxMessage
	for !utf8.RuneStart(message[cut]) {
		cut--
	}
	return message[:cut] + "…"
}

// accepted is False if the route attaches nowhere or no rule of it can be kept.
func (b *routeBuilder) accepted(a attachment) (accepted metav1.Condition, partially *metav1.Condition) {
	if a.Refused != nil {
		return refusedVerdicts[a.Refused.Reason].because("%s", a.Refused.Message), nil
	}
	var names, dropped, why []string
	for _, l := range a.Listeners {
		names = append(names, l.Listener.Name)
	}
	for _, ru := range b.rules {
		if ru.Problem != nil {
			dropped = append(dropped, fmt.Sprint(ru.Index))
			if c := ru.consequence(); !slices.Contains(why, c) {
				why = append(why, c)
			}
		}
	}
	switch {
	case len(dropped) > 0 && len(dropped) == len(b.rules):
		return b.rules[0].Problem.Verdict.because("%s", strings.Join(why, " ")), nil
	case len(dropped) > 0:
		c := routePartiallyInvalid.because(msgRouteDropped, strings.Join(dropped, ", "), strings.Join(why, " "))
		partially = &c
	}
	return routeAccepted.because(msgRouteAccepted, strings.Join(names, ", ")), partially
}

// consequence says what a rule's problem is, and what it does to requests.
func (ru *rule) consequence() string {
	if len(ru.Matches) == 0 {
		return fmt.Sprintf(msgRuleLeftOut, ru.Problem.Message)
	}
	return fmt.Sprintf(msgRuleAnswers500, ru.Problem.Message)
}

// resolvedRefs gives the first reason and every message: one reason is all that a
// condition can have.
func (b *routeBuilder) resolvedRefs() metav1.Condition {
	if len(b.refs) == 0 {
		return routeResolvedRefs.because(msgRouteResolved)
	}
	out := b.refs[0]
	seen := map[string]bool{out.Message: true}
	for _, c := range b.refs[1:] {
		if !seen[c.Message] {
			seen[c.Message] = true
			out.Message += "; " + c.Message
		}
	}
	return out
}

func (t *tables) routeStatusOf(_ *incr.Reads, _ key, row routeRow) (Status, bool) {
	st := Status{Ref: row.Ref, Generation: row.Generation, HTTPRoute: &gatewayv1.HTTPRouteStatus{}, Warnings: row.Warnings}
	for _, p := range row.Parents {
		st.HTTPRoute.Parents = append(st.HTTPRoute.Parents, gatewayv1.RouteParentStatus{
			ParentRef: p.Ref, ControllerName: ControllerName, Conditions: p.Conditions,
		})
	}
	return st, true
}
