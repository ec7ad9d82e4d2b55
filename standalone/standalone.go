// Package standalone is signalbox without Kubernetes: the control plane on a directory
// of YAML, the process beside Envoy, one Envoy for each Gateway and, where the YAML
// asks for them, simulated model servers and pickers, all started and stopped together.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"signalbox.dev/controlplane"
	"signalbox.dev/demo"
	"signalbox.dev/extproc"
	"signalbox.dev/source"
	"signalbox.dev/source/dir"
	"signalbox.dev/status"
	"signalbox.dev/translator"
)

// Config says what to run.
type Config struct {
	Paths []string // directories and files of YAML
	Envoy string   // path of the Envoy binary
	// Bind is the address of the Gateways' listeners, Ports maps a listener's port
	// to the one that is bound.
	Bind         string
	Ports        map[int32]int32
	Admin        string        // HOST:PORT of signalbox's admin interface
	PProf        bool          // serve /debug/pprof there
	DrainTimeout time.Duration // how long requests in flight may take at the end
	Stdout       io.Writer     // gets one line per ready listener
	EnvoyOutput  io.Writer     // gets what the Envoys print
	Logger       *zap.Logger
	Registry     *prometheus.Registry
}

// Run runs everything until ctx ends, then drains: first the Envoys, which still need
// the rest for requests in flight, then the rest.
func Run(ctx context.Context, cfg Config) error {
	// Sockets live in a folder that only this user can enter.
	tmp, err := os.MkdirTemp("", "signalbox-")
	if err != nil {
		return fmt.Errorf("folder for sockets: %w", err)
	}
	defer os.RemoveAll(tmp)
	xdsSocket := "unix:" + filepath.Join(tmp, "xds.sock")
	extprocSocket := "unix:" + filepath.Join(tmp, "extproc.sock")

	opt := translator.Options{ExtProc: extprocSocket, BindAddress: cfg.Bind, Ports: cfg.Ports, OneHost: true}
	book := status.NewBook(cfg.Logger.Named("status"), time.Now)
	fleet := newFleet(fleetConfig{dir: tmp, binary: cfg.Envoy, xds: xdsSocket, drain: cfg.DrainTimeout, output: cfg.EnvoyOutput, log: cfg.Logger.Named("envoy")})
	announcer := newAnnouncer(cfg.Stdout, opt)
	demos := demo.NewSupervisor(cfg.Logger.Named("demo"))

	// What the Envoys need lives on its own context, which ends after they have drained.
	backing, stopBacking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBacking()
	group, ctx := errgroup.WithContext(ctx)
	src := observe(dir.New(cfg.Paths, cfg.Logger.Named("source")), announcer.objects, func(objects []source.Object) {
		if err := demos.Update(backing, objects); err != nil {
			cfg.Logger.Error("demo parts", zap.Error(err))
		}
	})
	rest := errgroup.Group{}
	// Whatever of the rest fails ends everything.
	start := func(name string, run func(context.Context) error) {
		failed := make(chan error, 1)
		rest.Go(func() error {
			err := run(backing)
			if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			} else if backing.Err() == nil {
				err = fmt.Errorf("%s ended by itself", name)
			}
			failed <- err
			return err
		})
		group.Go(func() error {
			select {
			case err := <-failed:
				return err
			case <-ctx.Done():
				return nil
			}
		})
	}
	start("extproc", func(ctx context.Context) error {
		return extproc.Run(ctx, extproc.Config{Listen: extprocSocket, Logger: cfg.Logger.Named("extproc"), Registerer: cfg.Registry})
	})
	start("control plane", func(ctx context.Context) error {
		return controlplane.Serve(ctx, controlplane.ServeConfig{
			Sources: []source.Source{src}, Translation: opt, XDS: xdsSocket, Admin: cfg.Admin, PProf: cfg.PProf,
			Book: book, Status: status.Fan(book, fleet, announcer), Logger: cfg.Logger, Registry: cfg.Registry,
		})
	})
	group.Go(func() error { fleet.run(ctx); return nil })
	group.Go(func() error { announcer.run(ctx); return nil })

	err = group.Wait()
	stopBacking()
	return errors.Join(err, ignoreDuplicate(rest.Wait(), err), demos.Close())
}

// ignoreDuplicate keeps one failure from being told twice.
func ignoreDuplicate(err, told error) error {
	if told != nil && errors.Is(told, err) {
		return nil
	}
	return err
}
