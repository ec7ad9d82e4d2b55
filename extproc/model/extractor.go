// Package model is the extractor: an ext_proc server that reads the name of the
// model out of a request's body and gives it to Envoy as the header
// x-gateway-model-name, so that Envoy can route by it.
//
// Envoy sends the headers and, without waiting for an answer, the body as it comes
// (STREAMED with send_body_without_waiting_for_header_response), and holds the
// request meanwhile. A session feeds the chunks to a scanner (jsonScanner or
// formScanner) and answers the headers once, at the end of the object or form; then
// the stream ends and Envoy passes on what it held, byte for byte. It does not wait
// for the end of the body (Envoy does not tell of it if trailers follow); what comes
// after the object in a later chunk passes unread: a parser that reads on refuses it,
// one that does not has read the same object.
//
// A body longer than what Envoy can hold, whose model was seen by then, is released
// and verified: the headers are answered, and each chunk once it was scanned. If a
// second model comes up, the request is refused before its last chunk leaves Envoy,
// so no server ever gets a whole body that is not what the route was chosen by.
//
// What cannot be read sets x-signalbox-model-error instead; the routes of the host
// decide whether that is an error.
package model

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"signalbox.dev/extproc/contract"
)

// Bounds and defaults of Config.
const (
	DefaultHoldLimit     = 4 << 20  // bytes
	MaxHoldLimit         = 64 << 20 // bytes
	DefaultMaxConcurrent = 10_000   // requests
)

// MaxMessage is the size of the largest message of Envoy's, in bytes: it may hand on
// all it held at once, and it holds up to a sixth more than its limit.
const MaxMessage = MaxHoldLimit + MaxHoldLimit/6 + 1<<20

// Config of an Extractor.
type Config struct {
	Logger     *zap.Logger
	Registerer prometheus.Registerer // nil: no metrics are exposed

	// HoldLimit is how many bytes of a body Envoy holds (its listener's
	// per_connection_buffer_limit_bytes), unless the stream's initial metadata says
	// so itself (contract.KeyHoldLimit). 0: DefaultHoldLimit; at most MaxHoldLimit.
	HoldLimit int

	// MaxConcurrent bounds the requests being read at a time; more are refused with
	// the gRPC status RESOURCE_EXHAUSTED. 0: DefaultMaxConcurrent.
	MaxConcurrent int
}

// Extractor serves the streams of contract.PartModel.
type Extractor struct {
	log           *zap.Logger
	metrics       *metrics
	holdLimit     int
	maxConcurrent int64
	inflight      atomic.Int64
	complained    atomic.Int64 // Unix seconds: the last misconfiguration that was logged
	sessions      sync.Pool
}

// New returns an Extractor. An error names the field of the config that is wrong.
func New(c Config) (*Extractor, error) {
	if c.HoldLimit == 0 {
		c.HoldLimit = DefaultHoldLimit
	}
	if c.MaxConcurrent == 0 {
		c.MaxConcurrent = DefaultMaxConcurrent
	}
	if c.HoldLimit < 1 || c.HoldLimit > MaxHoldLimit {
		return nil, fmt.Errorf("HoldLimit is %d bytes; want 1 to %d", c.HoldLimit, MaxHoldLimit)
	}
	if c.MaxConcurrent < 1 {
		return nil, fmt.Errorf("MaxConcurrent is %d; want at least 1", c.MaxConcurrent)
	}
	e := &Extractor{log: c.Logger, holdLimit: c.HoldLimit, maxConcurrent: int64(c.MaxConcurrent)}
	if e.log == nil {
		e.log = zap.NewNop()
	}
	e.sessions.New = func() any { return new(session) }
	var err error
	e.metrics, err = newMetrics(c.Registerer, func() float64 { return float64(e.inflight.Load()) })
	return e, err
}

// Serve handles one ext_proc stream, that is one HTTP request. It returns nil only
// after an answer: Envoy lets a request go on whose stream ends well without one.
func (e *Extractor) Serve(stream grpc.ServerStream) (err error) {
	start := time.Now()
	s := e.sessions.Get().(*session)
	result := resultError
	defer func() {
		if p := recover(); p != nil {
			e.log.Error("a stream of the extractor panicked", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			result, err = resultError, status.Error(codes.Internal, "the extractor failed on this request")
		}
		e.inflight.Add(-1)
		e.metrics.observe(s, result, time.Since(start))
		s.reset()
		e.sessions.Put(s)
	}()
	if e.inflight.Add(1) > e.maxConcurrent {
		result = resultOverloaded
		return status.Errorf(codes.ResourceExhausted, "%d requests are being read already", e.maxConcurrent)
	}
	if s.holdLimit, err = e.holdLimitOf(stream); err == nil {
		result, err = s.run(stream)
	}
	if err != nil {
		result, err = e.failed(err)
	}
	return err
}

// failed sorts an error that ends a stream.
func (e *Extractor) failed(err error) (result, error) {
	var wrong setupError
	switch {
	case errors.As(err, &wrong):
		e.complain(wrong)
		return resultMisconfigured, status.Error(codes.FailedPrecondition, wrong.Error())
	case status.Code(err) == codes.Canceled:
		return resultCanceled, err
	}
	return resultError, err
}

// setupError says how Envoy is configured wrongly.
type setupError string

func (e setupError) Error() string { return string(e) }

// complain logs a wrong set-up, which every request would show, once in a while.
func (e *Extractor) complain(wrong setupError) {
	now, last := time.Now().Unix(), e.complained.Load()
	if now-last >= 10 && e.complained.CompareAndSwap(last, now) {
		e.log.Error("Envoy's filter for the extractor is configured wrongly", zap.String("problem", string(wrong)))
	}
}

// holdLimitOf returns how much Envoy holds of a body of this stream, in bytes.
func (e *Extractor) holdLimitOf(stream grpc.ServerStream) (int, error) {
	md, _ := metadata.FromIncomingContext(stream.Context())
	values := md.Get(contract.KeyHoldLimit)
	if len(values) == 0 {
		return e.holdLimit, nil
	}
	n, err := strconv.Atoi(values[0])
	if err != nil || n < 1 || n > MaxHoldLimit {
		return 0, setupError(fmt.Sprintf("initial metadata %s is %q; want a number of bytes from 1 to %d", contract.KeyHoldLimit, values[0], MaxHoldLimit))
	}
	return n, nil
}
