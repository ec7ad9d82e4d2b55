// Package kube writes statuses to a Kubernetes API server.
//
// Of each object the newest status is kept, so that a replica that becomes the leader can
// write all of them. An object is written by at most one worker at a time, only when its
// status in the API server differs, and only by the leader. What other controllers wrote
// there stays as it is, in its order; what they took away of ours is written again.
//
//	writer.go  Writer: what is wanted, who writes it, when again
//	merge.go   wanted and found status → what has to be written
//	pace.go    how often one object may be written
package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

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
	writes  *prometheus.CounterVec

	mu     sync.Mutex
	wanted map[source.Ref]translator.Status
	paces  map[source.Ref]pace
}

const (
	workers = 8
	// patience is how long one request may take: an API server that hangs must not hold
	// up the workers when it is back.
	patience = 10 * time.Second
	// Failed writes are tried again after these times, doubling. API servers come back,
	// and then statuses must not be late.
	firstRetry, lastRetry = 50 * time.Millisecond, 5 * time.Second
)

// New returns a Writer; Run does the work.
func New(o Options) (*Writer, error) {
	config := rest.CopyConfig(o.Config)
	config.QPS = -1 // the workers are the limit: each has one request at a time
	w := &Writer{
		log: o.Logger, clients: map[source.Kind]*rest.RESTClient{}, kinds: map[source.Kind]source.KindInfo{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[source.Ref](firstRetry, lastRetry)),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_status_writes_total",
			Help: "Statuses that were to be written to the API server, by what came of it: written, same, conflict, error."}, []string{"kind", "result"}),
		wanted: map[source.Ref]translator.Status{}, paces: map[source.Ref]pace{},
	}
	o.Registerer.MustRegister(w.writes)
	scheme := sourcekube.NewScheme()
	for _, k := range source.Kinds {
		if statusOf(k.New()) == nil {
			continue
		}
		c, err := sourcekube.RESTClient(config, scheme, k.GVK.GroupVersion())
		if err != nil {
			return nil, fmt.Errorf("client for %s: %w", k.GVK.GroupVersion(), err)
		}
		w.clients[k.Kind], w.kinds[k.Kind] = c, k
	}
	return w, nil
}

// statusOf returns the status of an object of a kind that signalbox writes, else nil.
func statusOf(o source.Object) any {
	switch o := o.(type) {
	case *gatewayv1.GatewayClass:
		return &o.Status
	case *gatewayv1.Gateway:
		return &o.Status
	case *gatewayv1.HTTPRoute:
		return &o.Status
	case *inferencev1.InferencePool:
		return &o.Status
	case *gatewayv1.BackendTLSPolicy:
		return &o.Status
	}
	return nil
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

// Observe takes an object as the API server has it now (source/kube's Options.Observe). If
// its status is not the one that was written, because somebody has overwritten it, it is
// written again.
func (w *Writer) Observe(o source.Object) {
	status := statusOf(o)
	if status == nil || !w.leads.Load() {
		return
	}
	ref := source.RefOf(o)
	w.mu.Lock()
	want, known := w.wanted[ref]
	w.mu.Unlock()
	if !known || o.GetGeneration() != want.Generation {
		return // what is to be said of it is on its way
	}
	have, err := asMap(status)
	if err != nil {
		w.log.Error("status not understood", zap.Stringer("object", ref), zap.Error(err))
		return
	}
	if fields, err := merge(want, have, time.Now()); err == nil && len(fields) > 0 {
		w.queue.Add(ref)
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
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
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
	group.Wait()
	return nil
}

// handle brings one object's status up to date, or puts the object back for later.
func (w *Writer) handle(ctx context.Context, ref source.Ref) {
	w.mu.Lock()
	want, known := w.wanted[ref]
	wait := time.Until(w.paces[ref].next)
	w.mu.Unlock()
	switch {
	case !known || !w.leads.Load() || ctx.Err() != nil:
		return
	case wait > 0:
		w.queue.AddAfter(ref, wait)
		return
	}
	result, err := w.write(ctx, ref, want)
	w.writes.WithLabelValues(string(ref.Kind), result).Inc()
	switch {
	case ctx.Err() != nil:
	case err == nil:
		w.queue.Forget(ref)
		w.settle(ref, want, result == written)
	case apierrors.IsInvalid(err): // it is no better the next time
		w.queue.Forget(ref)
		w.log.Error("the API server refuses a status", zap.Stringer("object", ref), zap.Error(err))
	default:
		if result != conflict && w.queue.NumRequeues(ref) == 0 {
			w.log.Warn("status not written; it is tried again", zap.Stringer("object", ref), zap.Error(err))
		}
		w.queue.AddRateLimited(ref)
	}
}

// settle notes what follows from an object's status being as it should: a pause after a
// write, and nothing to remember of an object of which there is nothing more to say.
func (w *Writer) settle(ref source.Ref, said translator.Status, wrote bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if wrote {
		w.paces[ref] = w.paces[ref].after(time.Now())
	}
	if said.Empty() && w.wanted[ref].Empty() {
		delete(w.wanted, ref)
		delete(w.paces, ref)
	}
}

// The results of a write.
const (
	written  = "written"
	unneeded = "same"
	conflict = "conflict"
	failed   = "error"
)

// write reads the object, merges, and patches the fields of its status that differ. The
// resource version in the patch makes a conflict of a write that came between.
func (w *Writer) write(ctx context.Context, ref source.Ref, want translator.Status) (result string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	raw, err := w.of(w.clients[ref.Kind].Get(), ref).Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return unneeded, nil // the source will say so
	} else if err != nil {
		return failed, err
	}
	var have struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Status   map[string]any    `json:"status"`
	}
	if err := utiljson.Unmarshal(raw, &have); err != nil {
		return failed, fmt.Errorf("what the API server sent: %w", err)
	}
	if want.Generation != 0 && have.Metadata.Generation != want.Generation {
		return unneeded, nil // it has been changed, or made anew: what is to be said of that is on its way
	}
	fields, err := merge(want, have.Status, time.Now())
	if err != nil {
		return failed, err
	} else if len(fields) == 0 {
		return unneeded, nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": have.Metadata.ResourceVersion}, "status": fields})
	if err != nil {
		return failed, err
	}
	err = w.of(w.clients[ref.Kind].Patch(types.MergePatchType), ref).SubResource("status").Body(patch).Do(ctx).Error()
	switch {
	case err == nil:
		return written, nil
	case apierrors.IsNotFound(err):
		return unneeded, nil
	case apierrors.IsConflict(err):
		return conflict, err
	}
	return failed, err
}

// of makes a request one for an object.
func (w *Writer) of(r *rest.Request, ref source.Ref) *rest.Request {
	return r.NamespaceIfScoped(ref.Namespace, ref.Namespace != "").Resource(w.kinds[ref.Kind].Resource).Name(ref.Name)
}
