package translator

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// Verdicts on backendRefs, which become ResolvedRefs of the HTTPRoute.
var (
	backendNotFound     = declare(source.KindHTTPRoute, gatewayv1.RouteConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.RouteReasonBackendNotFound)
	backendInvalidKind  = declare(source.KindHTTPRoute, gatewayv1.RouteConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.RouteReasonInvalidKind)
	backendNotPermitted = declare(source.KindHTTPRoute, gatewayv1.RouteConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.RouteReasonRefNotPermitted)
	backendUnsupported  = declare(source.KindHTTPRoute, gatewayv1.RouteConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.RouteReasonUnsupportedProtocol)
)

// Verdicts on InferencePools.
var (
	poolAccepted         = declare(source.KindInferencePool, inferencev1.InferencePoolConditionAccepted, metav1.ConditionTrue, inferencev1.InferencePoolReasonAccepted)
	poolRouteNotAccepted = declare(source.KindInferencePool, inferencev1.InferencePoolConditionAccepted, metav1.ConditionFalse, inferencev1.InferencePoolReasonHTTPRouteNotAccepted)

	poolResolved   = declare(source.KindInferencePool, inferencev1.InferencePoolConditionResolvedRefs, metav1.ConditionTrue, inferencev1.InferencePoolReasonResolvedRefs)
	poolUnresolved = declare(source.KindInferencePool, inferencev1.InferencePoolConditionResolvedRefs, metav1.ConditionFalse, inferencev1.InferencePoolReasonInvalidExtensionRef)
)

// Verdicts on BackendTLSPolicies.
var (
	policyAccepted   = declare(source.KindBackendTLSPolicy, gatewayv1.PolicyConditionAccepted, metav1.ConditionTrue, gatewayv1.PolicyReasonAccepted)
	policyConflicted = declare(source.KindBackendTLSPolicy, gatewayv1.PolicyConditionAccepted, metav1.ConditionFalse, gatewayv1.PolicyReasonConflicted)
	policyInvalid    = declare(source.KindBackendTLSPolicy, gatewayv1.PolicyConditionAccepted, metav1.ConditionFalse, gatewayv1.PolicyReasonInvalid)
	policyNoCA       = declare(source.KindBackendTLSPolicy, gatewayv1.PolicyConditionAccepted, metav1.ConditionFalse, gatewayv1.BackendTLSPolicyReasonNoValidCACertificate)

	policyResolved  = declare(source.KindBackendTLSPolicy, gatewayv1.BackendTLSPolicyConditionResolvedRefs, metav1.ConditionTrue, gatewayv1.BackendTLSPolicyReasonResolvedRefs)
	policyInvalidCA = declare(source.KindBackendTLSPolicy, gatewayv1.BackendTLSPolicyConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef)
	policyCAKind    = declare(source.KindBackendTLSPolicy, gatewayv1.BackendTLSPolicyConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.BackendTLSPolicyReasonInvalidKind)
)

// Messages on backendRefs; several are joined into one condition.
const (
	msgBackendKind        = "backendRef %s: the kind %s of the group %q is not routed to; use Service (group \"\") or InferencePool (group " + inferencev1.GroupName + ")"
	msgBackendOldGroup    = "backendRef %s: InferencePool has left the group " + oldPoolGroup + "; use the group " + inferencev1.GroupName + ", in the pool's apiVersion too (/v1)"
	msgBackendForbidden   = "backendRef %s: no ReferenceGrant in the namespace %s allows %ss of the namespace %s to refer to this %s"
	msgBackendNoPort      = "backendRef %s: a Service needs a port"
	msgBackendMissing     = "backendRef %s: the %s does not exist"
	msgBackendExternal    = "backendRef %s: Services of the type ExternalName are refused (CVE-2021-25740); use one with endpoints of its own"
	msgBackendNoSuchPort  = "backendRef %s: the Service has no port %d"
	msgBackendNotTCP      = "backendRef %s: port %d of the Service is not a TCP port"
	msgBackendAppProtocol = "backendRef %s: port %d of the Service has appProtocol %q, which is not spoken; use http, kubernetes.io/h2c, http2, grpc, or none"

	msgWarnPoolGroup = "backendRef %s: kind InferencePool without a group is read as group: " + inferencev1.GroupName + "; write it, other gateways refuse the reference without"
)

