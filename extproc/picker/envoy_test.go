package picker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"signalbox.dev/extproc/contract"
)

func TestMain(m *testing.M) {
	if endpoint := os.Getenv(childPicker); endpoint != "" {
		beChild(endpoint)
		return
	}
	goleak.VerifyTestMain(m)
}

// processor serves one side of ext_proc with a function.
type processor struct {
	extprocv3.UnimplementedExternalProcessorServer
	f func(extprocv3.ExternalProcessor_ProcessServer) error
}

func (p processor) Process(s extprocv3.ExternalProcessor_ProcessServer) error { return p.f(s) }

// listen serves f on a loopback port until the test ends.
func listen(t testing.TB, f func(extprocv3.ExternalProcessor_ProcessServer) error, opts ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listenOn(t, l, f, opts...)
}

func listenOn(t testing.TB, l net.Listener, f func(extprocv3.ExternalProcessor_ProcessServer) error, opts ...grpc.ServerOption) string {
	srv := grpc.NewServer(opts...)
	extprocv3.RegisterExternalProcessorServer(srv, processor{f: f})
	var done sync.WaitGroup
	done.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); done.Wait() })
	return l.Addr().String()
}

// gateway is a relay behind gRPC, and the means to talk to it as Envoy does.
type gateway struct {
	*Relay
	client extprocv3.ExternalProcessorClient
}

func newGateway(t testing.TB, c Config) *gateway {
	t.Helper()
	r := New(c)
	addr := listen(t, func(s extprocv3.ExternalProcessor_ProcessServer) error { return r.Serve(s) }, grpc.MaxRecvMsgSize(64<<20))
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close(); r.Close() })
	return &gateway{r, extprocv3.NewExternalProcessorClient(cc)}
}

// hurried is a gateway that finds pickers dead sooner, for tests of those that are: where
// the machine is slow, so are those that live.
func hurried(t testing.TB, c Config) *gateway {
	g := newGateway(t, c)
	g.remotes.timing.first, g.remotes.timing.interval, g.remotes.timing.timeout = 50*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	return g
}

// exchange is what a client sends and a pod answers. The zero value is a GET.
type exchange struct {
	headers  [][2]string
	body     []byte
	hasBody  bool
	piece    int // of the body, bytes; default 50,000
	trailers bool
	twiceEOF bool

	respHeaders  [][2]string
	respBody     [][]byte // nil: no body
	respTrailers bool
	respond      func(i int) // called before each piece of the response

	subset string
}

func post(body []byte) exchange { return exchange{body: body, hasBody: true} }

// outcome is what became of an exchange: what reached the pod, and what the client.
type outcome struct {
	immediate *extprocv3.ImmediateResponse
	err       error // of the stream, if Envoy would have to break the exchange for it

	released bool // the pod got the headers
	req      *extprocv3.HeadersResponse
	dynamic  *structpb.Struct
	body     []byte
	whole    bool // the pod got the end of the body
	trailers bool

	resp         *extprocv3.HeadersResponse
	respBody     []byte
	respWhole    bool
	respTrailers bool
}

func (o *outcome) status() int {
	switch {
	case o.immediate != nil:
		return int(o.immediate.GetStatus().GetCode())
	case o.err != nil:
		return 500
	}
	return 200
}

func (o *outcome) pick() string {
	return o.dynamic.GetFields()[contract.MetadataLB].GetStructValue().GetFields()[contract.KeyDestination].GetStringValue()
}

func (o *outcome) set(key string) []string {
	var out []string
	for _, h := range o.req.GetResponse().GetHeaderMutation().GetSetHeaders() {
		if h.GetHeader().GetKey() == key {
			out = append(out, string(h.GetHeader().GetRawValue()))
		}
	}
	return out
}

func headerMap(kv [][2]string) *extprocv3.HttpHeaders {
	m := &corev3.HeaderMap{}
	for _, h := range kv {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: h[0], RawValue: []byte(h[1])})
	}
	return &extprocv3.HttpHeaders{Headers: m}
}

func lb(namespace, key, value string) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{namespace: {Fields: map[string]*structpb.Value{key: structpb.NewStringValue(value)}}}}
}

