// Package kube reads objects from a Kubernetes API server.
//
// A reflector a kind (and namespace) lists and watches; what it sees goes, stripped of
// all that translation must not look at, into one feed that sends batches. A kind
// whose CRD is not installed has no objects; it is looked for again until it is there,
// so that any subset of the CRDs may be installed, and later ones are picked up.
//
// What cannot be read is not the same as what is not there: a kind that is refused or
// whose API server is away keeps the objects that it had, and at the start nothing is
// called synced before every kind has been read. So no outage and no missing permission
// ever looks like the deletion of somebody's routes.
//
//	kube.go    Source, its scopes and clients
//	follow.go  one kind in one scope: list, watch, and what comes in between
//	feed.go    what all of them saw → batches
//	strip.go   what is taken away from objects
package kube

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

// Options says what to read.
type Options struct {
	Config *rest.Config
	// Namespaces limits what is read: namespaced kinds in these namespaces, and of the
	// Namespaces these. Empty reads all.
	Namespaces []string
	Logger     *zap.Logger
	// Observe, if not nil, gets every object that comes or changes, status and resource
	// version included, which are taken away before it is sent. It may be called by
	// several goroutines at once, must be quick and must not keep or change the object.
	Observe func(source.Object)
	// Recheck is how long it takes until what is missing is looked for again: a kind
	// that the API server does not serve, and objects that a list suddenly lacks.
	// 0 means 5 s.
	Recheck time.Duration
}

// Source is a source.Source.
type Source struct {
	opt    Options
	scheme *runtime.Scheme
}

// New returns a source. Nothing is asked before Run.
func New(o Options) *Source {
	if o.Recheck == 0 {
		o.Recheck = 5 * time.Second
	}
	if o.Observe == nil {
		o.Observe = func(source.Object) {}
	}
	o.Namespaces = slices.Compact(slices.Sorted(slices.Values(o.Namespaces)))
	return &Source{opt: o, scheme: NewScheme()}
}

// NewScheme returns a scheme with every kind of source.Kinds.
func NewScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, gatewayv1.Install, inferencev1.Install} {
		if err := add(s); err != nil {
			panic(err) // two types under one name: a mistake in this program
		}
	}
	return s
}

// RESTClient returns a client for one group and version of the scheme's kinds. Kinds of
// Kubernetes' own come as protobuf, which costs a fraction of JSON; CRDs have no other
// form than JSON.
func RESTClient(config *rest.Config, scheme *runtime.Scheme, gv schema.GroupVersion) (*rest.RESTClient, error) {
	c := rest.CopyConfig(config)
	c.GroupVersion, c.APIPath = &gv, "/apis"
	if gv.Group == "" {
		c.APIPath = "/api"
	}
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeJSON, ""
	if clientscheme.Scheme.IsVersionRegistered(gv) {
		c.ContentType = runtime.ContentTypeProtobuf
		c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	if c.UserAgent == "" {
		c.UserAgent = "signalbox"
	}
	return rest.RESTClientFor(c)
}

// Run implements source.Source.
func (s *Source) Run(ctx context.Context, batches chan<- source.Batch) error {
	feed := newFeed()
	var followers []*follower
	for _, kind := range source.Kinds {
		client, err := RESTClient(s.opt.Config, s.scheme, kind.GVK.GroupVersion())
		if err != nil {
			return fmt.Errorf("client for %s: %w", kind.GVK.GroupVersion(), err)
		}
		for _, scope := range s.scopes(kind) {
			followers = append(followers, newFollower(s.opt, client, kind, scope, feed))
		}
	}
	var group sync.WaitGroup
	for _, f := range followers {
		group.Go(func() { f.run(ctx) })
	}
	feed.run(ctx, batches)
	group.Wait()
	return nil
}

// scope is which objects of a kind are read.
type scope struct {
	namespace string // "" is all
	selector  fields.Selector
}

func (s *Source) scopes(kind source.KindInfo) (out []scope) {
	switch all := metav1.NamespaceAll; {
	case kind.Kind == source.KindNamespace && len(s.opt.Namespaces) > 0:
		for _, name := range s.opt.Namespaces {
			out = append(out, scope{all, fields.OneTermEqualSelector("metadata.name", name)})
		}
		return out
	case !kind.Namespaced || len(s.opt.Namespaces) == 0:
		out = append(out, scope{all, fields.Everything()})
	default:
		for _, name := range s.opt.Namespaces {
			out = append(out, scope{name, fields.Everything()})
		}
	}
	if kind.Kind == source.KindSecret {
		// The only Secrets that a Gateway may name: others are never read.
		for i := range out {
			out[i].selector = fields.OneTermEqualSelector("type", "kubernetes.io/tls")
		}
	}
	return out
}
