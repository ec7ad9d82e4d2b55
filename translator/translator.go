// Package translator turns objects into Envoy resources and statuses.
//
// It is pure: it reads no clock, no network and no environment, and the same objects
// give the same bytes, in whatever order and in however many steps they came. A
// user's mistake is a condition on the user's object (status.go has every one of
// them), never a Go error and never a panic, and changes nothing that another object
// gets.
//
// Inside is a graph of tables (translator/incr): input tables hold the objects,
// derived tables what was computed from them, each row again only when something
// that it looked at has changed. tables.go wires them; the other files hold one
// concern each:
//
//	gateway.go   Gateway → listeners: what they accept, their certificates, conflicts
//	address.go   under which addresses a Gateway is reached
//	certificate.go  certificateRefs → secrets
//	attach.go    which listeners a route attaches to
//	infrastructure.go  what a Gateway's Envoys need in the cluster, and what came of it
//	listener.go  listeners → Envoy listeners; connection_manager.go: what is in each
//	extproc_cluster.go  the cluster of the process beside Envoy
//	acks.go      what Envoys answered
//	route.go     HTTPRoute → entries of route tables, backends it uses, conditions
//	match.go     one HTTPRoute match → an Envoy match and its precedence
//	filter.go    HTTPRoute filters → what they change; action.go: a rule → an Envoy route action
//	table.go     entries → virtual hosts; catch.go: routes for what no rule matches
//	splice.go    virtual hosts → the bytes of a RouteConfiguration
//	models.go    ConfigMaps → which adapter has which base model
//	backend.go   backendRef → Service's port or pool; grant.go: which may cross namespaces
//	pool.go      InferencePool → its picker and how to call it; the pool's annotations
//	policy.go    BackendTLSPolicy → how a picker's certificate is verified
//	cluster.go   pool or Service → Envoy cluster
//	endpoints.go EndpointSlices and Pods → ClusterLoadAssignment
//	names.go     every Envoy resource name
//	status.go    every condition type, reason and message; status_*.go: each kind's status
//	validate.go  what Envoy would refuse although it is valid protobuf
package translator

import (
	"signalbox.dev/source"
	"signalbox.dev/xds"

	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// ControllerName is what a GatewayClass names to be ours.
const ControllerName = "signalbox.dev/gateway-controller"

// Options is what the translation depends on besides the objects.
type Options struct {
	// ExtProc is where the process beside Envoy listens, as Envoy sees it:
	// "127.0.0.1:9004" or "unix:/path".
	ExtProc string
	// BindAddress is the address that Envoy's listeners bind; "" means "0.0.0.0".
	BindAddress string
	// Ports maps a listener's port to the port that Envoy binds for it; a port that
	// is not in the map is bound as it is.
	Ports map[int32]int32
	// OneHost says that the Envoys of all Gateways run on one host, where a port can
	// be one Gateway's only.
	OneHost bool
	// HoldLimit is how much of a request body may be held before its model is
	// known, in bytes; 0 means DefaultHoldLimit.
	HoldLimit uint32
	// GuardAddresses refuses endpoints that no tenant of a cluster may name: loopback
	// and link-local addresses. Off for a directory, where the operator's word counts.
	GuardAddresses bool
	// Provision says that Envoys are run for Gateways, unless those are marked
	// unmanaged (package provision). ExtProc and Ports are for the unmanaged ones then.
	Provision bool
}

// DefaultHoldLimit is the default of Options.HoldLimit: 4 MiB.
const DefaultHoldLimit = 4 << 20

// Output is what a change changed, in a stable order.
type Output struct {
	Resources []xds.Change
	Statuses  []Status
	// Infrastructure is empty without Options.Provision.
	Infrastructure []Infrastructure
}

// Status is all that signalbox says of one object. At most one of the status fields
// is set; none: signalbox has nothing to say of the object (any more). Times in it
// are zero: the writer knows when a condition changed, the translator does not.
type Status struct {
	Ref        source.Ref
	Generation int64

	GatewayClass *gatewayv1.GatewayClassStatus
	Gateway      *gatewayv1.GatewayStatus
	HTTPRoute    *gatewayv1.HTTPRouteStatus
	Pool         *inferencev1.InferencePoolStatus
	Policy       *gatewayv1.PolicyStatus // of a BackendTLSPolicy

	// Warnings are hints about the object that no condition has room for, sorted.
	Warnings []string
}

// Translator keeps the translation of a changing set of objects. It belongs to one
// goroutine.
type Translator struct{ t *tables }

// New returns a translator that knows no objects.
func New(opt Options) *Translator {
	if opt.BindAddress == "" {
		opt.BindAddress = "0.0.0.0"
	}
	if opt.HoldLimit == 0 {
		opt.HoldLimit = DefaultHoldLimit
	}
	return &Translator{t: newTables(opt)}
}

// Apply takes changes of objects and answers of Envoys and returns what changed by
// them. Objects are read, never modified, and kept.
func (tr *Translator) Apply(changes []source.Change, acks []xds.Ack) Output {
	for _, c := range changes {
		tr.t.set(c)
	}
	tr.t.answered(acks)
	var out Output
	tr.t.g.Update(func() { out = tr.t.collect() })
	return out
}

// Reported takes what came of providing for Gateways; it counts from the next Apply on.
func (tr *Translator) Reported(reports []Report) { tr.t.reported(reports) }

// Installed takes the bundle version of Gateway API's CRDs, "" if they do not say it; it
// counts from the next Apply on. Never called, nothing is said of it.
func (tr *Translator) Installed(bundle string) { tr.t.bundle.Set("", bundle) }

// Runs returns how many table functions have run so far: the amount of work, which
// tests assert on.
func (tr *Translator) Runs() int { return tr.t.g.Runs }

// Translate returns all that the objects come to, from scratch.
func Translate(objects []source.Object, opt Options) Output {
	changes := make([]source.Change, 0, len(objects))
	for _, o := range objects {
		changes = append(changes, source.Change{Ref: source.RefOf(o), Object: o})
	}
	return New(opt).Apply(changes, nil)
}
