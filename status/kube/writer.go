// Package kube writes statuses to a Kubernetes API server.
//
// Of each object the newest status is kept for ever, so that a replica that becomes
// the leader can write all of them. An object is written by at most one worker at a
// time, only when its status in the API server differs, and only by the leader. What
// other controllers wrote there stays as it is, in its order.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"signalbox.dev/source"
	sourcekube "signalbox.dev/source/kube"
	"signalbox.dev/translator"
)

// Options of a Writer.
type Options struct {
	Config     *rest.Config
	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

// Writer is a status.Writer. It writes only between Lead(true) and Lead(false).
type Writer struct {
	log     *zap.Logger
	clients map[source.Kind]*rest.RESTClient
	kinds   map[source.Kind]source.KindInfo
	queue   workqueue.TypedRateLimitingInterface[source.Ref]
	leads   atomic.Bool
	now     func() time.Time
	writes  *prometheus.CounterVec

	mu     sync.Mutex
	wanted map[source.Ref]translator.Status
	pace   map[source.Ref]pace
}

// pace is how fast one object may be written: a Gateway that a thousand routes attach
// to is written a few times, not a thousand.
type pace struct {
	next time.Time     // not before
	gap  time.Duration // grows while writes keep coming
}

const (
	firstGap = 100 * time.Millisecond
	maxGap   = 2 * time.Second
	workers  = 8
)

// New returns a Writer; Run does the work.
func New(o Options) (*Writer, error) {
	w := &Writer{
		log: o.Logger, now: time.Now,
		clients: map[source.Kind]*rest.RESTClient{}, kinds: map[source.Kind]source.KindInfo{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[source.Ref](50*time.Millisecond, 30*time.Second)),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_status_writes_total",
			Help: "Writes of statuses, by what came of them."}, []string{"kind", "result"}),
		wanted: map[source.Ref]translator.Status{}, pace: map[source.Ref]pace{},
	}
	o.Registerer.MustRegister(w.writes)
	scheme := sourcekube.NewScheme()
	for _, k := range source.Kinds {
		c, err := sourcekube.RESTClient(o.Config, scheme, k.GVK.GroupVersion())
		if err != nil {
			return nil, fmt.Errorf("client for %s: %w", k.GVK.GroupVersion(), err)
		}
		w.clients[k.Kind], w.kinds[k.Kind] = c, k
	}
	return w, nil
}

// Write implements status.Writer.
func (w *Writer) Write(statuses []translator.Status) {
	w.mu.Lock()
	for _, s := range statuses {
		w.wanted[s.Ref] = s
	}
	w.mu.Unlock()
	if w.leads.Load() {
		for _, s := range statuses {
			w.queue.Add(s.Ref)
		}
	}
}

// Lead says whether this replica is the leader. A new leader looks at every object.
func (w *Writer) Lead(leads bool) {
	if w.leads.Swap(leads) == leads || !leads {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for ref := range w.wanted {
		w.queue.Add(ref)
	}
}

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				ref, shutdown := w.queue.Get()
				if shutdown {
					return
				}
				w.handle(ctx, ref)
				w.queue.Done(ref)
			}
		})
	}
	<-ctx.Done()
	w.queue.ShutDown()
	wg.Wait()
	return nil
}

// handle brings one object's status up to date, or puts the object back for later.
func (w *Writer) handle(ctx context.Context, ref source.Ref) {
	if !w.leads.Load() || ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	status, pace := w.wanted[ref], w.pace[ref]
	w.mu.Unlock()
	if wait := pace.next.Sub(w.now()); wait > 0 {
		w.queue.AddAfter(ref, wait)
		return
	}
	wrote, err := w.write(ctx, ref, status)
	result := "same"
	switch {
	case apierrors.IsConflict(err):
		result = "conflict"
		w.queue.AddRateLimited(ref)
	case err != nil:
		result = "error"
		w.log.Warn("status not written", zap.Stringer("object", ref), zap.Error(err))
		w.queue.AddRateLimited(ref)
	default:
		w.queue.Forget(ref)
		if wrote {
			result = "written"
			w.slow(ref, pace)
		}
		w.forget(ref, status)
	}
	w.writes.WithLabelValues(string(ref.Kind), result).Inc()
}

// slow makes the next write of an object wait, the longer the closer writes follow
// each other.
func (w *Writer) slow(ref source.Ref, p pace) {
	now := w.now()
	if now.Sub(p.next) > maxGap {
		p.gap = firstGap
	} else {
		p.gap = min(2*max(p.gap, firstGap), maxGap)
	}
	p.next = now.Add(p.gap)
	w.mu.Lock()
	w.pace[ref] = p
	w.mu.Unlock()
}

// forget drops an object of which there is nothing more to say, unless that has changed.
func (w *Writer) forget(ref source.Ref, said translator.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := w.wanted[ref]; said.Empty() && now.Empty() {
		delete(w.wanted, ref)
		delete(w.pace, ref)
	}
}

// write reads the object, merges, and patches its status if it differs. The resource
// version in the patch makes a conflict of a write that came between.
func (w *Writer) write(ctx context.Context, ref source.Ref, status translator.Status) (bool, error) {
	kind := w.kinds[ref.Kind]
	object := kind.New()
	request := w.clients[ref.Kind].Get().Resource(kind.Resource).Name(ref.Name)
	if kind.Namespaced {
		request.Namespace(ref.Namespace)
	}
	switch err := request.Do(ctx).Into(object); {
	case apierrors.IsNotFound(err):
		return false, nil // it is gone: the source will say so
	case err != nil:
		return false, err
	}
	merged, changed, err := merge(object, status, metav1.NewTime(w.now()))
	if err != nil || !changed {
		return false, err
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": object.GetResourceVersion()}, "status": merged})
	if err != nil {
		return false, fmt.Errorf("status of %s: %w", ref, err)
	}
	put := w.clients[ref.Kind].Patch(types.MergePatchType).Resource(kind.Resource).Name(ref.Name).SubResource("status").Body(patch)
	if kind.Namespaced {
		put.Namespace(ref.Namespace)
	}
	err = put.Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

var errKind = errors.New("objects of this kind have no status of ours")
