// Package picker is a small, correct endpoint picker (EPP): it speaks the Endpoint
// Picker Protocol (inference extension, proposal 004) over Envoy's ext_proc and
// chooses the pod that answers a request. It takes the place of a real picker in
// `signalbox run` and in tests; nothing in it knows the rest of this project.
//
// # How it chooses
//
// Candidates are the endpoints it was given; a subset hint, or the header
// test-epp-endpoint-selection, leaves some of them. They are ranked by
//
//  1. whether their metrics could be read last time (a pod that is gone comes last),
//  2. whether they run the adapter that the request names, while their queue is
//     below Config.QueueLimit,
//  3. their queue: vllm:num_requests_waiting, and what this picker sent there that
//     the metrics do not show yet,
//  4. their running requests,
//
// equals in turn. No candidate: 503. Every candidate's queue at the limit: a request
// whose objective (header x-gateway-inference-objective or
// x-llm-d-inference-objective) is "sheddable" gets 429, every other is sent anyway, as
// the full EPP does with priorities below 0.
//
// # What it answers
//
// The pick goes out as header and as metadata, at the end of the body, as with the
// full EPP; the body is given back in chunks of at most 62,000 bytes. It follows the
// body modes that Envoy announces (protocol_config): FULL_DUPLEX_STREAMED and BUFFERED
// show it the body, with STREAMED and NONE it reads the model from the header
// x-gateway-model-name. In the response it reports, as the conformance suite's picker
// does, x-conformance-test-served-endpoint, and its own name as x-demo-picker.
package picker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// HeaderPicker names the picker in every response that passed it.
const HeaderPicker = "x-demo-picker"

// drainTime bounds how long running streams may go on once a picker is told to stop.
const drainTime = 5 * time.Second

// Config is one picker.
type Config struct {
	// Listen is the host:port of the ext_proc service, which also answers health checks.
	Listen string
	// HealthListen, if not empty, is the host:port of gRPC health in plaintext, as real
	// pickers have it on 9003.
	HealthListen string
	// MetricsListen, if not empty, is the host:port of Prometheus metrics over HTTP.
	MetricsListen string
	// Name is what the header x-demo-picker says.
	Name string
	// Endpoints are those to pick from; the owner may change them at any time.
	Endpoints *Endpoints
	// EndpointsFile, if not empty, is read into Endpoints whenever it changes: ip:port,
	// separated by spaces or new lines; # starts a comment.
	EndpointsFile string
	// EndpointsDNS, if not empty, is NAME:PORT whose addresses are read into Endpoints
	// every second: the headless Service of a pool's pods, which lists those that are
	// ready. So a picker in a cluster needs no access to the API server.
	EndpointsDNS string
	// MaxEndpoints is how many endpoints a pick names, best first. 0: 1.
	MaxEndpoints int
	// QueueLimit is the queue at which an endpoint counts as saturated. 0: 5, as the
	// full EPP's queueDepthThreshold.
	QueueLimit int
	// ScrapeInterval is how often the endpoints' metrics are read. 0: 50 ms.
	ScrapeInterval time.Duration
	// MaxBody bounds a request body, in bytes; a longer one gets 413. 0: 64 MiB.
	MaxBody int
	// CertDir holds tls.crt and tls.key. Empty: a self-signed certificate, as real
	// pickers have it.
	CertDir string
	// Plaintext serves without TLS.
	Plaintext bool
	// Logger may be nil. Bodies are never logged.
	Logger *zap.Logger
}

// Picker is the ext_proc service.
type Picker struct {
	extproc.UnimplementedExternalProcessorServer
	cfg      Config
	dns      dnsName
	fleet    *fleet
	health   *health.Server
	registry *prometheus.Registry
	picks    *prometheus.CounterVec // by endpoint
	served   *prometheus.CounterVec // by endpoint, from the gateway's feedback
	refused  *prometheus.CounterVec // by HTTP status
	extraEnd prometheus.Counter
}

