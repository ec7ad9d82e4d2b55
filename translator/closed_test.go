package translator_test

import (
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

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

// names are what the resources of one group are called and what they call one another.
type names struct {
	have, wanted map[xds.Type][]string
	secretsUsed  []string // not wanted: the Secret may be missing or unusable
}

// fault returns what an Envoy would miss or refuse in the world, or nil: a message that
// is not valid at any depth, a name that is not the resource's, a reference that leads
// nowhere, a resource that nothing can need.
func (w *world) fault() error {
	groups := map[xds.Group]*names{}
	for p, r := range w.resources {
		n := groups[p.Group]
		if n == nil {
			n = &names{map[xds.Type][]string{}, map[xds.Type][]string{}, nil}
			groups[p.Group] = n
		}
		if err := n.read(p, r); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	for group, n := range groups {
		if err := n.fault(); err != nil {
			return fmt.Errorf("%s: %w", group, err)
		}
	}
	return nil
}

func (n *names) read(p place, r *xds.Resource) error {
	m, err := r.Any.UnmarshalNew()
	if err != nil {
		return err
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil || string(again) != string(r.Any.Value) {
		return fmt.Errorf("not the deterministic bytes: %v", err)
	}
	if named, ok := m.(interface{ GetName() string }); ok && named.GetName() != p.Name || r.Name != p.Name || r.Type != p.Type {
		return fmt.Errorf("is called %s %s", r.Type.Short(), r.Name)
	}
	n.have[p.Type] = append(n.have[p.Type], p.Name)
	want := func(t xds.Type, name string) { n.wanted[t] = append(n.wanted[t], name) }
	return walk(m, func(m proto.Message) error {
		if v, ok := m.(interface{ ValidateAll() error }); ok {
			if err := v.ValidateAll(); err != nil {
				return err
			}
		}
		switch m := m.(type) {
		case *hcmv3.HttpConnectionManager:
			want(xds.Route, m.GetRds().GetRouteConfigName())
		case *tlsv3.SdsSecretConfig:
			n.secretsUsed = append(n.secretsUsed, m.Name)
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
		case *endpointv3.ClusterLoadAssignment:
			if p.Type == xds.Endpoint && m.ClusterName != p.Name {
				return fmt.Errorf("is of the cluster %s", m.ClusterName)
			}
		case *routev3.RouteConfiguration:
			return distinct(m)
		case *listenerv3.Listener:
			want(xds.Listener, m.Name) // nothing refers to listeners
		}
		return nil
	})
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

func (n *names) fault() error {
	for _, t := range xds.Types {
		if t == xds.Secret {
			continue
		}
		for _, name := range n.wanted[t] {
			if name != translator.InvalidBackend && !slices.Contains(n.have[t], name) {
				return fmt.Errorf("%s %s is referred to and missing", t.Short(), name)
			}
		}
		for _, name := range n.have[t] {
			// A cluster may be there for a route that others cover, and the one of the process
			// beside Envoy is there for the life of a Gateway.
			if t != xds.Cluster && !slices.Contains(n.wanted[t], name) {
				return fmt.Errorf("nothing refers to %s %s", t.Short(), name)
			}
		}
	}
	for _, name := range n.have[xds.Secret] {
		if !slices.Contains(n.secretsUsed, name) {
			return fmt.Errorf("nothing refers to secret %s", name)
		}
	}
	return nil
}
