package model_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"signalbox.dev/extproc"
	"signalbox.dev/extproc/contract"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// beside is a client of a running server, as Envoy is.
type beside struct {
	client   extprocv3.ExternalProcessorClient
	registry *prometheus.Registry
}

func startServer(tb testing.TB, c extproc.Config) *beside {
	tb.Helper()
	b := &beside{registry: prometheus.NewRegistry()}
	c.Registerer = b.registry
	server, err := extproc.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(1<<30)))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := conn.Close(); err != nil {
			tb.Error(err)
		}
		cancel()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	b.client = extprocv3.NewExternalProcessorClient(conn)
	return b
}

// open starts a stream with the metadata that Envoy's configuration sets.
func (b *beside) open(ctx context.Context, tb testing.TB, limit string) extprocv3.ExternalProcessor_ProcessClient {
	tb.Helper()
	ctx = metadata.AppendToOutgoingContext(ctx, contract.KeyPart, contract.PartModel)
	if limit != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, contract.KeyHoldLimit, limit)
	}
	stream, err := b.client.Process(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return stream
}

// exchange sends all of requests and returns what is answered until the end.
func exchange(stream extprocv3.ExternalProcessor_ProcessClient, requests ...*extprocv3.ProcessingRequest) ([]*extprocv3.ProcessingResponse, error) {
	for _, r := range requests {
		if err := stream.Send(r); err != nil {
			break // the server is done; Recv says how
		}
	}
	_ = stream.CloseSend()
	var out []*extprocv3.ProcessingResponse
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, r)
	}
}

// headers is the first message of a request: method, then names and values.
func headers(end bool, method string, nv ...string) *extprocv3.ProcessingRequest {
	m := &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: ":method", RawValue: []byte(method)}}}
	for i := 0; i < len(nv); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: nv[i], RawValue: []byte(nv[i+1])})
	}
	attributes, _ := structpb.NewStruct(map[string]any{"request.path": "/", "n": 1})
	return &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: m, EndOfStream: end}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{
			RequestBodyMode: extprocfilter.ProcessingMode_STREAMED, SendBodyWithoutWaitingForHeaderResponse: true},
		Attributes: map[string]*structpb.Struct{"envoy.filters.http.ext_proc": attributes},
	}
}

func body(text string, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: []byte(text), EndOfStream: end}}}
}

func trailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}}
}

// words is what answers say, one word each: none, set:NAME=VALUE, body, STATUS:CODE.
func words(tb testing.TB, answers []*extprocv3.ProcessingResponse) string {
	tb.Helper()
	var out []string
	for _, a := range answers {
		switch r := a.Response.(type) {
		case *extprocv3.ProcessingResponse_RequestHeaders:
			word := "none"
			for _, h := range r.RequestHeaders.Response.HeaderMutation.GetSetHeaders() {
				word = "set:" + h.Header.Key + "=" + string(h.Header.RawValue)
				if !r.RequestHeaders.Response.ClearRouteCache || h.AppendAction != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
					tb.Errorf("%v: want the route chosen again, and the header overwritten", a)
				}
			}
			out = append(out, word)
		case *extprocv3.ProcessingResponse_RequestBody:
			if proto.Size(r.RequestBody.Response) != 0 {
				tb.Errorf("%v: want the body untouched", a)
			}
			out = append(out, "body")
		case *extprocv3.ProcessingResponse_ImmediateResponse:
			_, code, _ := strings.Cut(string(r.ImmediateResponse.Body), `"code":"`)
			code, _, _ = strings.Cut(code, `"`)
			out = append(out, fmt.Sprintf("%d:%s", r.ImmediateResponse.Status.Code, code))
		default:
			tb.Errorf("unexpected answer %v", a)
		}
	}
	return strings.Join(out, " ")
}

const (
	setModel = "set:" + contract.HeaderModel + "="
	setError = "set:" + contract.HeaderModelError + "="
)

type requests = []*extprocv3.ProcessingRequest

func post(nv ...string) *extprocv3.ProcessingRequest { return headers(false, "POST", nv...) }

// sessionCase is what is sent in one stream, and what is answered to it in words.
type sessionCase struct {
	name  string
	limit string // hold limit in the initial metadata; "": the server's, 64
	in    requests
	want  string
}

