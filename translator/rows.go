package translator

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/extproc/contract"
	"signalbox.dev/provision/infrastructure"
	"signalbox.dev/source"
	"signalbox.dev/xds"
)

// This file holds the rows of the derived tables: what one concern says to another.
// Rows are immutable once they are in a table, and are compared to find out whether
// a change matters to who reads them.

// key is the key of a row: "namespace/name" for objects, see names.go for others.
type key string

// gatewayRow is what a Gateway means: made by gateway.go, read by routes, tables,
// listeners and statuses. A Gateway that is not of our class has no row.
type gatewayRow struct {
	Ref        source.Ref
	Generation int64
	Group      xds.Group
	Listeners  []listenerRow // in the order of the spec, all of them
	Conditions []metav1.Condition
	Addresses  []gatewayv1.GatewaySpecAddress // of a Gateway whose Envoys are brought along
	Warnings   []string
	// IdleTimeout is how long a stream may be silent; from an annotation.
	IdleTimeout time.Duration
	// Managed says that Envoys are run for it. Wanted is what they need; nil if the
	// Gateway is not accepted, or asks for an address that none can have.
	Managed bool
	Wanted  *infrastructure.Gateway
}

// listenerRow is one listener of a Gateway.
type listenerRow struct {
	Name     string
	Port     int32 // as in the spec
	Bound    int32 // as Envoy binds it (Options.Ports)
	Protocol gatewayv1.ProtocolType
	Hostname string // lower case; "" accepts every host
	// RouteConfig names the RouteConfiguration that its routes go into: one for all
	// HTTP listeners of a port, one for each HTTPS listener. Empty if the listener is
	// not served: it is not valid, its Gateway is not accepted, or no certificate of
	// its may be used. What the certificates hold does not matter: see Secrets.
	RouteConfig string
	// Valid says whether the listener is accepted. Routes attach to others too
	// (ListenerStatus.attachedRoutes), but have no entries there.
	Valid bool
	// Secrets are the certificates that an HTTPS listener may use, sorted, whether or
	// not they exist and hold something usable: the Envoy listener names them and must
	// not change when they do, since that would cut streams. Until one is there Envoy
	// refuses TLS handshakes.
	Secrets []source.Ref
	// Certified says whether one of Secrets is usable now.
	Certified bool

	// What may attach.
	FromAll      bool
	FromSame     bool
	FromSelector labels.Selector // nil unless from: Selector
	HTTPRoutes   bool            // HTTPRoute is among the allowed kinds

	SupportedKinds []gatewayv1.RouteGroupKind
	// Conditions without Programmed, which needs Envoy's word.
	Conditions []metav1.Condition
}

// routeRow is what an HTTPRoute means.
type routeRow struct {
	Ref        source.Ref
	Generation int64
	Parents    []routeParent
	// Entries by key of the route table, inGroup(group, RouteConfig).
	Entries map[key][]entry
	// Uses lists every backend that an entry can reach, by Gateway; sorted, unique.
	Uses []use
	// Pools lists the pools that the route's backendRefs resolve to, by Gateway
	// through which it is accepted, for the pools' status; sorted, unique.
	Pools    []poolParent
	Warnings []string
}

// routeParent is one parentRef that points at a Gateway of ours.
type routeParent struct {
	Ref        gatewayv1.ParentReference
	Gateway    key
	Listeners  []string // names of the listeners it is attached to, sorted
	Accepted   bool
	Conditions []metav1.Condition
}

// use is one backend that one Gateway's Envoys need.
type use struct {
	Group   xds.Group
	Backend key // backendKey in names.go: "pool/ns/name" or "service/ns/name/port"
}

// poolParent is one pool and a Gateway through which a route reaches it.
type poolParent struct {
	Pool, Gateway key
	Accepted      bool // the route is accepted by that Gateway
}

// poolRow is what an InferencePool means, without its endpoints: made by pool.go,
// read by routes (cluster, picker), clusters and statuses.
type poolRow struct {
	Ref        source.Ref
	Generation int64
	H2C        bool
	// Picker is nil for a pool without endpointPickerRef, which Envoy balances by
	// itself, and for one whose reference cannot be followed: see Broken.
	Picker *contract.Picker
	// Broken is true if the pool names a picker that cannot be followed: its traffic
	// is answered 503, whatever the failure mode. Its cluster sees to that: it has no
	// host without a pick, and nobody picks.
	Broken bool
	// PickerService is the Service that the pool's endpointPickerRef names, existing or
	// not; empty without one. Policies on it are the pool's.
	PickerService key
	ResolvedRefs  metav1.Condition // without ObservedGeneration
	Warnings      []string
}

// serviceRow is what a Service means to a backendRef.
type serviceRow struct {
	Ref   source.Ref
	Ports []servicePort
	// External is true for ExternalName Services, which are refused (CVE-2021-25740).
	External bool
}

// servicePort is one port of a Service.
type servicePort struct {
	Name string
	Port int32
	App  string // appProtocol, as in the spec
	UDP  bool   // neither TCP nor unset: cannot carry HTTP/1.1 or HTTP/2
}

// policyRow is a BackendTLSPolicy, resolved: made by policy.go.
type policyRow struct {
	Ref        source.Ref
	Generation int64
	Created    time.Time
	Targets    []policyTarget
	Hostname   string
	CA         []byte // PEM; nil with System true
	System     bool
	// Invalid is true if the policy cannot be kept: what it protects must not be
	// reached at all, rather than unprotected.
	Invalid    bool
	Conditions []metav1.Condition // Accepted and ResolvedRefs, without ObservedGeneration
}

// policyTarget is one Service, or one named port of it.
type policyTarget struct {
	Service key
	Section string // name of the port; "" for all
}

// backend is what a backendRef comes to: made by resolveBackend (backend.go), which
// reads pools, services and grants; used by route.go.
type backend struct {
	// Key and Cluster are empty if the reference is invalid: its share of the
	// traffic is answered 500.
	Key     key
	Cluster string
	Pool    key              // the pool's key, if it is one
	Picker  *contract.Picker // the picker to ask, or nil
	// Failure is the ResolvedRefs=False condition of an invalid reference; nil if valid.
	Failure *metav1.Condition
	Warning string
}
