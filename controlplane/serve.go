package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"signalbox.dev/source"
	"signalbox.dev/status"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
	"signalbox.dev/xds/server"
)

// ServeConfig is a whole control plane with its two interfaces.
type ServeConfig struct {
	Sources     []source.Source
	Translation translator.Options
	XDS         string // where ADS is served: HOST:PORT or unix:PATH
	Admin       string // HOST:PORT
	PProf       bool
	Book        *status.Book  // what /debug/status shows
	Status      status.Writer // gets every status, the Book's among others
	Logger      *zap.Logger
	Registry    *prometheus.Registry

	// TLS is where, and how, ADS is served to Envoys that must show whose they are; ""
	// and nil: nowhere.
	TLSAddress string
	TLS        *tls.Config
	// Health is where /healthz, /readyz and /metrics are served to whoever asks, beside
	// Admin, which is for those on the machine; "": nowhere.
	Health      string
	Provisioner Provisioner
	AckGrace    time.Duration
	// MoreTLS adds services to the server at TLSAddress.
	MoreTLS func(*grpc.Server)
	// Started is told what takes words besides sources and Envoys, before anything runs.
	Started func(*ControlPlane)
}

// Serve runs a control plane until ctx ends.
func Serve(ctx context.Context, cfg ServeConfig) error {
	var doors doors
	xdsListener := doors.open(ctx, "xDS", cfg.XDS)
	adminListener := doors.open(ctx, "admin", cfg.Admin)
	tlsListener := doors.open(ctx, "xDS over TLS", cfg.TLSAddress)
	healthListener := doors.open(ctx, "health", cfg.Health)
	if doors.err != nil {
		doors.close()
		return doors.err
	}
	var cp *ControlPlane
	ads := server.New(server.Options{Logger: cfg.Logger.Named("xds"), Registerer: cfg.Registry, OnAck: func(a xds.Ack) { cp.Ack(a) }, Identify: identify})
	cp = New(Config{Sources: cfg.Sources, Translation: cfg.Translation, Publisher: ads, Status: cfg.Status, Provisioner: cfg.Provisioner, AckGrace: cfg.AckGrace,
		Logger: cfg.Logger.Named("controlplane"), Registerer: cfg.Registry})
	if cfg.Started != nil {
		cfg.Started(cp)
	}
	admin := Admin{
		Ready: func() bool { return cp.Ready() && ads.Synced() }, Problems: cp.Problems, Statuses: cfg.Book.All,
		Envoys: func() any { return ads.Clients() }, Served: ads.Config, Gatherer: cfg.Registry, PProf: cfg.PProf,
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cp.Run(ctx) })
	serveADS(ctx, group, ads, xdsListener, nil)
	serveHTTP(ctx, group, admin.Handler(), adminListener)
	if tlsListener != nil {
		serveADS(ctx, group, ads, tlsListener, cfg.MoreTLS, grpc.Creds(credentials.NewTLS(cfg.TLS)))
	}
	if healthListener != nil {
		serveHTTP(ctx, group, admin.Health(), healthListener)
	}
	cfg.Logger.Info("serving", zap.String("xds", cfg.XDS), zap.String("xdsTLS", cfg.TLSAddress), zap.Stringer("admin", adminListener.Addr()))
	return group.Wait()
}

// doors are the listeners of a control plane: all of them, or none.
type doors struct {
	listeners []net.Listener
	err       error
}

// open opens one, unless another could not be opened, or its address is "".
func (d *doors) open(ctx context.Context, what, address string) net.Listener {
	if address == "" || d.err != nil {
		return nil
	}
	l, err := Listen(ctx, address)
	if err != nil {
		d.err = fmt.Errorf("%s: %w", what, err)
		return nil
	}
	d.listeners = append(d.listeners, l)
	return l
}

func (d *doors) close() {
	for _, l := range d.listeners {
		l.Close()
	}
}

// serveADS serves ADS, and what more registers, on a listener until ctx ends.
func serveADS(ctx context.Context, group *errgroup.Group, ads *server.Server, l net.Listener, more func(*grpc.Server), options ...grpc.ServerOption) {
	s := grpc.NewServer(append(server.GRPCOptions(), options...)...)
	ads.Register(s)
	if more != nil {
		more(s)
	}
	group.Go(func() error { return s.Serve(l) })
	group.Go(func() error {
		<-ctx.Done()
		s.Stop() // not GracefulStop: ADS streams never end by themselves
		return nil
	})
}

// serveHTTP serves a handler on a listener until ctx ends.
func serveHTTP(ctx context.Context, group *errgroup.Group, handler http.Handler, l net.Listener) {
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: handler}
	group.Go(func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return s.Close()
	})
}

// Listen listens on HOST:PORT or unix:PATH. A socket that a dead process left behind
// is replaced; it is made for this user only.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		return config.Listen(ctx, "tcp", address)
	}
	if c, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process listens on %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