func runSessions(t *testing.T, cases []sessionCase) {
	t.Helper()
	b := startServer(t, extproc.Config{HoldLimit: 64})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			answers, err := exchange(b.open(t.Context(), t, c.limit), c.in...)
			if got := words(t, answers); got != c.want || err != nil {
				t.Errorf("answers %q, error %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestSession(t *testing.T) {
	runSessions(t, []sessionCase{
		{"GET", "", requests{headers(true, "GET")}, "none"},
		{"GET with a body", "", requests{headers(false, "GET"), body(`{"model":"m"}`, true)}, "none"},
		{"DELETE", "", requests{headers(true, "DELETE")}, "none"},
		{"POST without a body", "", requests{headers(true, "POST")}, setError + "missing_model"},
		{"PATCH without a body", "", requests{headers(true, "PATCH")}, setError + "missing_model"},
		{"empty body", "", requests{post(), body("", true)}, setError + "missing_model"},
		{"one message", "", requests{post(), body(`{"model":"m"}`, true)}, setModel + "m"},
		{"not to the end of the stream", "", requests{post(), body(`{"model":"m"}`, false)}, setModel + "m"},
		{"many messages", "", requests{post(), body(`{"mod`, false), body("", false), body(`el":"`, false), body(`m"`, false), body(`}`, true)}, setModel + "m"},
		{"ends with an empty message", "", requests{post(), body(`{"model":"m"`, false), body(`}`, false), body("", true)}, setModel + "m"},
		{"two ends", "", requests{post(), body(`{"model":"m"}`, true), body("", true), trailers()}, setModel + "m"},
		{"garbage in the same message", "", requests{post(), body(`{"model":"m"}x`, true)}, setError + "invalid_json"},
		{"garbage after the answer", "", requests{post(), body(`{"model":"m"}`, false), body("x", true)}, setModel + "m"},
		{"cut", "", requests{post(), body(`{"model":"m"`, true)}, setError + "invalid_json"},
		{"cut by trailers", "", requests{post(), body(`{"model":"m"`, false), trailers()}, setError + "invalid_json"},
		{"trailers alone", "", requests{post(), trailers()}, setError + "missing_model"},
		{"two models", "", requests{post(), body(`{"model":"m","model":"n"}`, true)}, setError + "duplicate_model"},
		{"other type", "", requests{post("content-type", "text/plain")}, setError + "invalid_content_type"},
		{"two types", "", requests{post("content-type", "application/json", "content-type", "text/plain")}, setError + "invalid_content_type"},
		{"identity", "", requests{post("content-encoding", "identity"), body(`{"model":"m"}`, true)}, setModel + "m"},
		{"gzip", "", requests{post("content-encoding", "gzip")}, setError + "unsupported_content_encoding"},
		{"gzip too", "", requests{post("content-encoding", "identity", "content-encoding", "gzip")}, setError + "unsupported_content_encoding"},
	})
}

func TestSessionForm(t *testing.T) {
	runSessions(t, []sessionCase{
		{"form", "", requests{post("content-type", "multipart/form-data; boundary=b"), body("--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b--", true)},
			setModel + "m"},
		{"form, too long", "20", requests{post("content-type", "multipart/form-data; boundary=b"), body("--b\r\nContent-Disposition: form", false)},
			setError + "body_too_large"},
		{"form, long, model first", "60", requests{post("content-type", "multipart/form-data; boundary=b"),
			body("--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b\r\n", false), body("Content-Disposition: form-data; name=file\r\n\r\n", false), body("data\r\n--b--", true)},
			setModel + "m body body body"},
		{"form, long, another model", "57", requests{post("content-type", "multipart/form-data; boundary=b"),
			body("--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b\r\n", false), body("Content-Disposition: form-data; name=model\r\n\r\nn\r\n--b--", true)},
			setModel + "m body 400:duplicate_model"},
	})
}

// TestSessionLong: bodies beyond the hold limit are released and verified, or refused.
func TestSessionLong(t *testing.T) {
	pad := strings.Repeat("x", 60)
	runSessions(t, []sessionCase{
		{"long, model first", "", requests{post(), body(`{"model":"m",`, false), body(`"a":"`+pad, false), body("x", false), body(`"}`, true)},
			setModel + "m body body body body"},
		{"long, in one message", "", requests{post(), body(`{"model":"m","a":"`+pad+`"}`, true)}, setModel + "m"},
		{"long, model last", "", requests{post(), body(`{"a":"`+pad, false), body(`","model":"m"}`, true)}, setError + "body_too_large"},
		{"long, model last, in one message", "", requests{post(), body(`{"a":"`+pad+`","model":"m"}`, true)}, setError + "body_too_large"},
		{"as long as the limit", "19", requests{post(), body(`{"a":1,`, false), body(`"model":"m"}`, true)}, setModel + "m"},
		{"a byte longer", "17", requests{post(), body(`{"a":1,`, false), body(`"model":"m"}`, true)}, setError + "body_too_large"},
		{"long, another model", "", requests{post(), body(`{"model":"m","a":"`+pad, false), body(`","model":"n"}`, true)},
			setModel + "m body 400:duplicate_model"},
		{"long, malformed", "", requests{post(), body(`{"model":"m","a":"`+pad, false), body(`",`, false), body(`}`, true)}, setModel + "m body body 400:invalid_json"},
		{"long, cut", "", requests{post(), body(`{"model":"m","a":"`+pad, false), body(`"`, true)}, setModel + "m body 400:invalid_json"},
		{"long, cut by its length", "", requests{post("content-length", "79"), body(`{"model":"m","a":"`+pad, false), body(`"`, false)}, setModel + "m body 400:invalid_json"},
		{"as long as it says", "", requests{post("content-length", "13"), body(`{"model":"m"}`, false)}, setModel + "m"},
		{"long, cut by trailers", "", requests{post(), body(`{"model":"m","a":"`+pad, false), trailers()}, setModel + "m body 400:invalid_json"},
		{"a model beyond the limit that came with it", "", requests{post(), body(`{"a":"`+pad+`","model":"m",`, false), body(`"b":1}`, true)}, setError + "body_too_large"},
	})
}

// TestSetup: what is wrong with Envoy's configuration is said, and fails closed.
func TestSetup(t *testing.T) {
	b := startServer(t, extproc.Config{})
	first := func(change func(*extprocv3.ProcessingRequest)) []*extprocv3.ProcessingRequest {
		h := headers(false, "POST")
		change(h)
		return []*extprocv3.ProcessingRequest{h, body(`{"model":"m"}`, true)}
	}
	for _, c := range []struct {
		limit string
		in    []*extprocv3.ProcessingRequest
		want  string
	}{
		{"", first(func(h *extprocv3.ProcessingRequest) { h.ProtocolConfig = nil }), "protocol_config"},
		{"", first(func(h *extprocv3.ProcessingRequest) {
			h.ProtocolConfig.RequestBodyMode = extprocfilter.ProcessingMode_BUFFERED
		}), "request_body_mode is BUFFERED"},
		{"", first(func(h *extprocv3.ProcessingRequest) { h.ProtocolConfig.SendBodyWithoutWaitingForHeaderResponse = false }), "send_body_without_waiting"},
		{"", first(func(h *extprocv3.ProcessingRequest) { h.ObservabilityMode = true }), "observability_mode"},
		{"", first(func(h *extprocv3.ProcessingRequest) { h.GetRequestHeaders().Headers = nil }), "forward_rules"},
		{"", []*extprocv3.ProcessingRequest{body(`{"model":"m"}`, true)}, "request_header_mode"},
		{"", []*extprocv3.ProcessingRequest{headers(false, "POST"), {Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}}}, "response mode"},
		{"1k", first(func(*extprocv3.ProcessingRequest) {}), contract.KeyHoldLimit},
		{"0", first(func(*extprocv3.ProcessingRequest) {}), contract.KeyHoldLimit},
		{"99999999999", first(func(*extprocv3.ProcessingRequest) {}), contract.KeyHoldLimit},
	} {
		t.Run(c.want, func(t *testing.T) {
			answers, err := exchange(b.open(t.Context(), t, c.limit), c.in...)
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), c.want) || len(answers) != 0 {
				t.Errorf("answers %v, error %v; want FailedPrecondition with %q", answers, err, c.want)
			}
		})
	}
	if _, err := exchange(b.open(t.Context(), t, ""), headers(false, "POST"), body(`{"model":"m"`, false)); status.Code(err) != codes.Canceled {
		t.Errorf("the stream ends before the body: %v; want Canceled", err)
	}
}

