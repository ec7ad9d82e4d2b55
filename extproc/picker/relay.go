// Package picker is the hookup between Envoy and the endpoint pickers of the pools.
//
// Envoy's ext_proc filter loses bodies, hangs, or cuts responses when a picker that it
// talks to itself dies, hangs or lies. So Envoy talks to a [Relay] beside it, which cannot
// die alone, and the relay talks to the picker. For each request there is one stream:
// its goroutine (stream.go) owns all state and is the only one that decides; goroutines
// around it only carry messages. The request half is request.go, the response half
// response.go. The promises:
//
//   - A request reaches a pod whole, or not at all: nothing is given to Envoy before the
//     picker has given back all of it. Until then, what the client sent is kept, so that
//     another picker can be asked, or (FailOpen) the pool be used without one. FailClose
//     is a 503.
//   - Exceptions, where keeping is not possible: gRPC requests, which may be answered
//     before they end, and bodies beyond the budget. There, a failure ends the request
//     such that the pod never sees a complete body, unless what is missing is known.
//   - A response is never harmed by its picker: when that fails, the rest goes on as the
//     pod sent it.
//   - Pickers may think as long as they like, but must be alive (probe.go).
//
// What a picker sends back is applied as a difference (diff.go).
package picker

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"signalbox.dev/extproc/contract"
)

// Defaults of Config.
const (
	DefaultBodyBudget   = 256 << 20
	DefaultStreamBudget = 64 << 20
)

// Config says what a Relay uses. The zero value works.
type Config struct {
	Logger     *zap.Logger           // nil: none
	Registerer prometheus.Registerer // nil: none
	// BodyBudget is how many body bytes are held over all streams, and StreamBudget how
	// many by one. Beyond, a request goes on but loses what the bytes were held for: if
	// its picker then fails, it is answered 503, also with FailOpen. A response beyond
	// it goes on without its picker. A stream that holds less than 256 KiB is not
	// affected by what the others hold.
	BodyBudget, StreamBudget int64
}

// Relay serves ext_proc streams for the pools' endpoint pickers.
type Relay struct {
	log     *zap.Logger
	metrics *metrics
	budget  budget
	remotes remotes

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	mu      sync.Mutex // guards closed against streams.Add
	closed  bool
	streams sync.WaitGroup
}

// New returns a Relay; Close it after the gRPC server has stopped.
func New(c Config) *Relay {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.BodyBudget == 0 {
		c.BodyBudget = DefaultBodyBudget
	}
	if c.StreamBudget == 0 {
		c.StreamBudget = DefaultStreamBudget
	}
	r := &Relay{remotes: remotes{log: c.Logger, timing: defaultTiming, m: map[key]*remote{}}}
	r.budget.all, r.budget.perStream = c.BodyBudget, c.StreamBudget
	// A picker that fails fails for every request: five lines a second say it.
	r.log = c.Logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, 5, 0)
	}))
	r.metrics = newMetrics(c.Registerer, &r.budget)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close ends all streams and closes the connections to the pickers.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.streams.Wait()
	r.remotes.close()
}

// Serve relays one stream of Envoy's, whose initial metadata names the picker
// ([contract.Picker]). Its messages are ProcessingRequest and ProcessingResponse of
// envoy.service.ext_proc.v3.
func (r *Relay) Serve(ss grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(ss.Context())
	cfg, err := contract.ParsePicker(func(key string) string {
		if v := md.Get(key); len(v) > 0 {
			return v[0]
		}
		return ""
	})
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return status.Error(codes.Unavailable, "shutting down")
	}
	r.streams.Add(1)
	r.mu.Unlock()
	defer r.streams.Done()
	r.metrics.open.Inc()
	defer r.metrics.open.Dec()
	return r.serve(ss, cfg)
}

// serve runs the stream between two goroutines that carry Envoy's messages.
func (r *Relay) serve(ss grpc.ServerStream, cfg contract.Picker) error {
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()

	s := &stream{
		relay: r, cfg: cfg, ctx: ctx, log: r.log.With(zap.String("pool", cfg.Pool)),
		in: make(chan *fromEnvoy), outc: make(chan *toEnvoy), lease: lease{b: &r.budget},
	}
	s.req.side, s.resp.side = requestSide, responseSide
	go func() { // ends when Serve returns, by RecvMsg's error or by ctx
		defer close(s.in)
		for {
			m := new(fromEnvoy)
			if ss.RecvMsg(m) != nil {
				return
			}
			select {
			case s.in <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	var sender sync.WaitGroup
	sender.Go(func() {
		for m := range s.outc {
			if ss.SendMsg(m) != nil {
				cancel() // the stream is broken; s.run ends and closes outc
			}
		}
	})
	err := s.run()
	close(s.outc)
	sender.Wait()
	return err
}
