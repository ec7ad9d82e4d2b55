package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"go.uber.org/zap"

	"signalbox.dev/demo/modelserver"
	"signalbox.dev/demo/picker"
	"signalbox.dev/source"
)

// Supervisor keeps running what the objects ask for.
type Supervisor struct {
	log *zap.Logger

	mu     sync.Mutex
	parts  map[string]*part // by what they are: equal text, equal part
	failed []error
	wg     sync.WaitGroup
}

// part is a model server or a picker that runs.
type part struct {
	cancel    context.CancelFunc
	listeners []net.Listener
	endpoints *picker.Endpoints // a picker's
}

// NewSupervisor returns a supervisor that runs nothing yet.
func NewSupervisor(log *zap.Logger) *Supervisor {
	return &Supervisor{log: log, parts: map[string]*part{}}
}

// Update starts what the objects ask for and does not run yet, and stops what they do
// not ask for any more. When it returns, new parts listen. They live until they are
// stopped or ctx ends. The error tells every declaration that could not be followed;
// the others run, and the next Update tries again.
func (s *Supervisor) Update(ctx context.Context, objects []source.Object) error {
	servers, pickers, problems := Find(objects)
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range problems {
		errs = append(errs, fmt.Errorf("%s: %s", p.Object, p.Message))
	}
	wanted := map[string]bool{}
	for _, m := range servers {
		wanted[m.key()] = true
	}
	for _, p := range pickers {
		wanted[p.key()] = true
	}
	for key, p := range s.parts { // first, since what is new may want the same address
		if !wanted[key] {
			p.stop()
			delete(s.parts, key)
		}
	}
	for _, m := range servers {
		if s.parts[m.key()] == nil {
			errs = append(errs, s.startServer(ctx, m))
		}
	}
	for _, p := range pickers {
		if running := s.parts[p.key()]; running != nil {
			errs = append(errs, running.endpoints.Set(texts(p.Endpoints)))
			continue
		}
		errs = append(errs, s.startPicker(ctx, p))
	}
	return errors.Join(errs...)
}

// Close stops everything and waits for it. The error tells what failed while it ran.
func (s *Supervisor) Close() error {
	s.mu.Lock()
	for key, p := range s.parts {
		p.stop()
		delete(s.parts, key)
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(s.failed...)
}

// key tells parts apart that cannot turn into each other while they run.
func (m ModelServer) key() string {
	return fmt.Sprintf("model server %q %q %v", m.Pod, m.Models, m.Listen)
}

func (p Picker) key() string {
	return fmt.Sprintf("picker %s plaintext=%t %s", p.Pool, p.Plaintext, p.Listen)
}

func (s *Supervisor) startServer(ctx context.Context, m ModelServer) error {
	listeners, err := listen(ctx, m.Object, m.Listen...)
	if err != nil {
		return err
	}
	s.start(ctx, m.key(), &part{listeners: listeners}, func(ctx context.Context) error {
		return modelserver.Serve(ctx, modelserver.Config{Pod: m.Pod, Models: m.Models, Logger: s.log}, listeners...)
	})
	return nil
}

func (s *Supervisor) startPicker(ctx context.Context, p Picker) error {
	endpoints, err := picker.NewEndpoints(texts(p.Endpoints)...)
	if err != nil {
		return err
	}
	// The pool is the name: what a user wants to see is which pool's picker was asked.
	run, err := picker.New(picker.Config{Name: p.Pool, Endpoints: endpoints, Plaintext: p.Plaintext, Logger: s.log})
	if err != nil {
		return err
	}
	listeners, err := listen(ctx, p.Object, p.Listen)
	if err != nil {
		return err
	}
	s.start(ctx, p.key(), &part{listeners: listeners, endpoints: endpoints}, func(ctx context.Context) error {
		return run.Serve(ctx, listeners[0])
	})
	return nil
}

// start runs a part in the background; the lock is held.
func (s *Supervisor) start(ctx context.Context, key string, p *part, run func(context.Context) error) {
	ctx, p.cancel = context.WithCancel(ctx)
	s.parts[key] = p
	s.wg.Go(func() {
		err := run(ctx)
		p.cancel()
		if err == nil {
			return
		}
		s.log.Error("demo part ended", zap.String("part", key), zap.Error(err))
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failed = append(s.failed, err)
		if s.parts[key] == p {
			delete(s.parts, key)
		}
	})
}

// stop ends a part. Its addresses are free when stop returns; answers that run go on
// for a few seconds.
func (p *part) stop() {
	p.cancel()
	for _, l := range p.listeners {
		l.Close()
	}
}

// listen opens all addresses, or none.
func listen(ctx context.Context, object source.Ref, addresses ...netip.AddrPort) (listeners []net.Listener, err error) {
	var lc net.ListenConfig
	for _, a := range addresses {
		l, err := lc.Listen(ctx, "tcp", a.String())
		if err == nil {
			listeners = append(listeners, l)
			continue
		}
		for _, l := range listeners {
			l.Close()
		}
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			err = fmt.Errorf("%w: another program has this port, on this address or on all; stop it, or change the port in the object", err)
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			err = fmt.Errorf("%w: this machine does not answer on this loopback address; on macOS add it with: sudo ifconfig lo0 alias %s", err, a.Addr())
		}
		return nil, fmt.Errorf("%s: %w", object, err)
	}
	return listeners, nil
}

func texts(list []netip.AddrPort) []string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = a.String()
	}
	return out
}
