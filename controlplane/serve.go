package controlplane

import (
	"context"
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
}

// Serve runs a control plane until ctx ends.
func Serve(ctx context.Context, cfg ServeConfig) error {
	xdsListener, err := Listen(cfg.XDS)
	if err != nil {
		return fmt.Errorf("xDS: %w", err)
	}
	adminListener, err := Listen(cfg.Admin)
	if err != nil {
		xdsListener.Close()
		return fmt.Errorf("admin: %w", err)
	}
	var cp *ControlPlane
	ads := server.New(server.Options{Logger: cfg.Logger.Named("xds"), Registerer: cfg.Registry, OnAck: func(a xds.Ack) { cp.Ack(a) }})
	cp = New(Config{Sources: cfg.Sources, Translation: cfg.Translation, Publisher: ads, Status: cfg.Status, Logger: cfg.Logger.Named("controlplane"), Registerer: cfg.Registry})

	grpcServer := grpc.NewServer(server.GRPCOptions()...)
	ads.Register(grpcServer)
	admin := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: Admin{
		Ready: func() bool { return cp.Ready() && ads.Synced() }, Problems: cp.Problems, Statuses: cfg.Book.All,
		Envoys: func() any { return ads.Clients() }, Served: ads.Config, Gatherer: cfg.Registry, PProf: cfg.PProf,
	}.Handler()}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cp.Run(ctx) })
	group.Go(func() error { return grpcServer.Serve(xdsListener) })
	group.Go(func() error {
		if err := admin.Serve(adminListener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		grpcServer.Stop() // not GracefulStop: ADS streams never end by themselves
		return admin.Close()
	})
	cfg.Logger.Info("serving", zap.String("xds", cfg.XDS), zap.Stringer("admin", adminListener.Addr()))
	return group.Wait()
}

// Listen listens on HOST:PORT or unix:PATH. A socket that a dead process left behind
// is replaced; it is made for this user only.
func Listen(address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		return net.Listen("tcp", address)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process listens on %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
