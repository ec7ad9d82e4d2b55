package translator

import (
	"cmp"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// supportedFeatures is what a GatewayClass of ours claims: only what has a test.
var supportedFeatures = named(
	features.SupportGateway,
	features.SupportReferenceGrant,
	features.SupportGatewayPort8080,
	features.SupportGatewayHTTPListenerIsolation,
	features.SupportGatewayHTTPSListenerDetectMisdirectedRequests,
	features.SupportGatewayRouteHostnameIntersectionPrecedence,
	features.SupportHTTPRoute,
	features.SupportHTTPRouteBackendRequestHeaderModification,
	features.SupportHTTPRouteQueryParamMatching,
	features.SupportHTTPRouteMethodMatching,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportHTTPRoutePortRedirect,
	features.SupportHTTPRouteSchemeRedirect,
	features.SupportHTTPRoutePathRedirect,
	features.SupportHTTPRouteHostRewrite,
	features.SupportHTTPRoutePathRewrite,
	features.SupportHTTPRouteRequestTimeout,
	features.SupportHTTPRouteBackendTimeout,
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRouteBackendProtocolH2C,
	features.SupportHTTPRouteNamedRouteRule,
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
)

// provisionedFeatures are claimed as well where Envoys are run for Gateways.
var provisionedFeatures = append(named(
	features.SupportGatewayAddressEmpty,
	features.SupportGatewayInfrastructure,
	features.SupportGatewayStaticAddresses,
), supportedFeatures...)

func named(names ...features.FeatureName) []gatewayv1.SupportedFeature {
	var out []gatewayv1.SupportedFeature
	for _, n := range names {
		out = append(out, gatewayv1.SupportedFeature{Name: gatewayv1.FeatureName(n)})
	}
	return out
}

// supported returns the features that are claimed, sorted, as the API asks.
func (t *tables) supported() []gatewayv1.SupportedFeature {
	claimed := supportedFeatures
	if t.opt.Provision {
		claimed = provisionedFeatures
	}
	return slices.SortedFunc(slices.Values(claimed), func(a, b gatewayv1.SupportedFeature) int { return cmp.Compare(a.Name, b.Name) })
}

// gatewayClassStatusOf returns the status of a GatewayClass that names our controller.
func (t *tables) gatewayClassStatusOf(r *incr.Reads, k key, o *gatewayv1.GatewayClass) (Status, bool) {
	if o.Spec.ControllerName != ControllerName {
		return Status{}, false
	}
	accepted := classAccepted.because(msgClassAccepted)
	if o.Spec.ParametersRef != nil {
		accepted = classInvalidParameters.because(msgClassParameters)
	}
	conditions := []metav1.Condition{accepted}
	if bundle, ok := t.bundle.Get(r, ""); ok {
		conditions = append(conditions, supportedVersion(bundle))
	}
	_, name := splitKey(k)
	return Status{
		Ref:        source.Ref{Kind: source.KindGatewayClass, Name: name},
		Generation: o.Generation,
		GatewayClass: &gatewayv1.GatewayClassStatus{
			Conditions:        atGeneration(o.Generation, conditions...),
			SupportedFeatures: t.supported(),
		},
	}, true
}

// gatewayStatusOf returns the status of a Gateway: what its row says, what Envoy says
// and how many routes are attached.
func (t *tables) gatewayStatusOf(r *incr.Reads, k key, row gatewayRow) (Status, bool) {
	acks, _ := t.acks.Get(r, k)
	attached := t.attachedRoutes(r, k)
	out := &gatewayv1.GatewayStatus{}
	programmed := map[string]metav1.Condition{} // by listener
	for _, l := range row.Listeners {
		c := t.listenerProgrammed(r, row, l, acks)
		programmed[l.Name] = c
		kinds := l.SupportedKinds
		if kinds == nil {
			kinds = []gatewayv1.RouteGroupKind{} // an empty list says "none", no list says nothing
		}
		out.Listeners = append(out.Listeners, gatewayv1.ListenerStatus{
			Name:           gatewayv1.SectionName(l.Name),
			SupportedKinds: kinds,
			AttachedRoutes: attached[l.Name],
			Conditions:     atGeneration(row.Generation, append(slices.Clone(l.Conditions), c)...),
		})
	}
	conditions := slices.Clone(row.Conditions)
	for _, a := range row.Addresses {
		out.Addresses = append(out.Addresses, gatewayv1.GatewayStatusAddress{Type: a.Type, Value: a.Value})
	}
	if !slices.ContainsFunc(conditions, func(c metav1.Condition) bool { return c.Type == gatewayProgrammed.Type }) {
		c := gatewayProgrammedBy(row, programmed)
		if row.Wanted != nil {
			addresses, problem := t.provided(r, k, row)
			out.Addresses = addresses
			if problem != nil && c.Reason != gatewayInvalid.Reason {
				c = *problem // it comes before the wait for an Envoy, which may be why there is none
			}
		}
		conditions = append(conditions, c)
	}
	out.Conditions = atGeneration(row.Generation, conditions...)
	return Status{Ref: row.Ref, Generation: row.Generation, Gateway: out, Warnings: row.Warnings}, true
}

// listenerProgrammed returns a listener's Programmed condition. It is True only after
// an Envoy has taken the very version of the Envoy listener that is current.
func (t *tables) listenerProgrammed(r *incr.Reads, row gatewayRow, l listenerRow, acks ackRow) metav1.Condition {
	switch {
	case isConflict(l, listenerHostnameConflict):
		return hostnameNotServed.because(msgListenerNotServed)
	case isConflict(l, listenerProtocolConflict):
		return protocolNotServed.because(msgListenerNotServed)
	case !isTrue(row.Conditions, gatewayv1.GatewayConditionAccepted):
		return listenerInvalid.because(msgListenerGateway)
	case l.RouteConfig == "":
		return listenerInvalid.because(msgListenerNotServed)
	case l.Protocol == gatewayv1.HTTPSProtocolType && !l.Certified:
		return listenerInvalid.because(msgListenerNoCertificate)
	}
	name := listenerName(t.opt.BindAddress, l.Bound)
	res, ok := t.listeners.Get(r, inGroup(row.Group, name))
	if !ok {
		return listenerInvalid.because(msgListenerNotServed)
	}
	taken, node, refused := acks.verdictOn(name, res.Version)
	switch {
	case refused != "":
		return listenerInvalid.because(msgEnvoyRefused, node, name, quoteEnvoy(refused))
	case !taken:
		return listenerPending.because(msgNoEnvoy, name)
	}
	return listenerProgrammed.because(msgListenerProgrammed)
}

func isConflict(l listenerRow, v verdict) bool {
	return slices.ContainsFunc(l.Conditions, func(c metav1.Condition) bool { return c.Type == v.Type && c.Reason == v.Reason })
}

// gatewayProgrammedBy sums up the listeners' Programmed conditions: those that cannot be
// served do not count, as long as there are others.
func gatewayProgrammedBy(row gatewayRow, programmed map[string]metav1.Condition) metav1.Condition {
	if !isTrue(row.Conditions, gatewayv1.GatewayConditionAccepted) {
		return gatewayInvalid.because(msgGatewayNotAccepted)
	}
	var served bool
	var pending *metav1.Condition
	for _, l := range row.Listeners {
		if l.RouteConfig == "" || l.Protocol == gatewayv1.HTTPSProtocolType && !l.Certified {
			continue
		}
		served = true
		switch c := programmed[l.Name]; {
		case c.Reason == listenerPending.Reason:
			if pending == nil {
				pending = &c
			}
		case c.Status != metav1.ConditionTrue:
			return gatewayInvalid.because("%s", c.Message)
		}
	}
	switch {
	case !served:
		return gatewayInvalid.because(msgGatewayNothingServed)
	case pending != nil:
		return gatewayPending.because("%s", pending.Message)
	}
	return gatewayProgrammed.because(msgGatewayProgrammed)
}

// attachedRoutes counts, by listener, the routes that it accepts.
func (t *tables) attachedRoutes(r *incr.Reads, gateway key) map[string]int32 {
	out := map[string]int32{}
	for _, k := range t.routesByGateway.Keys(r, gateway) {
		route, ok := t.routeRows.Get(r, k)
		if !ok {
			continue
		}
		listeners := map[string]bool{} // several parentRefs may lead to one listener
		for _, p := range route.Parents {
			if p.Gateway != gateway || !p.Accepted {
				continue
			}
			for _, l := range p.Listeners {
				listeners[l] = true
			}
		}
		for l := range listeners {
			out[l]++
		}
	}
	return out
}
