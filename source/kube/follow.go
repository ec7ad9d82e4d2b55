package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"signalbox.dev/source"
)

// follower lists and watches one kind in one scope.
type follower struct {
	client  *rest.RESTClient
	kind    source.KindInfo
	scope   scope
	store   *store
	recheck time.Duration
	log     *zap.Logger

	reflector *cache.Reflector
	absent    bool // the API server does not serve the kind; of run's goroutine
}

func newFollower(o Options, client *rest.RESTClient, kind source.KindInfo, scope scope, feed *feed) *follower {
	f := &follower{
		client: client, kind: kind, scope: scope, store: feed.store(kind, o.Observe), recheck: o.Recheck,
		log: o.Logger.With(zap.String("kind", string(kind.Kind)), zap.String("namespace", scope.namespace)),
	}
	backoff := retries
	f.reflector = cache.NewReflectorWithOptions(f, kind.New(), f.store, cache.ReflectorOptions{Name: string(kind.Kind), Backoff: &backoff})
	return f
}

// retries are how long to wait after failures. client-go's own go up to a minute; here an
// API server that is back must be noticed within seconds, and a dozen requests every few
// seconds are no load.
var retries = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 2 * time.Second}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	backoff := retries
	delay := backoff.DelayWithReset(clock.RealClock{}, 30*time.Second)
	for {
		pause := delay
		switch err := f.served(ctx); {
		case ctx.Err() != nil:
			return
		case apierrors.IsNotFound(err):
			f.gone()
			pause = f.later
		case err != nil:
			f.came(ctx, err)
		default:
			if f.absent {
				f.absent = false
				f.log.Info("the API server serves this kind now")
			}
			// It returns when a list fails or a watch cannot be taken up again. A failure of
			// a request has been noted by then; of the rest, only a doubtful list matters.
			if err = f.reflector.ListAndWatchWithContext(ctx); f.store.doubts() {
				f.log.Warn("objects are kept although they are not listed any more", zap.Error(err))
				pause = f.later
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause()):
		}
	}
}

func (f *follower) later() time.Duration { return f.recheck }

// gone notes that the API server does not serve the kind: there are no objects of it, and
// that is no mistake.
func (f *follower) gone() {
	if !f.absent {
		f.absent = true
		f.log.Warn("the API server does not serve this kind; it is read as soon as its CRD is installed",
			zap.String("apiVersion", f.kind.GVK.GroupVersion().String()))
	}
	f.store.trouble(nil)
	if err := f.store.Replace(nil, ""); err != nil {
		f.log.Warn("objects are kept although their kind is gone", zap.Error(err))
	}
}

// served returns nil if the API server serves the kind in its version, and a NotFound
// error if it does not.
func (f *follower) served(ctx context.Context) error {
	gv := f.kind.GVK.GroupVersion()
	path := "/apis/" + gv.String()
	if gv.Group == "" {
		path = "/api/" + gv.Version
	}
	b, err := f.client.Get().AbsPath(path).SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Raw()
	if err != nil {
		return err
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("what is served in %s: %w", gv, err)
	}
	for _, r := range list.APIResources {
		if r.Name == f.kind.Resource {
			return nil
		}
	}
	return apierrors.NewNotFound(schema.GroupResource{Group: gv.Group, Resource: f.kind.Resource}, "")
}

// ListWithContext implements cache.ListerWatcherWithContext. Objects are stripped page by
// page, so that a large cluster's are never all in memory as they came.
func (f *follower) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	if o.ResourceVersion == "0" {
		// A reflector's first list takes what an API server happens to have cached. From an
		// old cache, Envoys that outlived this process would be taken back in time.
		o.ResourceVersion = ""
	}
	list, err := f.request(o).Do(ctx).Get()
	if err == nil {
		err = meta.EachListItem(list, f.store.strip)
	}
	f.came(ctx, err)
	return list, err
}

// WatchWithContext implements cache.ListerWatcherWithContext.
func (f *follower) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	w, err := f.request(o).Watch(ctx)
	f.came(ctx, err)
	return w, err
}

// List and Watch are those of cache.ListerWatcher, which a reflector takes but does not
// call where there are the ones above.

// List implements cache.ListerWatcher.
func (f *follower) List(o metav1.ListOptions) (runtime.Object, error) {
	return f.ListWithContext(context.Background(), o)
}

// Watch implements cache.ListerWatcher.
func (f *follower) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return f.WatchWithContext(context.Background(), o)
}

// IsWatchListSemanticsUnSupported tells the reflector to list and watch, the verbs that
// every API server has and a Role grants, instead of streaming lists where it can.
func (f *follower) IsWatchListSemanticsUnSupported() bool { return true }

func (f *follower) request(o metav1.ListOptions) *rest.Request {
	o.FieldSelector = f.scope.selector.String()
	return f.client.Get().NamespaceIfScoped(f.scope.namespace, f.scope.namespace != "").
		Resource(f.kind.Resource).VersionedParams(&o, metav1.ParameterCodec)
}

// came notes what came of a request. That the reflector's place in the history is too old
// is no trouble: it lists again.
func (f *follower) came(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsTooManyRequests(err) {
		return
	}
	var problem *source.Problem
	if err != nil {
		problem = f.problem(err)
	}
	switch changed := f.store.trouble(problem); {
	case changed && problem != nil:
		f.log.Error("cannot be read; what was last read stays in force", zap.String("problem", problem.Message))
	case changed:
		f.log.Info("is read again")
	}
}

func (f *follower) problem(err error) *source.Problem {
	resource := f.kind.Resource
	if g := f.kind.GVK.Group; g != "" {
		resource += "." + g
	}
	message := err.Error()
	var request *url.Error
	switch {
	case apierrors.IsForbidden(err):
		message += ": grant signalbox list and watch on " + resource
	case errors.As(err, &request): // without the URL, which is another one each time
		message = "the API server cannot be reached: " + request.Err.Error()
	}
	if f.scope.namespace != "" {
		resource += " in namespace " + f.scope.namespace
	}
	return &source.Problem{Where: resource, Message: message}
}