// envoy speaks ext_proc as Envoy does with FULL_DUPLEX_STREAMED, and holds the other side
// to the order that Envoy accepts.
type envoy struct {
	cfg    contract.Picker
	x      exchange
	stream extprocv3.ExternalProcessor_ProcessClient
	out    outcome
	mu     sync.Mutex
	eofOut bool // the end of the request body, or trailers, was sent
}

// open opens a stream as the pool's route says.
func (g *gateway) open(ctx context.Context, t reporter, cfg contract.Picker) extprocv3.ExternalProcessor_ProcessClient {
	t.Helper()
	for _, kv := range cfg.Metadata() {
		ctx = metadata.AppendToOutgoingContext(ctx, kv[0], kv[1])
	}
	stream, err := g.client.Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// reporter is what a test and a property have in common.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Context() context.Context
}

// do runs an exchange to its end.
func (g *gateway) do(ctx context.Context, t reporter, cfg contract.Picker, x exchange) *outcome {
	t.Helper()
	if cfg.Response == "" {
		cfg.Response = contract.ResponseFull
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e := &envoy{cfg: cfg, x: x, stream: g.open(ctx, t, cfg)}
	var sender sync.WaitGroup
	sender.Go(e.request)
	err := e.replies(&sender)
	cancel()
	sender.Wait()
	if err != nil {
		t.Errorf("the relay broke Envoy's protocol: %v", err)
	}
	return &e.out
}

func (e *envoy) request() {
	h := headerMap(append([][2]string{{":method", "POST"}, {":authority", "a"}, {":path", "/v1/chat/completions"}}, e.x.headers...))
	h.EndOfStream = !e.x.hasBody && !e.x.trailers
	m := &fromEnvoy{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: h},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_FULL_DUPLEX_STREAMED}}
	if e.x.subset != "" {
		m.MetadataContext = lb(contract.MetadataSubsetHint, contract.KeySubset, e.x.subset)
	}
	_ = e.stream.Send(m)
	if h.EndOfStream {
		return
	}
	for b := e.x.body; ; {
		n := min(len(b), cmp.Or(e.x.piece, 50000))
		eof := n == len(b) && !e.x.trailers
		if n > 0 || eof {
			e.setEOF(eof)
			if e.stream.Send(requestSide.send(&extprocv3.HttpBody{Body: b[:n], EndOfStream: eof})) != nil {
				return
			}
		}
		if b = b[n:]; len(b) == 0 {
			break
		}
	}
	if e.x.twiceEOF {
		_ = e.stream.Send(requestSide.send(&extprocv3.HttpBody{EndOfStream: true}))
	}
	if e.x.trailers {
		e.setEOF(true)
		_ = e.stream.Send(&fromEnvoy{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}})
	}
}

func (e *envoy) setEOF(eof bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.eofOut = e.eofOut || eof
}

func (e *envoy) response() {
	h := headerMap(append([][2]string{{":status", "200"}}, e.x.respHeaders...))
	h.EndOfStream = e.x.respBody == nil && !e.x.respTrailers
	_ = e.stream.Send(&fromEnvoy{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: h},
		MetadataContext: lb(contract.MetadataLB, contract.KeyServed, "10.0.0.1:8000")})
	if e.cfg.Response != contract.ResponseFull {
		return
	}
	for i, b := range e.x.respBody {
		if e.x.respond != nil {
			e.x.respond(i)
		}
		if e.stream.Send(responseSide.send(&extprocv3.HttpBody{Body: b, EndOfStream: !e.x.respTrailers && i == len(e.x.respBody)-1})) != nil {
			return
		}
	}
	if e.x.respTrailers {
		_ = e.stream.Send(&fromEnvoy{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}})
	}
}

