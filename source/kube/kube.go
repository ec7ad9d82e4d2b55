// Package kube reads objects from a Kubernetes API server.
//
// A reflector a kind (and namespace) lists and watches; what it sees goes, stripped of
// all that translation must not look at, into one feed that sends batches. A kind
// whose CRD is not installed has no objects; it is looked for again until it is there,
// so that any subset of the CRDs may be installed, and later ones are picked up.
package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

// Options says what to read.
type Options struct {
	Config *rest.Config
	// Namespaces limits what is read of namespaced kinds; empty reads all.
	Namespaces []string
	Logger     *zap.Logger
	// CRDPoll is how often a kind that is not there is looked for; 0 means 5 s.
	CRDPoll time.Duration
}

// Source is a source.Source.
type Source struct {
	opt    Options
	scheme *runtime.Scheme
}

// New returns a source. Nothing is asked before Run.
func New(o Options) *Source {
	if o.CRDPoll == 0 {
		o.CRDPoll = 5 * time.Second
	}
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

// RESTClient returns a client for one group and version of the scheme's kinds.
func RESTClient(config *rest.Config, scheme *runtime.Scheme, gv schema.GroupVersion) (*rest.RESTClient, error) {
	c := rest.CopyConfig(config)
	c.GroupVersion, c.APIPath = &gv, "/apis"
	if gv.Group == "" {
		c.APIPath = "/api"
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
	for _, kind := range source.Kinds {
		client, err := RESTClient(s.opt.Config, s.scheme, kind.GVK.GroupVersion())
		if err != nil {
			return fmt.Errorf("client for %s: %w", kind.GVK.GroupVersion(), err)
		}
		for _, namespace := range s.scopes(kind) {
			store := feed.store(kind, namespace)
			go s.follow(ctx, client, kind, namespace, store)
		}
	}
	return feed.run(ctx, batches)
}

// scopes returns the namespaces in which a kind is listed; "" is all of them.
func (s *Source) scopes(kind source.KindInfo) []string {
	if !kind.Namespaced || len(s.opt.Namespaces) == 0 {
		return []string{metav1.NamespaceAll}
	}
	return s.opt.Namespaces
}

// follow lists and watches one kind in one scope until ctx ends.
func (s *Source) follow(ctx context.Context, client *rest.RESTClient, kind source.KindInfo, namespace string, store *store) {
	log := s.opt.Logger.With(zap.String("kind", string(kind.Kind)))
	if !s.await(ctx, client, kind, store, log) {
		return
	}
	selector := fields.Everything()
	if kind.Kind == source.KindSecret {
		// The only Secrets that a Gateway may name: others are never read.
		selector = fields.OneTermEqualSelector("type", "kubernetes.io/tls")
	}
	lw := cache.NewListWatchFromClient(client, kind.Resource, namespace, selector)
	r := cache.NewReflectorWithOptions(lw, kind.New(), store, cache.ReflectorOptions{Name: string(kind.Kind)})
	r.RunWithContext(ctx) // lists and watches again, with back-off, after every failure
}

// await waits until the API server serves the kind. Meanwhile the kind counts as read:
// it has no objects. It reports false if ctx ended.
func (s *Source) await(ctx context.Context, client *rest.RESTClient, kind source.KindInfo, store *store, log *zap.Logger) bool {
	tick := time.NewTicker(s.opt.CRDPoll)
	defer tick.Stop()
	for first := true; ; first = false {
		err := served(ctx, client, kind)
		switch {
		case err == nil:
			return true
		case apierrors.IsNotFound(err) && first:
			log.Warn("the API server does not know this kind; it is read as soon as its CRD is installed",
				zap.String("apiVersion", kind.GVK.GroupVersion().String()))
			store.absent()
		case !apierrors.IsNotFound(err):
			log.Warn("the API server cannot be asked what it serves", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// served returns nil if the API server serves the kind in its version.
func served(ctx context.Context, client *rest.RESTClient, kind source.KindInfo) error {
	var list metav1.APIResourceList
	b, err := client.Get().AbsPath(client.Get().URL().Path).SetHeader("Accept", "application/json").Do(ctx).Raw()
	if err != nil {
		return err
	}
	if err := runtime.DecodeInto(clientscheme.Codecs.UniversalDecoder(), b, &list); err != nil {
		return fmt.Errorf("what is served in %s: %w", kind.GVK.GroupVersion(), err)
	}
	for _, r := range list.APIResources {
		if r.Name == kind.Resource {
			return nil
		}
	}
	return apierrors.NewNotFound(schema.GroupResource{Group: kind.GVK.Group, Resource: kind.Resource}, "")
}

var errNotAnObject = errors.New("the API server sent something that is not an object of this kind")
