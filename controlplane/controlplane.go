// Package controlplane runs the loop that carries changes from sources to Envoys and
// back to statuses.
//
// One goroutine, Run's, owns the translator and everything else that changes. What
// can happen in it: a source sends a batch; an Envoy has answered; the context ends.
// Nothing else wakes it, and nothing in it waits for an Envoy, a file or a server.
package controlplane

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"signalbox.dev/source"
	"signalbox.dev/status"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// Publisher takes what Envoys should have. Publish returns at once (xds/server).
type Publisher interface {
	Publish(changes []xds.Change)
}

// Provisioner makes true what Gateways need in a cluster. Provide returns at once
// (package provision). The first call, with or without changes, says that the world is
// known.
type Provisioner interface {
	Provide(changes []translator.Infrastructure)
}

// Config is what a control plane is made of.
type Config struct {
	Sources     []source.Source
	Translation translator.Options
	Publisher   Publisher
	Status      status.Writer
	Provisioner Provisioner // nil without Translation.Provision
	// AckGrace is how long what an Envoy has taken counts after it has disconnected.
	AckGrace   time.Duration
	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

// ControlPlane is the loop and what others may ask of it.
type ControlPlane struct {
	cfg     Config
	metrics *metrics
	book    *ackBook

	// words wait for the loop; wake holds one token while there are any.
	wordsMu sync.Mutex
	words   words
	wake    chan struct{}

	// Read by others, written by the loop.
	stateMu  sync.RWMutex
	ready    bool
	problems map[int][]source.Problem // by source
}

// words are what others than sources say.
type words struct {
	acks    []xds.Ack
	reports []translator.Report
	bundle  *string
}

// New returns a control plane that does nothing until Run.
func New(cfg Config) *ControlPlane {
	c := &ControlPlane{cfg: cfg, metrics: newMetrics(cfg.Registerer), wake: make(chan struct{}, 1), problems: map[int][]source.Problem{}}
	c.book = newAckBook(cfg.AckGrace, func(a xds.Ack) { c.hear(func(w *words) { w.acks = append(w.acks, a) }) })
	return c
}

// Ack takes an Envoy's answer. It never blocks.
func (c *ControlPlane) Ack(a xds.Ack) { c.book.take(a) }

// Reported takes what came of providing for a Gateway. It never blocks.
func (c *ControlPlane) Reported(r translator.Report) {
	c.hear(func(w *words) { w.reports = append(w.reports, r) })
}

// Installed takes the bundle version of Gateway API's CRDs. It never blocks.
func (c *ControlPlane) Installed(bundle string) {
	c.hear(func(w *words) { w.bundle = &bundle })
}

func (c *ControlPlane) hear(note func(*words)) {
	c.wordsMu.Lock()
	note(&c.words)
	c.wordsMu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default: // the loop has been told already
	}
}

// Ready says whether every source has been read and the first translation is served.
func (c *ControlPlane) Ready() bool {
	c.stateMu.RLock()
	defer c.stateMu.RUnlock()
	return c.ready
}

// Problems returns what the sources cannot read now, sorted by place.
func (c *ControlPlane) Problems() []source.Problem {
	c.stateMu.RLock()
	defer c.stateMu.RUnlock()
	var out []source.Problem
	for _, p := range c.problems {
		out = append(out, p...)
	}
	slices.SortFunc(out, func(a, b source.Problem) int { return strings.Compare(a.Where+a.Message, b.Where+b.Message) })
	return out
}

// delivery is a batch and who sent it.
type delivery struct {
	from  int
	batch source.Batch
}

// Run carries changes until ctx ends, or a source says that it can never work.
func (c *ControlPlane) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	deliveries := make(chan delivery)
	for i, s := range c.cfg.Sources {
		batches := make(chan source.Batch)
		group.Go(func() error {
			defer close(batches)
			if err := s.Run(ctx, batches); err != nil {
				return fmt.Errorf("source: %w", err)
			}
			return nil
		})
		group.Go(func() error {
			for b := range batches {
				select {
				case deliveries <- delivery{i, b}:
				case <-ctx.Done(): // keep reading until the source has closed
				}
			}
			return nil
		})
	}
	group.Go(func() error { return c.loop(ctx, deliveries) })
	return group.Wait()
}

// loop owns the translator. Until every source is synced it only collects: an Envoy
// must never be served half a world (facts: Contour #1280).
func (c *ControlPlane) loop(ctx context.Context, deliveries <-chan delivery) error {
	tr := translator.New(c.cfg.Translation)
	unsynced := map[int]bool{}
	for i := range c.cfg.Sources {
		unsynced[i] = true
	}
	var changes []source.Change
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-deliveries:
			changes = c.take(d, unsynced, changes)
			for more := true; more; { // what has arrived meanwhile belongs to this round
				select {
				case d := <-deliveries:
					changes = c.take(d, unsynced, changes)
				default:
					more = false
				}
			}
		case <-c.wake:
		}
		if len(unsynced) > 0 {
			continue
		}
		c.translate(tr, changes)
		changes = nil
	}
}

// take adds a delivery to the changes that wait, and notes what it says of its source.
func (c *ControlPlane) take(d delivery, unsynced map[int]bool, changes []source.Change) []source.Change {
	if d.batch.ProblemsKnown {
		c.stateMu.Lock()
		c.problems[d.from] = d.batch.Problems
		c.stateMu.Unlock()
		c.metrics.problems.Set(float64(len(c.Problems())))
	}
	if d.batch.Synced {
		delete(unsynced, d.from)
	}
	return append(changes, d.batch.Changes...)
}

// translate brings the translator up to date and hands on what changed.
func (c *ControlPlane) translate(tr *translator.Translator, changes []source.Change) {
	c.wordsMu.Lock()
	heard := c.words
	c.words = words{}
	c.wordsMu.Unlock()

	start := time.Now()
	tr.Reported(heard.reports)
	if heard.bundle != nil {
		tr.Installed(*heard.bundle)
	}
	out := tr.Apply(changes, heard.acks)
	c.metrics.translate.Observe(time.Since(start).Seconds())
	c.metrics.count(changes)

	first := !c.Ready()
	if first || len(out.Resources) > 0 {
		c.cfg.Publisher.Publish(out.Resources) // also when empty: it says that the world is known now
	}
	if len(out.Statuses) > 0 {
		c.cfg.Status.Write(out.Statuses)
	}
	if c.cfg.Provisioner != nil && (first || len(out.Infrastructure) > 0) {
		c.cfg.Provisioner.Provide(out.Infrastructure)
	}
	if first {
		c.stateMu.Lock()
		c.ready = true
		c.stateMu.Unlock()
	}
	if len(changes) > 0 || len(out.Resources) > 0 {
		c.cfg.Logger.Info("translated", zap.Int("changes", len(changes)), zap.Int("resources", len(out.Resources)),
			zap.Int("statuses", len(out.Statuses)), zap.Duration("took", time.Since(start)))
	}
}
