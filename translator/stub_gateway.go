package translator

// Stand-ins until gateway.go, attach.go, listener.go exist. Owner: gateway side. Delete this file.

import (
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// ackRow is what the Envoys of a group said of one Envoy listener.
type ackRow struct {
	Accepted map[string]string // node → version it holds
	Refused  map[string]string // node → Envoy's words
}

// answered puts acks into the input table.
func (t *tables) answered(acks []xds.Ack) {}

func (t *tables) gateway(r *incr.Reads, k key, o *gatewayv1.Gateway) (gatewayRow, bool) {
	return gatewayRow{}, false
}

// gatewayTables: the route tables (inGroup(group, RouteConfig)) of a Gateway's valid listeners.
func gatewayTables(k key, row gatewayRow) []key { return nil }

// gatewayListeners: inGroup(group, listenerName) of the Envoy listeners of a Gateway.
func (t *tables) gatewayListeners(k key, row gatewayRow) []key { return nil }

// gatewaySecrets: inGroup(group, secretName) of the secrets that a Gateway's listeners use.
func gatewaySecrets(k key, row gatewayRow) []key { return nil }

func (t *tables) envoyListener(r *incr.Reads, x key, gateways []key) (*xds.Resource, bool) {
	return nil, false
}

func (t *tables) envoySecret(r *incr.Reads, x key, gateways []key) (*xds.Resource, bool) {
	return nil, false
}

// extProcCluster is the one static cluster of the process beside Envoy.
func (t *tables) extProcCluster(r *incr.Reads, k key, row gatewayRow) (*xds.Resource, bool) {
	return nil, false
}

func (t *tables) gatewayClassStatusOf(r *incr.Reads, k key, o *gatewayv1.GatewayClass) (Status, bool) {
	return Status{}, false
}

func (t *tables) gatewayStatusOf(r *incr.Reads, k key, row gatewayRow) (Status, bool) {
	return Status{}, false
}

// attach (attach.go) says which listeners of which Gateways of ours a route of the
// namespace with these hostnames attaches to, one parent per parentRef that points at
// a Gateway of ours, with the Accepted condition when it is refused.
func (t *tables) attach(r *incr.Reads, namespace string, hostnames []gatewayv1.Hostname, refs []gatewayv1.ParentReference) []attachment {
	return nil
}

// attachment is where one parentRef leads.
type attachment struct {
	Ref       gatewayv1.ParentReference
	Gateway   key
	Row       gatewayRow
	Listeners []attachedListener // empty if refused
	// Refused is the Accepted=False condition, without ObservedGeneration; nil if accepted.
	Refused *refusal
}

type refusal struct{ Reason, Message string }

// attachedListener is one listener and the hosts that the route serves on it.
type attachedListener struct {
	Listener listenerRow
	// Hosts are the intersections of the listener's hostname and the route's, most
	// specific first: the domains of the route's entries. {Host: ""} means every host.
	Hosts []attachedHost
}

type attachedHost struct {
	Host  string // the intersection: domain of the virtual host
	Route string // the route's own hostname that it comes from ("" if the route names none): decides precedence
}

var _ *corev1.Secret