// Messages on InferencePools.
const (
	msgPoolAccepted         = "The Gateway supports InferencePools and routes to this one."
	msgPoolRouteNotAccepted = "None of the HTTPRoutes that refer to the pool is accepted by the Gateway; see their conditions."
	msgPoolBalanced         = "The pool has no endpointPickerRef; Envoy chooses the endpoint with the fewest requests."
	msgPoolResolved         = "The endpoint picker's Service is found."
	msgPickerKind           = "endpointPickerRef: the kind %s of the group %q is not supported; use Service. Requests are answered 503."
	msgPickerNoPort         = "endpointPickerRef: the Service %s needs a port. Requests are answered 503."
	msgPickerMissing        = "endpointPickerRef: the Service %s does not exist. Requests are answered 503."
	msgPickerExternal       = "endpointPickerRef: the Service %s is of the type ExternalName, which is refused (CVE-2021-25740). Requests are answered 503."
	msgPickerNoSuchPort     = "endpointPickerRef: the Service %s has no TCP port %d; give the Service's port, not its targetPort. Requests are answered 503."
	msgPickerPolicy         = "endpointPickerRef: the BackendTLSPolicy %s on the Service %s cannot be kept, so the picker is not called; see the policy's conditions. Requests are answered 503."

	msgWarnPickerTLS      = "annotation %s: %q is not insecure or plaintext and is ignored; verified TLS takes a BackendTLSPolicy on the Service %s"
	msgWarnPickerPolicy   = "annotation %s is ignored: the BackendTLSPolicy %s says how the Service %s is called"
	msgWarnPickerResponse = "annotation %s: %q is not Full, Headers or None; the default, Full, is used"
	msgWarnPickTimeout    = "annotation %s: %q is not a duration such as 30s; there is no bound"
	msgWarnPoolParents    = "%d Gateways route to the pool; its status has room for %d"
)

// Messages on endpoints, each after the object that names them.
const (
	msgWarnNotIP       = "%s: %q is not an IP address; endpoints need one"
	msgWarnNotEndpoint = "%s: %s is not the address of one endpoint"
	msgWarnGuarded     = "%s: %s is refused: loopback and link-local addresses lead to the gateway's own machine"
	msgWarnPortName    = "%s: no port is named %q, as port %d of the Service %s is"
	msgWarnActivePort  = "%s: annotation %s: %q is not a targetPort of the pool"
	msgWarnSlicePorts  = "%s: none of its ports is a targetPort of the pool"
)

// Messages on BackendTLSPolicies.
const (
	msgPolicyAccepted    = "Endpoint pickers behind the Service are verified as the policy says."
	msgPolicyConflicted  = "The BackendTLSPolicy %s, which is older or comes first by name, targets the Service %s too."
	msgPolicyHostname    = "validation.hostname: %q is not a DNS name."
	msgPolicySANs        = "validation.subjectAltNames is not supported; the certificate is verified against validation.hostname alone. Remove it."
	msgPolicyWellKnown   = "validation.wellKnownCACertificates: %q is not known; use System."
	msgPolicyNoCA        = "None of validation.caCertificateRefs holds a CA certificate."
	msgPolicyResolved    = "All references are resolved."
	msgPolicyCAKind      = "validation.caCertificateRefs[%d]: the kind %s of the group %q is not supported; use a ConfigMap."
	msgPolicyCAMissing   = "validation.caCertificateRefs[%d]: the ConfigMap %s does not exist."
	msgPolicyCANoKey     = "validation.caCertificateRefs[%d]: the ConfigMap %s has no key ca.crt."
	msgPolicyCABad       = "validation.caCertificateRefs[%d]: ca.crt of the ConfigMap %s %v."
	msgWarnPolicyUnused  = "the Service %s is not the endpoint picker of an InferencePool, and the policy does nothing there: TLS is spoken to endpoint pickers only"
	msgWarnPolicyParents = "%d Gateways use the policy; its status has room for %d"
)

// How many entries the API allows in a status.
const (
	maxPoolParents     = 32
	maxPolicyAncestors = 16
)

