// Package xds holds what travels between the translator, which makes Envoy
// resources, and xds/server, which brings them to Envoys in a safe order.
package xds

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Group names the Envoys that get the same configuration: those of one Gateway,
// "namespace/name". An Envoy says it as node.cluster.
type Group string

// Type is an xDS resource type, by its type URL.
type Type string

// The resource types that signalbox serves.
const (
	Secret   Type = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	Cluster  Type = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	Endpoint Type = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	Listener Type = "type.googleapis.com/envoy.config.listener.v3.Listener"
	Route    Type = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Types lists every type, in the order in which Envoy may first need them.
var Types = []Type{Secret, Cluster, Endpoint, Listener, Route}

// Short returns the name that people use: "secrets", "clusters", "endpoints",
// "listeners", "routes".
func (t Type) Short() string {
	switch t {
	case Secret:
		return "secrets"
	case Cluster:
		return "clusters"
	case Endpoint:
		return "endpoints"
	case Listener:
		return "listeners"
	case Route:
		return "routes"
	}
	return string(t)
}

// Resource is one Envoy resource, immutable.
type Resource struct {
	Type Type
	Name string
	// Version is a hash of Any.Value: equal bytes have equal versions on every
	// replica and in every run.
	Version string
	// Any is the resource, marshalled once, deterministically.
	Any *anypb.Any
}

// NewResource marshals m deterministically. It panics if m cannot be marshalled
// (invalid UTF-8 in a string field): the translator must have checked that.
func NewResource(t Type, name string, m proto.Message) *Resource {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("xds: resource %s %q cannot be marshalled: %v", t.Short(), name, err))
	}
	return NewRawResource(t, name, b)
}

// NewRawResource is NewResource for bytes that are already marshalled.
func NewRawResource(t Type, name string, b []byte) *Resource {
	sum := sha256.Sum256(b)
	return &Resource{Type: t, Name: name, Version: hex.EncodeToString(sum[:12]), Any: &anypb.Any{TypeUrl: string(t), Value: b}}
}

// Change is one resource of a group that came, changed or went.
type Change struct {
	Group    Group
	Type     Type
	Name     string
	Resource *Resource // nil: removed
}

// Compare orders changes by group, type (in the order of Types), name.
func (c Change) Compare(o Change) int {
	return cmp.Or(strings.Compare(string(c.Group), string(o.Group)), cmp.Compare(order(c.Type), order(o.Type)), strings.Compare(c.Name, o.Name))
}

func order(t Type) int {
	for i, x := range Types {
		if x == t {
			return i
		}
	}
	return len(Types)
}

// Ack says what an Envoy answered to a response: it either took the resources at
// these versions, or refused the response. It enters the translator as input, like
// everything else that the outside says.
type Ack struct {
	Group Group
	Node  string // node.id of the Envoy
	Type  Type
	// Versions holds name → Resource.Version of what was in the response.
	Versions map[string]string
	// Error is empty for an ACK, else Envoy's words. Envoy applies the good
	// resources of a refused response for Listener and Cluster, and nothing of it
	// for the other types.
	Error string
	// Gone is true when the Envoy has disconnected: its earlier answers no longer count.
	Gone bool
}