// replies reads to the end of the exchange; an error is an illegal reply.
func (e *envoy) replies(sender *sync.WaitGroup) error {
	o := &e.out
	responding := false
	for {
		if o.whole && !responding && e.cfg.Response != contract.ResponseNone {
			responding = true
			sender.Go(e.response)
		}
		if o.immediate != nil || o.whole && (e.cfg.Response == contract.ResponseNone ||
			o.resp != nil && (o.respWhole || e.cfg.Response == contract.ResponseHeaders)) {
			return nil
		}
		m, err := e.stream.Recv()
		if err != nil {
			if o.err = err; errors.Is(err, io.EOF) {
				return fmt.Errorf("it ended the stream before the end: %+v", o)
			}
			return nil
		}
		if err := e.reply(m); err != nil {
			return err
		}
	}
}

func (e *envoy) reply(m *toEnvoy) error {
	o := &e.out
	switch v := m.Response.(type) {
	case *extprocv3.ProcessingResponse_ImmediateResponse:
		o.immediate = v.ImmediateResponse
	case *extprocv3.ProcessingResponse_RequestHeaders:
		if o.released {
			return errors.New("request headers answered twice")
		}
		o.released, o.req, o.dynamic = true, v.RequestHeaders, m.DynamicMetadata
		o.whole = !e.x.hasBody && !e.x.trailers
	case *extprocv3.ProcessingResponse_RequestBody:
		sr := v.RequestBody.GetResponse().GetBodyMutation().GetStreamedResponse()
		e.mu.Lock()
		eofOut := e.eofOut
		e.mu.Unlock()
		if sr == nil || !o.released || o.whole || sr.EndOfStream && (e.x.trailers || !eofOut) || !sr.EndOfStream && len(sr.Body) == 0 {
			return fmt.Errorf("request body reply out of place: %d bytes, end %v", len(sr.GetBody()), sr.GetEndOfStream())
		}
		o.body, o.whole = append(o.body, sr.Body...), sr.EndOfStream
	case *extprocv3.ProcessingResponse_RequestTrailers:
		if !o.released || o.whole || !e.x.trailers {
			return errors.New("request trailers out of place")
		}
		o.trailers, o.whole = true, true
	case *extprocv3.ProcessingResponse_ResponseHeaders:
		if o.resp != nil {
			return errors.New("response headers answered twice")
		}
		o.resp, o.respWhole = v.ResponseHeaders, e.x.respBody == nil && !e.x.respTrailers
	case *extprocv3.ProcessingResponse_ResponseBody:
		sr := v.ResponseBody.GetResponse().GetBodyMutation().GetStreamedResponse()
		if sr == nil || o.resp == nil || o.respWhole || sr.EndOfStream && e.x.respTrailers {
			return fmt.Errorf("response body reply out of place: %d bytes, end %v", len(sr.GetBody()), sr.GetEndOfStream())
		}
		o.respBody, o.respWhole = append(o.respBody, sr.Body...), sr.EndOfStream
	case *extprocv3.ProcessingResponse_ResponseTrailers:
		if o.resp == nil || o.respWhole || !e.x.respTrailers {
			return errors.New("response trailers out of place")
		}
		o.respTrailers, o.respWhole = true, true
	default:
		return fmt.Errorf("unknown reply %T", v)
	}
	if m.GetModeOverride() != nil || o.req.GetResponse().GetClearRouteCache() {
		return errors.New("mode override or cleared route cache")
	}
	return nil
}

// settled waits until nothing is held and no stream is open.
func (g *gateway) settled(t testing.TB) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(5 * time.Second)
	for g.budget.held.Load() != 0 || gauge(g.metrics.open) != 0 {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%d bytes held, %v streams open", g.budget.held.Load(), gauge(g.metrics.open))
		}
	}
}

func at(endpoints ...string) contract.Picker {
	return contract.Picker{Pool: "ns/pool", Endpoints: endpoints, TLS: contract.TLSPlaintext, Response: contract.ResponseFull}
}

func open(p contract.Picker) contract.Picker { p.FailOpen = true; return p }

// bytesOf returns a body of n bytes of which no two places look the same. It is shared:
// append copies it, nothing else may write to it.
func bytesOf(n int) []byte { return allBytes()[:n:n] }

var allBytes = sync.OnceValue(func() []byte {
	var b []byte
	for i := 0; len(b) < larger; i++ {
		b = append(strconv.AppendInt(b, int64(i), 10), ',')
	}
	return b
})