// poolStatusOf says what became of a pool: one parent for each Gateway through which a
// route reaches it, none without routes.
func (t *tables) poolStatusOf(r *incr.Reads, k key, row poolRow) (Status, bool) {
	warnings := append(slices.Clone(row.Warnings), t.endpointWarnings(r, row.backend())...)
	status := &inferencev1.InferencePoolStatus{}
	gateways, accepted := t.poolGateways(r, k)
	for _, g := range gateways {
		namespace, name := splitKey(g)
		accept := poolAccepted.because(msgPoolAccepted)
		if !accepted[g] {
			accept = poolRouteNotAccepted.because(msgPoolRouteNotAccepted)
		}
		status.Parents = append(status.Parents, inferencev1.ParentStatus{
			// The namespace is always set: readers skip entries without.
			ParentRef: inferencev1.ParentReference{
				Group: ptr.To(inferencev1.Group(gatewayv1.GroupName)), Kind: "Gateway",
				Namespace: inferencev1.Namespace(namespace), Name: inferencev1.ObjectName(name),
			},
			ControllerName: ControllerName,
			Conditions:     atGeneration(row.Generation, accept, row.ResolvedRefs),
		})
	}
	if n := len(status.Parents); n > maxPoolParents {
		warnings = append(warnings, fmt.Sprintf(msgWarnPoolParents, n, maxPoolParents))
		status.Parents = status.Parents[:maxPoolParents]
	}
	slices.Sort(warnings)
	return Status{Ref: row.Ref, Generation: row.Generation, Pool: status, Warnings: slices.Compact(warnings)}, true
}

// poolGateways returns the Gateways through which a route reaches the pool, sorted, and
// which of them have accepted such a route.
func (t *tables) poolGateways(r *incr.Reads, pool key) (gateways []key, accepted map[key]bool) {
	accepted = map[key]bool{}
	for _, route := range t.routesByPool.Keys(r, pool) {
		row, _ := t.routeRows.Get(r, route)
		for _, p := range row.Pools {
			if p.Pool == pool {
				gateways = append(gateways, p.Gateway)
				accepted[p.Gateway] = accepted[p.Gateway] || p.Accepted
			}
		}
	}
	return unique(gateways), accepted
}

// policyStatusOf says what became of a BackendTLSPolicy: one ancestor for each Gateway
// that reaches, through a pool, a picker whose Service the policy targets.
func (t *tables) policyStatusOf(r *incr.Reads, _ key, row policyRow) (Status, bool) {
	conditions := row.Conditions
	if rival, on, found := t.rival(r, row); found {
		conditions = slices.Clone(conditions)
		conditions[0] = policyConflicted.because(msgPolicyConflicted, objectKey(rival.Ref.Namespace, rival.Ref.Name), on.Service)
	}
	var gateways []key
	var warnings []string
	for _, target := range row.Targets {
		pools := t.poolsByPickerService.Keys(r, target.Service)
		if len(pools) == 0 {
			warnings = append(warnings, fmt.Sprintf(msgWarnPolicyUnused, target.Service))
		}
		for _, pool := range pools {
			reached, _ := t.poolGateways(r, pool)
			gateways = append(gateways, reached...)
		}
	}
	status := &gatewayv1.PolicyStatus{}
	for _, g := range unique(gateways) {
		namespace, name := splitKey(g)
		status.Ancestors = append(status.Ancestors, gatewayv1.PolicyAncestorStatus{
			AncestorRef: gatewayv1.ParentReference{
				Group: ptr.To(gatewayv1.Group(gatewayv1.GroupName)), Kind: ptr.To(gatewayv1.Kind("Gateway")),
				Namespace: ptr.To(gatewayv1.Namespace(namespace)), Name: gatewayv1.ObjectName(name),
			},
			ControllerName: ControllerName,
			Conditions:     atGeneration(row.Generation, conditions...),
		})
	}
	if n := len(status.Ancestors); n > maxPolicyAncestors {
		warnings = append(warnings, fmt.Sprintf(msgWarnPolicyParents, n, maxPolicyAncestors))
		status.Ancestors = status.Ancestors[:maxPolicyAncestors]
	}
	slices.Sort(warnings)
	return Status{Ref: row.Ref, Generation: row.Generation, Policy: status, Warnings: slices.Compact(warnings)}, true
}

// pickerService lists a pool under the Service of its picker.
func pickerService(_ key, row poolRow) []key {
	if row.PickerService == "" {
		return nil
	}
	return []key{row.PickerService}
}
