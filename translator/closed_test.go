package translator_test

import (
	"fmt"
	"regexp"
	"sync"
	"unicode/utf8"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// walk calls f for m and for every message inside, those packed in Any included.
func walk(m proto.Message, f func(proto.Message) error) error {
	if packed, ok := m.(*anypb.Any); ok {
		inner, err := packed.UnmarshalNew()
		if err != nil {
			return err
		}
		return walk(inner, f)
	}
	if err := f(m); err != nil {
		return err
	}
	var failed error
	visit := func(v protoreflect.Message) bool {
		failed = walk(v.Interface(), f)
		return failed == nil
	}
	m.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { return visit(v.Message()) })
		case field.IsMap() || field.Message() == nil:
		case field.IsList():
			for i := range v.List().Len() {
				if !visit(v.List().Get(i).Message()) {
					break
				}
			}
		default:
			visit(v.Message())
		}
		return failed == nil
	})
	return failed
}

// reading is what one resource calls others.
type reading struct {
	wanted  map[xds.Type][]string
	secrets []string // not wanted: the Secret may be missing or unusable
	fault   error
}

// readings remembers them by type, name and version: properties see the same resources
// again and again.
var readings sync.Map

func read(r *xds.Resource) *reading {
	k := [3]string{string(r.Type), r.Name, r.Version}
	if known, ok := readings.Load(k); ok {
		return known.(*reading)
	}
	out := &reading{wanted: map[xds.Type][]string{}}
	out.fault = out.read(r)
	readings.Store(k, out)
	return out
}

func (n *reading) read(r *xds.Resource) error {
	m, err := r.Any.UnmarshalNew()
	if err != nil {
		return err
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil || string(again) != string(r.Any.Value) {
		return fmt.Errorf("not the deterministic bytes: %v", err)
	}
	name := func() string { return "" }
	switch m := m.(type) {
	case *endpointv3.ClusterLoadAssignment:
		name = m.GetClusterName
	case interface{ GetName() string }:
		name = m.GetName
	}
	if name() != r.Name {
		return fmt.Errorf("is called %q inside", name())
	}
	return walk(m, n.message)
}

func (n *reading) message(m proto.Message) error {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return err
		}
	}
	want := func(t xds.Type, name string) { n.wanted[t] = append(n.wanted[t], name) }
	switch m := m.(type) {
	case *hcmv3.HttpConnectionManager:
		want(xds.Route, m.GetRds().GetRouteConfigName())
	case *tlsv3.SdsSecretConfig:
		n.secrets = append(n.secrets, m.Name)
	case *routev3.RouteAction:
		if m.GetCluster() != "" {
			want(xds.Cluster, m.GetCluster())
		}
	case *routev3.WeightedCluster_ClusterWeight:
		want(xds.Cluster, m.Name)
	case *corev3.GrpcService_EnvoyGrpc:
		want(xds.Cluster, m.ClusterName)
	case *clusterv3.Cluster:
		if m.GetType() == clusterv3.Cluster_EDS {
			want(xds.Endpoint, m.Name)
		}
	case *routev3.RouteConfiguration:
		return distinct(m)
	}
	return nil
}

// distinct: Envoy refuses a RouteConfiguration with two hosts of one name or domain.
func distinct(rc *routev3.RouteConfiguration) error {
	seen := map[string]bool{}
	for _, h := range rc.VirtualHosts {
		if len(h.Domains) != 1 || seen["name "+h.Name] || seen["domain "+h.Domains[0]] {
			return fmt.Errorf("virtual host %s: name or domains %v are not unique", h.Name, h.Domains)
		}
		seen["name "+h.Name], seen["domain "+h.Domains[0]] = true, true
	}
	return nil
}

// fault returns what an Envoy would miss or refuse in the world, or nil: a message that
// is not valid at any depth, a name that is not the resource's, a reference that leads
// nowhere, a resource that nothing can need.
func (w *world) fault() error {
	wanted := map[place]bool{}
	for p, r := range w.resources {
		n := read(r)
		if n.fault != nil || r.Type != p.Type || r.Name != p.Name {
			return fmt.Errorf("%s: %w", p, n.fault)
		}
		for t, names := range n.wanted {
			for _, name := range names {
				at := place{p.Group, t, name}
				if _, ok := w.resources[at]; !ok && name != translator.InvalidBackend {
					return fmt.Errorf("%s refers to %s, which is missing", p, at)
				}
				wanted[at] = true
			}
		}
		for _, name := range n.secrets {
			wanted[place{p.Group, xds.Secret, name}] = true
		}
	}
	for p := range w.resources {
		// A cluster may be there for a route that others cover, and the one of the process
		// beside Envoy is there for the life of a Gateway.
		if !wanted[p] && p.Type != xds.Listener && p.Type != xds.Cluster {
			return fmt.Errorf("nothing refers to %s", p)
		}
	}
	for ref, s := range w.statuses {
		if err := statusFault(s); err != nil {
			return fmt.Errorf("status of %s: %w", ref, err)
		}
	}
	return nil
}

// reason is what an API server takes for one (metav1.Condition).
var reason = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$`)

// statusFault returns what an API server would refuse of a status, or nil.
func statusFault(s translator.Status) error {
	types, err := map[string]bool{}, error(nil)
	s.EachCondition(func(where string, c *metav1.Condition) {
		if !reason.MatchString(c.Reason) || len(c.Message) > 32768 || !utf8.ValidString(c.Message) || c.ObservedGeneration != s.Generation {
			err = fmt.Errorf("%s: condition %s has reason %q, %d bytes of message, generation %d", where, c.Type, c.Reason, len(c.Message), c.ObservedGeneration)
		}
		if where == "" && types[c.Type] {
			err = fmt.Errorf("two conditions %s", c.Type)
		}
		types[c.Type] = where == ""
	})
	return err
}
