// Package source says what an object is and how a source delivers changes.
//
// A source is where objects come from: a directory of YAML (source/dir) or a
// Kubernetes API server (source/kube). Both deliver the same typed objects, with
// the official CRDs' defaults applied and their validation (schema and CEL) passed,
// so that an object means the same wherever it was read from. source/sourcetest
// is the one test suite that every source passes.
package source

import (
	"cmp"
	"context"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Kind names a kind of object that signalbox reads. Group and version follow from
// it; see Kinds.
type Kind string

// The kinds that signalbox reads. Every other kind in a source is ignored, with one
// line of information.
const (
	KindGatewayClass     Kind = "GatewayClass"
	KindGateway          Kind = "Gateway"
	KindHTTPRoute        Kind = "HTTPRoute"
	KindReferenceGrant   Kind = "ReferenceGrant"
	KindBackendTLSPolicy Kind = "BackendTLSPolicy"
	KindInferencePool    Kind = "InferencePool"
	KindService          Kind = "Service"
	KindEndpointSlice    Kind = "EndpointSlice"
	KindPod              Kind = "Pod"
	KindNamespace        Kind = "Namespace"
	KindSecret           Kind = "Secret"
	KindConfigMap        Kind = "ConfigMap"
)

// Ref identifies one object. Namespace is empty for cluster-scoped kinds.
type Ref struct {
	Kind            Kind
	Namespace, Name string
}

// String returns "Kind/namespace/name", or "Kind/name" for cluster-scoped objects.
func (r Ref) String() string {
	if r.Namespace == "" {
		return string(r.Kind) + "/" + r.Name
	}
	return string(r.Kind) + "/" + r.Namespace + "/" + r.Name
}

// Compare orders refs by kind, namespace, name.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(strings.Compare(string(r.Kind), string(o.Kind)),
		strings.Compare(r.Namespace, o.Namespace), strings.Compare(r.Name, o.Name))
}

// Object is a typed Kubernetes object (*gatewayv1.Gateway, *corev1.Service, …).
// Once delivered it is shared and must never be modified by anyone.
type Object interface {
	metav1.Object
	runtime.Object
}

// Change is one object that came, changed or went.
type Change struct {
	Ref    Ref
	Object Object // nil: the object is gone
}

// Problem is a mistake in a source that keeps an object from being read: a file
// that does not parse, an object that fails validation. What was last good stays
// in force until the problem is gone.
type Problem struct {
	Where   string `json:"where"`            // "path/file.yaml:12:3", or the name of the API resource
	Object  string `json:"object,omitempty"` // Ref as a string where it is known, else empty
	Message string `json:"message"`          // says what is wrong and what to do
}

// Batch is what a source delivers at once. It is applied as a whole: nothing is
// translated between two changes of a batch.
type Batch struct {
	Changes []Change
	// Problems lists all problems that the source has now; nil with
	// ProblemsKnown false means "as before".
	Problems      []Problem
	ProblemsKnown bool
	// Synced is true from the batch on that completes the source's first full
	// read. Nothing is served before every source has said so.
	Synced bool
}

// Source delivers objects.
//
// Run sends batches until ctx ends, then returns nil; an error is returned only for
// what can never succeed (a directory that does not exist at the start). The
// receiver always reads; Run must give up a send when ctx ends. A source sends each
// object once as it is and then only on change; a later change of an object is never
// sent before an earlier one. An object sent is never touched again by the source.
type Source interface {
	Run(ctx context.Context, batches chan<- Batch) error
}
