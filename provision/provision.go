// Package provision runs Envoys in a Kubernetes cluster: for each Gateway of ours that is
// accepted and not marked unmanaged a Deployment (Envoy, and `signalbox extproc` beside
// it), and what belongs to it.
//
//	render.go     Gateway → objects: pure
//	provision.go  which Gateway is worked on when, by the leader only
//	reconcile.go  one Gateway: its certificate, server-side apply, removal
//	observe.go    what there is, so that what others change is put right
//	drain.go      how Envoy ends without losing a request
//
// What a Gateway asks for is in provision/infrastructure, certificates in provision/pki.
// Everything belongs to the Gateway by an owner reference, so that it goes with it.
package provision

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"signalbox.dev/provision/pki"
	"signalbox.dev/source"
	"signalbox.dev/translator"
)

// Options of a Provisioner.
type Options struct {
	Config *rest.Config
	// Namespaces are those whose Gateways are provided for; empty: all.
	Namespaces []string
	Settings   Settings
	// Authority returns the authority that signs now; nil while it is not known.
	Authority func() *pki.Authority
	// Report is told what came of a Gateway, when that changes.
	Report     func(translator.Report)
	Now        func() time.Time
	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

// Provisioner makes true what the translator wants for Gateways. It writes only while it
// leads, and one Gateway at most in one worker at a time.
type Provisioner struct {
	opt      Options
	log      *zap.Logger
	objects  dynamic.Interface
	metadata metadata.Interface
	core     kubernetes.Interface
	writes   *prometheus.CounterVec
	leads    atomic.Bool
	turn     chan struct{} // has a token when leads has changed
	known    chan struct{} // closed at the first Provide

	mu     sync.Mutex
	wanted map[types.NamespacedName]translator.Infrastructure
	queue  workqueue.TypedRateLimitingInterface[types.NamespacedName] // of the leader's term, else nil
	said   map[types.NamespacedName]string                            // the last report, if it was of a failure
}

const (
	workers = 4
	// lookAgain is how often all is looked at without a reason, for certificates that
	// have aged.
	lookAgain = 10 * time.Minute
)

// New returns a Provisioner; Run does the work.
func New(o Options) (*Provisioner, error) {
	p := &Provisioner{
		opt: o, log: o.Logger, turn: make(chan struct{}, 1), known: make(chan struct{}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_provision_writes_total",
			Help: "Writes of what Gateways need in the cluster, by what came of them."}, []string{"kind", "result"}),
		wanted: map[types.NamespacedName]translator.Infrastructure{}, said: map[types.NamespacedName]string{},
	}
	var err error
	if p.objects, err = dynamic.NewForConfig(o.Config); err != nil {
		return nil, fmt.Errorf("client of provisioning: %w", err)
	}
	if p.metadata, err = metadata.NewForConfig(o.Config); err != nil {
		return nil, fmt.Errorf("client of provisioning: %w", err)
	}
	if p.core, err = kubernetes.NewForConfig(o.Config); err != nil {
		return nil, fmt.Errorf("client of provisioning: %w", err)
	}
	o.Registerer.MustRegister(p.writes)
	return p, nil
}

// Provide takes what Gateways need from now on. It returns at once. Before the first
// call, which says that the sources have been read, nothing is done: what nobody wants
// would be removed.
func (p *Provisioner) Provide(changes []translator.Infrastructure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.known:
	default:
		close(p.known)
	}
	for _, c := range changes {
		name := types.NamespacedName{Namespace: c.Ref.Namespace, Name: c.Ref.Name}
		if c.Wanted == nil && !c.Kept {
			delete(p.wanted, name)
		} else {
			p.wanted[name] = c
		}
		if p.queue != nil {
			p.queue.Add(name)
		}
	}
}

// Lead says whether this replica is the leader.
func (p *Provisioner) Lead(leads bool) {
	p.leads.Store(leads)
	select {
	case p.turn <- struct{}{}:
	default:
	}
}

// Again looks at every Gateway: the authority has changed.
func (p *Provisioner) Again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue == nil {
		return
	}
	for name := range p.wanted {
		p.queue.Add(name)
	}
}

// Run works until ctx ends.
func (p *Provisioner) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.turn:
		}
		if !p.leads.Load() {
			continue
		}
		term, end := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); p.term(term) }()
		for p.leads.Load() && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-p.turn:
			}
		}
		end()
		<-done
	}
}

// term works as the leader until ctx ends.
func (p *Provisioner) term(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-p.known:
	}
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](100*time.Millisecond, 30*time.Second))
	there, err := p.observe(ctx, queue.Add)
	if err != nil {
		return // ctx has ended
	}
	p.mu.Lock()
	p.queue = queue
	for name := range p.wanted {
		queue.Add(name)
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				name, shutdown := queue.Get()
				if shutdown {
					return
				}
				p.handle(ctx, queue, there, name)
				queue.Done(name)
			}
		})
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			p.Again()
		}
	}
	p.mu.Lock()
	p.queue = nil
	p.mu.Unlock()
	queue.ShutDown()
	wg.Wait()
	there.wait()
}

// handle brings one Gateway's objects up to date, or puts it back for later.
func (p *Provisioner) handle(ctx context.Context, queue workqueue.TypedRateLimitingInterface[types.NamespacedName], there *observed, name types.NamespacedName) {
	p.mu.Lock()
	wanted, ok := p.wanted[name]
	p.mu.Unlock()
	var err error
	switch {
	case ctx.Err() != nil:
		return
	case !ok:
		err = p.remove(ctx, there, name)
	case wanted.Wanted != nil:
		err = p.reconcile(ctx, there, *wanted.Wanted)
	}
	if ctx.Err() != nil {
		return // not the leader any more: what failed by that says nothing
	}
	if err != nil {
		p.log.Warn("not provided", zap.Stringer("gateway", name), zap.Error(err))
		queue.AddRateLimited(name)
	} else {
		queue.Forget(name)
	}
	p.report(name, err)
}

// report tells what came of a Gateway, if that is news.
func (p *Provisioner) report(name types.NamespacedName, err error) {
	words := ""
	if err != nil {
		words = err.Error()
	}
	p.mu.Lock()
	before := p.said[name]
	if p.said[name] = words; words == "" {
		delete(p.said, name)
	}
	p.mu.Unlock()
	if before != words {
		p.opt.Report(translator.Report{Gateway: source.Ref{Kind: source.KindGateway, Namespace: name.Namespace, Name: name.Name}, Words: words})
	}
}
