package translator

import (
	"fmt"
	"strings"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

// Everything that signalbox says of an object stands in status.go (GatewayClasses,
// Gateways, listeners), status_route.go and status_pool.go: the verdicts, which are
// stable, and the messages, which are for people.

// verdict is a condition without its message: what it is on, and its type, status and
// reason, in the spec's words. Machines act on it.
type verdict struct {
	On     source.Kind // kindListener for a listener of a Gateway
	Type   string
	Status metav1.ConditionStatus
	Reason string
}

// kindListener stands for an entry of a Gateway's status.listeners.
const kindListener source.Kind = "Listener"

// verdicts lists every verdict that a condition of ours can carry, for the test that
// wants a golden of each.
var verdicts []verdict

// declare makes a verdict known.
func declare[T, R ~string](on source.Kind, typ T, status metav1.ConditionStatus, reason R) verdict {
	v := verdict{On: on, Type: string(typ), Status: status, Reason: string(reason)}
	verdicts = append(verdicts, v)
	return v
}

// because returns the condition with its message. Whoever builds the status sets the
// generation, at once for all conditions (atGeneration).
func (v verdict) because(format string, args ...any) metav1.Condition {
	return metav1.Condition{Type: v.Type, Status: v.Status, Reason: v.Reason, Message: fmt.Sprintf(format, args...)}
}

// atGeneration returns a copy of the conditions, all observed at the generation.
func atGeneration(generation int64, conditions ...metav1.Condition) []metav1.Condition {
	out := make([]metav1.Condition, len(conditions))
	for i, c := range conditions {
		c.ObservedGeneration = generation
		out[i] = c
	}
	return out
}

// isTrue says whether the condition of the type has the status True.
func isTrue[T ~string](conditions []metav1.Condition, typ T) bool {
	for _, c := range conditions {
		if c.Type == string(typ) {
			return c.Status == metav1.ConditionTrue
		}
	}
	return false
}

// Verdicts on GatewayClasses.
var (
	classAccepted           = declare(source.KindGatewayClass, gatewayv1.GatewayClassConditionStatusAccepted, metav1.ConditionTrue, gatewayv1.GatewayClassReasonAccepted)
	classSupportedVersion   = declare(source.KindGatewayClass, gatewayv1.GatewayClassConditionStatusSupportedVersion, metav1.ConditionTrue, gatewayv1.GatewayClassReasonSupportedVersion)
	classUnsupportedVersion = declare(source.KindGatewayClass, gatewayv1.GatewayClassConditionStatusSupportedVersion, metav1.ConditionFalse, gatewayv1.GatewayClassReasonUnsupportedVersion)
	classInvalidParameters  = declare(source.KindGatewayClass, gatewayv1.GatewayClassConditionStatusAccepted, metav1.ConditionFalse, gatewayv1.GatewayClassReasonInvalidParameters)
)

// Verdicts on Gateways.
var (
	gatewayAccepted           = declare(source.KindGateway, gatewayv1.GatewayConditionAccepted, metav1.ConditionTrue, gatewayv1.GatewayReasonAccepted)
	gatewaySomeListeners      = declare(source.KindGateway, gatewayv1.GatewayConditionAccepted, metav1.ConditionTrue, gatewayv1.GatewayReasonListenersNotValid)
	gatewayNoListeners        = declare(source.KindGateway, gatewayv1.GatewayConditionAccepted, metav1.ConditionFalse, gatewayv1.GatewayReasonListenersNotValid)
	gatewayInvalidParameters  = declare(source.KindGateway, gatewayv1.GatewayConditionAccepted, metav1.ConditionFalse, gatewayv1.GatewayReasonInvalidParameters)
	gatewayUnsupportedAddress = declare(source.KindGateway, gatewayv1.GatewayConditionAccepted, metav1.ConditionFalse, gatewayv1.GatewayReasonUnsupportedAddress)

	gatewayProgrammed         = declare(source.KindGateway, gatewayv1.GatewayConditionProgrammed, metav1.ConditionTrue, gatewayv1.GatewayReasonProgrammed)
	gatewayInvalid            = declare(source.KindGateway, gatewayv1.GatewayConditionProgrammed, metav1.ConditionFalse, gatewayv1.GatewayReasonInvalid)
	gatewayPending            = declare(source.KindGateway, gatewayv1.GatewayConditionProgrammed, metav1.ConditionFalse, gatewayv1.GatewayReasonPending)
	gatewayNoResources        = declare(source.KindGateway, gatewayv1.GatewayConditionProgrammed, metav1.ConditionFalse, gatewayv1.GatewayReasonNoResources)
	gatewayAddressNotUsable   = declare(source.KindGateway, gatewayv1.GatewayConditionProgrammed, metav1.ConditionFalse, gatewayv1.GatewayReasonAddressNotUsable)
	gatewayAddressNotAssigned = declare(source.KindGateway, gatewayv1.GatewayConditionProgrammed, metav1.ConditionFalse, gatewayv1.GatewayReasonAddressNotAssigned)

	gatewayResolved             = declare(source.KindGateway, gatewayv1.GatewayConditionResolvedRefs, metav1.ConditionTrue, gatewayv1.GatewayReasonResolvedRefs)
	gatewayListenersNotResolved = declare(source.KindGateway, gatewayv1.GatewayConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.GatewayReasonListenersNotResolved)
	gatewayClientCertificate    = declare(source.KindGateway, gatewayv1.GatewayConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.GatewayReasonInvalidClientCertificateRef)
)

// Verdicts on listeners. A conflict stands in three conditions with one reason, as the
// conformance tests want it for ListenerSets.
var (
	listenerAccepted            = declare(kindListener, gatewayv1.ListenerConditionAccepted, metav1.ConditionTrue, gatewayv1.ListenerReasonAccepted)
	listenerUnsupportedProtocol = declare(kindListener, gatewayv1.ListenerConditionAccepted, metav1.ConditionFalse, gatewayv1.ListenerReasonUnsupportedProtocol)
	listenerUnsupportedValue    = declare(kindListener, gatewayv1.ListenerConditionAccepted, metav1.ConditionFalse, gatewayv1.ListenerReasonUnsupportedValue)
	listenerPortUnavailable     = declare(kindListener, gatewayv1.ListenerConditionAccepted, metav1.ConditionFalse, gatewayv1.ListenerReasonPortUnavailable)
	listenerSameHostname        = declare(kindListener, gatewayv1.ListenerConditionAccepted, metav1.ConditionFalse, gatewayv1.ListenerReasonHostnameConflict)
	listenerOtherProtocol       = declare(kindListener, gatewayv1.ListenerConditionAccepted, metav1.ConditionFalse, gatewayv1.ListenerReasonProtocolConflict)

	listenerDistinct         = declare(kindListener, gatewayv1.ListenerConditionConflicted, metav1.ConditionFalse, gatewayv1.ListenerReasonNoConflicts)
	listenerHostnameConflict = declare(kindListener, gatewayv1.ListenerConditionConflicted, metav1.ConditionTrue, gatewayv1.ListenerReasonHostnameConflict)
	listenerProtocolConflict = declare(kindListener, gatewayv1.ListenerConditionConflicted, metav1.ConditionTrue, gatewayv1.ListenerReasonProtocolConflict)

	listenerResolved           = declare(kindListener, gatewayv1.ListenerConditionResolvedRefs, metav1.ConditionTrue, gatewayv1.ListenerReasonResolvedRefs)
	listenerInvalidCertificate = declare(kindListener, gatewayv1.ListenerConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.ListenerReasonInvalidCertificateRef)
	listenerRefNotPermitted    = declare(kindListener, gatewayv1.ListenerConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.ListenerReasonRefNotPermitted)
	listenerInvalidKinds       = declare(kindListener, gatewayv1.ListenerConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.ListenerReasonInvalidRouteKinds)

	listenerProgrammed = declare(kindListener, gatewayv1.ListenerConditionProgrammed, metav1.ConditionTrue, gatewayv1.ListenerReasonProgrammed)
	listenerInvalid    = declare(kindListener, gatewayv1.ListenerConditionProgrammed, metav1.ConditionFalse, gatewayv1.ListenerReasonInvalid)
	listenerPending    = declare(kindListener, gatewayv1.ListenerConditionProgrammed, metav1.ConditionFalse, gatewayv1.ListenerReasonPending)
	hostnameNotServed  = declare(kindListener, gatewayv1.ListenerConditionProgrammed, metav1.ConditionFalse, gatewayv1.ListenerReasonHostnameConflict)
	protocolNotServed  = declare(kindListener, gatewayv1.ListenerConditionProgrammed, metav1.ConditionFalse, gatewayv1.ListenerReasonProtocolConflict)

	listenerOverlap = declare(kindListener, gatewayv1.ListenerConditionOverlappingTLSConfig, metav1.ConditionTrue, gatewayv1.ListenerReasonOverlappingHostnames)
)

// Messages on GatewayClasses and Gateways.
const (
	msgClassAccepted   = "Gateways of this class are served by signalbox."
	msgClassParameters = "spec.parametersRef is not supported; remove it. Gateways of this class are not served."

	msgGatewayAccepted          = "All listeners are valid."
	msgGatewaySomeListeners     = "Valid: %s. Not valid, see their conditions: %s."
	msgGatewayNoListeners       = "No listener is valid; see the listeners' conditions."
	msgGatewayClassParameters   = "The GatewayClass %s has a spec.parametersRef, which is not supported; remove it there."
	msgGatewayAddressType       = "spec.addresses[%d]: the type %s is not supported; use IPAddress, or leave spec.addresses out."
	msgGatewayAddressNotUsable  = "spec.addresses[%d]: %s is not an address that the listeners are bound to, which is %s."
	msgGatewayAddressNotAddress = "spec.addresses[%d]: %q is not an IP address."
	msgGatewayAddressNotChosen  = "spec.addresses[%d] has no value, and no address can be chosen here; give one."
	msgGatewayNotAccepted       = "The Gateway is not accepted, so nothing of it is served."
	msgGatewayNothingServed     = "No listener can be served; see the listeners' conditions."
	msgGatewayProgrammed        = "Envoy has taken every listener that can be served."
	msgGatewayResolved          = "All references are resolved."
	msgGatewayNotResolved       = "These listeners have references that cannot be followed: %s."
	msgGatewayClientCertificate = "spec.tls.backend.clientCertificateRef is not supported: backends are called without a client certificate."

	msgVersionSupported   = "The Gateway API CRDs are of %s."
	msgVersionUnsupported = "The Gateway API CRDs are of %s; signalbox is tested with those of %s. It goes on as well as it can."

	msgParametersKind    = "spec.infrastructure.parametersRef: the kind %s of the group %q is not supported; name a ConfigMap, of the group \"\"."
	msgParametersMissing = "spec.infrastructure.parametersRef: the ConfigMap %s/%s does not exist."
	msgParametersInvalid = "spec.infrastructure.parametersRef: the ConfigMap %s/%s: %s."
	msgNotProvided       = "What runs the Gateway's Envoys was refused: %s"
	msgServiceMissing    = "The Service %s, through which clients reach the Gateway, does not exist yet."
	msgServicePending    = "The Service %s has no address yet. A load balancer controller of the cluster gives it one; if there is none, set serviceType to NodePort or ClusterIP in the ConfigMap of spec.infrastructure.parametersRef."
	msgAddressMany       = "spec.addresses: a Service can ask for one address, not for %s; give one."
	msgAddressOther      = "spec.addresses: %s was asked for, and the Service %s has %s."
	msgAddressBrought    = "The Gateway's Envoys are brought along; say in spec.addresses where clients reach them."

	msgWarnUnmanaged    = "annotation %s: %q is neither \"true\" nor \"false\"; Envoys are provisioned"
	msgWarnParameters   = "spec.infrastructure has no effect: the Gateway's Envoys are brought along"
	msgWarnIdleTimeout  = "annotation %s: %q is not a positive duration such as 10m; the default of %s is used"
	msgWarnListenerSets = "spec.allowedListeners: ListenerSets are not supported; none is attached"
)

// Messages on listeners.
const (
	msgListenerAccepted         = "The listener is valid."
	msgListenerProtocol         = "The protocol %s is not supported; use HTTP or HTTPS."
	msgListenerFilters          = "filters.requests[0]: filters of listeners are not supported."
	msgListenerHostname         = "hostname: %q is not a DNS name, or one after \"*.\"."
	msgListenerName             = "name: %q is not a DNS subdomain."
	msgListenerMode             = "tls.mode: %s is not supported; use Terminate."
	msgListenerOption           = "tls.options: %s is not supported."
	msgListenerFrontend         = "spec.tls.frontend: client certificates cannot be validated yet, and so the listener is not served."
	msgListenerSelector         = "allowedRoutes.namespaces.selector: %v."
	msgListenerFrom             = "allowedRoutes.namespaces.from: %s is not supported; use Same, All or Selector."
	msgListenerPort             = "port: %d is not a port number."
	msgListenerPortTaken        = "Port %d of this host is bound for Gateway %s; give the listener another port, or map it to one."
	msgListenerPortShared       = "Envoy would bind port %d for this listener and for %s, which has another port in the spec; give one of them another port, or map the ports apart."
	msgListenerPortReserved     = "Port %d of Envoy's pod is needed for its health; give the listener another port."
	msgListenerDistinct         = "No other listener has this port, protocol and hostname."
	msgListenerHostnameConflict = "These listeners have the same port and hostname: %s. None of them is served; change or remove all but one."
	msgListenerProtocolConflict = "Listeners on port %d have different protocols (%s). None of them is served; use one protocol a port."
	msgListenerOverlap          = "The hostnames of these listeners overlap on port %d: %s. A client that reuses a connection for another listener's hostname is answered 421."
	msgListenerResolved         = "All references are resolved."
	msgListenerKinds            = "allowedRoutes.kinds: %s is not supported; only HTTPRoute of " + gatewayv1.GroupName + " is."
	msgListenerProgrammed       = "Envoy has taken the listener."
	msgListenerNotServed        = "The listener is not served; see its other conditions."
	msgListenerNoCertificate    = "No certificate is usable, so TLS handshakes fail; see ResolvedRefs. An Envoy that has an earlier certificate keeps it."
	msgListenerGateway          = "The Gateway is not accepted, so the listener is not served."

	msgNoEnvoy      = "Waiting for an Envoy to take %s; none has answered yet."
	msgEnvoyRefused = "Envoy %s refused %s: %s"

	msgCertificateNone      = "tls.certificateRefs is empty; name a Secret of the type kubernetes.io/tls."
	msgCertificateKind      = "tls.certificateRefs[%d]: %s is not supported; use a Secret."
	msgCertificateName      = "tls.certificateRefs[%d]: %q is no name that a Secret can have."
	msgCertificateForbidden = "tls.certificateRefs[%d]: no ReferenceGrant in the namespace %s allows Gateways of the namespace %s to use the Secret %s."
	msgCertificateMissing   = "tls.certificateRefs[%d]: there is no Secret %s of the type kubernetes.io/tls."
	msgCertificateBad       = "tls.certificateRefs[%d]: the Secret %s: %v."
)

// Messages of refused attachments.
const (
	msgNoSuchListener  = "The Gateway %s has no listener %s."
	msgNotAllowed      = "No listener of the Gateway %s allows this HTTPRoute of the namespace %s: %s."
	msgNoHostname      = "None of the route's hostnames (%s) is served by a listener of the Gateway %s: %s."
	whyNotAllowedKind  = "listener %s does not take HTTPRoutes"
	whyNotAllowedSame  = "listener %s takes routes of its own namespace, %s, only (allowedRoutes.namespaces.from: Same)"
	whyNotAllowedOther = "listener %s takes routes of namespaces that its selector matches, and it does not match %s"
	whyNotAllowedNone  = "listener %s takes no routes"
	whyNoHostname      = "listener %s has %s"
)

// maxWords bounds what is repeated of an Envoy's words, in bytes: conditions are kept
// in etcd, and 32 KiB is the most that one may hold.
const maxWords = 1024

// quoteEnvoy returns an Envoy's words for use in a message: one line, bounded.
func quoteEnvoy(words string) string {
	words = strings.Join(strings.Fields(strings.ToValidUTF8(words, "�")), " ")
	if len(words) <= maxWords {
		return words
	}
	cut := maxWords
	for !utf8.RuneStart(words[cut]) {
		cut--
	}
	return words[:cut] + "…"
}
