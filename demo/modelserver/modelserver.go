// Package modelserver simulates a vLLM server: the OpenAI API, vLLM's metrics and
// error shapes, and no model. It takes the place of GPU pods in `signalbox run` and
// in tests, where it also says what arrived, so that a test can tell whether a
// request came through a gateway unharmed:
//
//	x-demo-pod              which pod answered
//	x-demo-body-sha256      digest of the request body as it arrived, hexadecimal
//	x-demo-body-length      its length in bytes
//	x-demo-header-NAME      a header by which gateways route, as it arrived (see routingPrefixes)
//	x-demo-trailer-NAME     a request trailer, as it arrived
//
// Any path that is not of the API is answered by the echo (see echo.go), which
// reports the whole request as JSON. What a client may ask of any answer by headers
// stands in wants.go.
package modelserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// HeaderPod names the pod in every answer.
const HeaderPod = "x-demo-pod"

// drainTime bounds how long running answers may go on once a server is told to stop.
const drainTime = 5 * time.Second

// Config is one simulated pod.
type Config struct {
	// Listen are the addresses host:port. Several are the data-parallel ranks of the
	// pod: as in vLLM each has a queue and metrics of its own.
	Listen []string
	// Pod is the name that every answer carries.
	Pod string
	// Models are what the pod serves: the base model, then its adapters.
	Models []string
	// MaxRunning is how many requests run at once; more wait. 0: 256, vLLM's
	// --max-num-seqs.
	MaxRunning int
	// MaxLoRA is reported as max_lora. 0: as many as there are adapters, at least 1.
	MaxLoRA int
	// FirstToken is the time until the first token, PerToken that between two.
	FirstToken, PerToken time.Duration
	// Logger may be nil. Bodies are never logged.
	Logger *zap.Logger
}

// Server is one rank of a simulated pod, an http.Handler.
type Server struct {
	cfg   Config
	mux   *http.ServeMux
	queue *queue
	start time.Time
	count counters
}

// New returns a handler for one rank; Config.Listen is not looked at.
func New(cfg Config) (*Server, error) {
	if cfg.Pod == "" {
		return nil, errors.New("model server: no pod name")
	}
	if len(cfg.Models) == 0 || slices.Contains(cfg.Models, "") {
		return nil, fmt.Errorf("model server %s: models %q: want the base model, then its adapters, none empty", cfg.Pod, cfg.Models)
	}
	if cfg.MaxRunning <= 0 {
		cfg.MaxRunning = 256
	}
	if cfg.MaxLoRA <= 0 {
		cfg.MaxLoRA = max(1, len(cfg.Models)-1)
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), queue: newQueue(cfg.MaxRunning), start: time.Now()}
	s.mux.HandleFunc("POST /v1/chat/completions", s.generate(chat{}))
	s.mux.HandleFunc("POST /v1/completions", s.generate(completion{}))
	s.mux.HandleFunc("POST /v1/embeddings", s.embeddings)
	s.mux.HandleFunc("GET /v1/models", s.models)
	s.mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	s.mux.HandleFunc("GET /metrics", s.metrics)
	s.mux.HandleFunc("/", s.echo)
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(HeaderPod, s.cfg.Pod)
	s.mux.ServeHTTP(w, r)
}

// Run listens on every address and serves until ctx ends. It returns nil once ctx
// ended, and an error at once when an address cannot be bound.
func Run(ctx context.Context, cfg Config) error {
	if len(cfg.Listen) == 0 {
		return fmt.Errorf("model server %s: no address to listen on", cfg.Pod)
	}
	var listeners []net.Listener
	var lc net.ListenConfig
	for _, a := range cfg.Listen {
		l, err := lc.Listen(ctx, "tcp", a)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return fmt.Errorf("model server %s: %w", cfg.Pod, err)
		}
		listeners = append(listeners, l)
	}
	return Serve(ctx, cfg, listeners...)
}

// Serve serves one rank on each listener until ctx ends, then lets running answers
// finish for a few seconds. It closes the listeners.
func Serve(ctx context.Context, cfg Config, listeners ...net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		s, err := New(cfg)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error { return s.serve(ctx, l) })
	}
	return g.Wait()
}

func (s *Server) serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetUnencryptedHTTP2(true) // appProtocol kubernetes.io/h2c
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if h.Shutdown(drain) != nil {
			h.Close() //nolint:errcheck // what is cut off here was told to end
		}
	})
	s.cfg.Logger.Info("model server listens", zap.String("pod", s.cfg.Pod), zap.Stringer("address", l.Addr()), zap.Strings("models", s.cfg.Models))
	err := h.Serve(l)
	if stop() { // Serve failed by itself
		return fmt.Errorf("model server %s on %s: %w", s.cfg.Pod, l.Addr(), err)
	}
	<-stopped
	return nil
}
