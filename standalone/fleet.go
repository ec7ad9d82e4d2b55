package standalone

import (
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"signalbox.dev/source"
	"signalbox.dev/translator"
)

type fleetConfig struct {
	dir    string // for bootstraps and sockets
	binary string
	xds    string
	drain  time.Duration
	output io.Writer
	log    *zap.Logger
}

// fleet keeps one Envoy running for each Gateway of ours. It is a status.Writer: a
// Gateway is ours as long as it has a status.
type fleet struct {
	cfg  fleetConfig
	news chan struct{}

	mu     sync.Mutex
	wanted map[string]bool // by "namespace/name"
}

func newFleet(cfg fleetConfig) *fleet {
	return &fleet{cfg: cfg, news: make(chan struct{}, 1), wanted: map[string]bool{}}
}

// Write implements status.Writer.
func (f *fleet) Write(statuses []translator.Status) {
	f.mu.Lock()
	for _, s := range statuses {
		if s.Ref.Kind == source.KindGateway {
			f.wanted[s.Ref.Namespace+"/"+s.Ref.Name] = s.Gateway != nil
		}
	}
	f.mu.Unlock()
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// run starts and stops Envoys until ctx ends, then returns when all have drained.
// It alone owns the children.
func (f *fleet) run(ctx context.Context) {
	type child struct{ cancel context.CancelFunc }
	children := map[string]child{}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.news:
		}
		f.mu.Lock()
		for group, wanted := range f.wanted {
			c, runs := children[group]
			switch {
			case wanted && !runs:
				childCtx, cancel := context.WithCancel(ctx)
				children[group] = child{cancel}
				wg.Go(func() { f.keep(childCtx, group) })
			case !wanted && runs:
				c.cancel()
				delete(children, group)
				delete(f.wanted, group)
			}
		}
		f.mu.Unlock()
	}
}

// keep runs the Envoy of one Gateway, again and again, until ctx ends.
func (f *fleet) keep(ctx context.Context, group string) {
	log := f.cfg.log.With(zap.String("gateway", group))
	name := strings.ReplaceAll(group, "/", "_") // an underscore is in no Kubernetes name
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		started := time.Now()
		err := f.once(ctx, group, name, log)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > time.Minute {
			pause = 100 * time.Millisecond
		}
		log.Error("Envoy died; starting it again", zap.Error(err), zap.Duration("after", pause))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