// TestOverload: beyond MaxConcurrent requests fail closed at once, and room is made again.
func TestOverload(t *testing.T) {
	b := startServer(t, extproc.Config{MaxConcurrent: 1, HoldLimit: 16})
	held := b.open(t.Context(), t, "")
	for _, r := range []*extprocv3.ProcessingRequest{headers(false, "POST"), body(`{"model":"m", "a`, false)} {
		if err := held.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := held.Recv(); err != nil { // released: the stream is there
		t.Fatal(err)
	}
	if _, err := exchange(b.open(t.Context(), t, ""), headers(true, "GET")); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the second request: %v; want ResourceExhausted", err)
	}
	if _, err := exchange(held, body(`":1}`, true)); err != nil {
		t.Errorf("the first request: %v", err)
	}
	if _, err := exchange(b.open(t.Context(), t, ""), headers(true, "GET")); err != nil {
		t.Errorf("the third request: %v", err)
	}
	metrics := gather(t, b.registry)
	for name, want := range map[string]float64{"inflight": 0, "requests_total overloaded": 1, "requests_total unread": 1, "requests_total released": 1} {
		if got := metrics["signalbox_extproc_"+name]; got != want {
			t.Errorf("metric %s is %v; want %v", name, got, want)
		}
	}
}

// gather returns every counter and gauge by its name and label values.
func gather(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

// FuzzExtProc sends any sequence of messages. Each is answered at most once, headers
// before body, nothing after a refusal; and no stream ends well without an answer.
func FuzzExtProc(f *testing.F) {
	for _, s := range []string{"hb", "HG", "hbbbbbbe", "he", "ht", "hbbbbbbt", "b", "hh", "hr", "hbbbbbbxE", "hbbbbbbxx", "c", "hc", "hbbbbbbc"} {
		f.Add(s, uint8(20))
	}
	b := startServer(f, extproc.Config{})
	pieces := strings.SplitAfter(`{"model":"llama","prompt":"a long, long text","n":[1,2,{"a":null}]}`, ",")
	f.Fuzz(func(t *testing.T, script string, limit uint8) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var in []*extprocv3.ProcessingRequest
		next := 0
		for _, op := range []byte(script[:min(len(script), 50)]) {
			piece := pieces[min(next, len(pieces)-1)]
			switch op {
			case 'h':
				in = append(in, headers(false, "POST"))
			case 'H':
				in = append(in, headers(true, "POST"))
			case 'G':
				in = append(in, headers(true, "GET"))
			case 'b', 'e':
				in, next = append(in, body(piece, op == 'e')), next+1
			case 'E':
				in = append(in, body("", true))
			case 'x':
				in = append(in, body(`,"model":"evil"`, false))
			case 't':
				in = append(in, trailers())
			case 'r':
				in = append(in, &extprocv3.ProcessingRequest{})
			case 'c':
				in = append(in, nil) // the client gives up
			}
		}
		stream := b.open(ctx, t, fmt.Sprint(max(limit, 1)))
		for _, r := range in {
			if r == nil {
				cancel()
			} else if stream.Send(r) != nil {
				break
			}
		}
		answers, err := exchange(stream)
		if err == nil && len(answers) == 0 {
			t.Fatalf("%q: the stream ended well without an answer", script)
		}
		said := strings.Fields(words(t, answers))
		if len(said) > max(len(in), 1)+1 {
			t.Fatalf("%q: %d messages, %d answers", script, len(in), len(said))
		}
		for i, word := range said {
			isHeaders := strings.HasPrefix(word, "set:") || word == "none"
			if isHeaders != (i == 0) || strings.HasPrefix(word, "400:") && i != len(said)-1 {
				t.Fatalf("%q: answers %q", script, said)
			}
		}
	})
}

// BenchmarkServer is one request through gRPC: client, server and a Unix-less loopback.
func BenchmarkServer(b *testing.B) {
	server := startServer(b, extproc.Config{})
	for _, n := range []int{300, 4 << 10, 32 << 10, 220 << 10, 1 << 20} {
		for _, first := range []bool{true, false} {
			text := chat(n, first)
			b.Run(fmt.Sprintf("%dB/first=%v", n, first), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(n))
				for b.Loop() {
					in := []*extprocv3.ProcessingRequest{headers(false, "POST", "content-type", "application/json")}
					for c := range slices.Chunk(text, 16<<10) {
						in = append(in, body(string(c), false))
					}
					if answers, err := exchange(server.open(b.Context(), b, ""), in...); err != nil || len(answers) != 1 {
						b.Fatal(answers, err)
					}
				}
			})
		}
	}
}
