package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// serveMetrics serves /metrics, /healthz and more, by pattern, on address while run runs.
func serveMetrics(ctx context.Context, address string, registry *prometheus.Registry, more map[string]http.HandlerFunc, log *zap.Logger, run func() error) error {
	if address == "" {
		return run()
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	for pattern, h := range more {
		mux.HandleFunc(pattern, h)
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics", zap.Error(err))
		}
	}()
	err = run()
	_ = s.Close() // nothing is left to tell anyone
	<-done
	return err
}