// New returns a picker that does not run yet.
func New(cfg Config) (*Picker, error) {
	if cfg.Name == "" {
		return nil, errors.New("picker: no name")
	}
	if cfg.Endpoints == nil {
		if cfg.EndpointsFile == "" && cfg.EndpointsDNS == "" {
			return nil, fmt.Errorf("picker %s: neither endpoints nor a file or a DNS name of them", cfg.Name)
		}
		cfg.Endpoints = &Endpoints{}
	}
	var name dnsName
	if cfg.EndpointsDNS != "" {
		var err error
		if name, err = parseDNSName(cfg.EndpointsDNS); err != nil {
			return nil, fmt.Errorf("picker %s: %w", cfg.Name, err)
		}
	}
	if cfg.MaxEndpoints <= 0 {
		cfg.MaxEndpoints = 1
	}
	if cfg.QueueLimit <= 0 {
		cfg.QueueLimit = 5
	}
	if cfg.ScrapeInterval <= 0 {
		cfg.ScrapeInterval = 50 * time.Millisecond
	}
	if cfg.MaxBody <= 0 {
		cfg.MaxBody = 64 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	p := &Picker{cfg: cfg, dns: name, fleet: newFleet(cfg.QueueLimit), health: health.NewServer(), registry: prometheus.NewRegistry()}
	counter := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "demo_picker_" + name, Help: help}, []string{label})
		p.registry.MustRegister(c)
		return c
	}
	p.picks = counter("picks_total", "Requests for which the endpoint was the first choice.", "endpoint")
	p.served = counter("served_total", "Responses that the gateway says the endpoint served.", "endpoint")
	p.refused = counter("refused_total", "Requests answered by the picker itself.", "status")
	p.extraEnd = prometheus.NewCounter(prometheus.CounterOpts{Name: "demo_picker_second_end_of_stream_total",
		Help: "Request body messages after the end of the body (envoyproxy/envoy#46237)."})
	p.registry.MustRegister(p.extraEnd)
	p.setHealth(healthpb.HealthCheckResponse_NOT_SERVING)
	return p, nil
}

// Metrics gathers the picker's counters.
func (p *Picker) Metrics() prometheus.Gatherer { return p.registry }

// setHealth sets the status of every name that gateways and probes ask for. Liveness
// is not among them: a picker that answers at all is alive.
func (p *Picker) setHealth(s healthpb.HealthCheckResponse_ServingStatus) {
	for _, name := range []string{"", "readiness", "inference-extension", extproc.ExternalProcessor_ServiceDesc.ServiceName} {
		p.health.SetServingStatus(name, s)
	}
	p.health.SetServingStatus("liveness", healthpb.HealthCheckResponse_SERVING)
}

// Run runs a picker on its configured addresses until ctx ends. It returns nil once
// ctx ended, and an error at once when an address cannot be bound.
func Run(ctx context.Context, cfg Config) error {
	p, err := New(cfg)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("picker %s: %w", cfg.Name, err)
	}
	return p.Serve(ctx, l)
}

// Serve picks on the listener until ctx ends, then lets running streams finish for a
// few seconds. It closes the listener.
func (p *Picker) Serve(ctx context.Context, l net.Listener) error {
	opts := []grpc.ServerOption{grpc.MaxRecvMsgSize(p.cfg.MaxBody + 1<<20)}
	if !p.cfg.Plaintext {
		cert, err := certificate(p.cfg.CertDir)
		if err != nil {
			l.Close()
			return fmt.Errorf("picker %s: certificate: %w", p.cfg.Name, err)
		}
		opts = append(opts, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})))
	}
	g, ctx := errgroup.WithContext(ctx)
	main := grpc.NewServer(opts...)
	extproc.RegisterExternalProcessorServer(main, p)
	healthpb.RegisterHealthServer(main, p.health)
	g.Go(func() error { return serveGRPC(ctx, main, l) })
	g.Go(func() error { return p.serveHealth(ctx) })
	g.Go(func() error { return p.serveMetrics(ctx) })
	g.Go(func() error { p.scrape(ctx); return nil })
	if p.cfg.EndpointsFile != "" {
		g.Go(func() error { p.cfg.Endpoints.watch(ctx, p.cfg.EndpointsFile, p.cfg.Logger); return nil })
	}
	if p.cfg.EndpointsDNS != "" {
		g.Go(func() error {
			p.cfg.Endpoints.follow(ctx, p.dns, net.DefaultResolver.LookupNetIP, p.cfg.Logger)
			return nil
		})
	}
	context.AfterFunc(ctx, func() { p.setHealth(healthpb.HealthCheckResponse_NOT_SERVING) })
	p.cfg.Logger.Info("picker listens", zap.String("picker", p.cfg.Name), zap.Stringer("address", l.Addr()), zap.Bool("tls", !p.cfg.Plaintext))
	if err := g.Wait(); err != nil {
		return fmt.Errorf("picker %s: %w", p.cfg.Name, err)
	}
	return nil
}

func (p *Picker) serveHealth(ctx context.Context) error {
	if p.cfg.HealthListen == "" {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", p.cfg.HealthListen)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, p.health)
	return serveGRPC(ctx, s, l)
}

func (p *Picker) serveMetrics(ctx context.Context) error {
	if p.cfg.MetricsListen == "" {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", p.cfg.MetricsListen)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() }) //nolint:errcheck // nobody waits for metrics of a picker that ends
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveGRPC serves until ctx ends, then stops within drainTime.
func serveGRPC(ctx context.Context, s *grpc.Server, l net.Listener) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		hard := time.AfterFunc(drainTime, s.Stop)
		defer hard.Stop()
		s.GracefulStop()
	})
	err := s.Serve(l)
	if stop() { // Serve failed by itself
		return err
	}
	<-stopped
	return nil
}
