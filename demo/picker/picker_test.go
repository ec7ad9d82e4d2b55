package picker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nobody are endpoints where nobody listens: with them only the picker's own count of
// requests decides.
var nobody = []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}

// start runs a picker and returns a connection to it.
func start(t *testing.T, cfg Config) *grpc.ClientConn {
	t.Helper()
	conn, _ := startPicker(t, cfg)
	return conn
}

func startPicker(t *testing.T, cfg Config) (*grpc.ClientConn, *Picker) {
	t.Helper()
	cfg.Name = "test"
	if cfg.Endpoints == nil && cfg.EndpointsFile == "" {
		var err error
		if cfg.Endpoints, err = NewEndpoints(nobody...); err != nil {
			t.Fatal(err)
		}
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	creds := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	if cfg.Plaintext {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return conn, p
}

// request plays Envoy for one HTTP request.
type request struct {
	t      *testing.T
	stream extproc.ExternalProcessor_ProcessClient
	cancel context.CancelFunc
}

func open(t *testing.T, conn *grpc.ClientConn) *request {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	s, err := extproc.NewExternalProcessorClient(conn).Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &request{t, s, cancel}
}

// Envoy's messages.

func withHeaders(end bool, kv ...string) *extproc.ProcessingRequest {
	m := &core.HeaderMap{}
	for i := 0; i < len(kv); i += 2 {
		m.Headers = append(m.Headers, &core.HeaderValue{Key: kv[i], RawValue: []byte(kv[i+1])})
	}
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: m, EndOfStream: end}}}
}

func withBody(b string, end bool) *extproc.ProcessingRequest {
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestBody{RequestBody: &extproc.HttpBody{Body: []byte(b), EndOfStream: end}}}
}

func withTrailers() *extproc.ProcessingRequest {
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestTrailers{RequestTrailers: &extproc.HttpTrailers{}}}
}

func withResponse(served *structpb.Struct) *extproc.ProcessingRequest {
	m := &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extproc.HttpHeaders{}}}
	if served != nil {
		m.MetadataContext = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{namespaceLB: served}}
	}
	return m
}

func withResponseBody(b string, end bool) *extproc.ProcessingRequest {
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_ResponseBody{ResponseBody: &extproc.HttpBody{Body: []byte(b), EndOfStream: end}}}
}

// announce adds the body modes, as Envoy does with its first message.
func announce(m *extproc.ProcessingRequest, requests, responses filter.ProcessingMode_BodySendMode) *extproc.ProcessingRequest {
	m.ProtocolConfig = &extproc.ProtocolConfiguration{RequestBodyMode: requests, ResponseBodyMode: responses}
	return m
}

// hint adds a subset hint: a list, or one string.
func hint(t *testing.T, m *extproc.ProcessingRequest, subset any) *extproc.ProcessingRequest {
	t.Helper()
	s, err := structpb.NewStruct(map[string]any{keySubset: subset})
	if err != nil {
		t.Fatal(err)
	}
	m.MetadataContext = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{namespaceSubset: s}}
	return m
}

func (r *request) send(messages ...*extproc.ProcessingRequest) *request {
	r.t.Helper()
	for _, m := range messages {
		if err := r.stream.Send(m); err != nil {
			r.t.Fatal(err)
		}
	}
	return r
}

func (r *request) recv() *extproc.ProcessingResponse {
	r.t.Helper()
	m, err := r.stream.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// picked checks that header and metadata of an answer agree and returns the endpoints.
func picked(t *testing.T, c *extproc.CommonResponse, metadata *structpb.Struct) []string {
	t.Helper()
	var header string
	for _, h := range c.GetHeaderMutation().GetSetHeaders() {
		if h.Header.Key == keyDestination {
			header = string(h.Header.RawValue)
		}
	}
	said := metadata.GetFields()[namespaceLB].GetStructValue().GetFields()[keyDestination].GetStringValue()
	if header == "" || header != said {
		t.Fatalf("header says %q, metadata %q", header, said)
	}
	return strings.Split(header, ",")
}

// pick receives the answer to the headers and returns the endpoints.
func (r *request) pick() []string {
	r.t.Helper()
	m := r.recv()
	if m.GetRequestHeaders() == nil {
		r.t.Fatalf("want the headers' answer, got %v", m)
	}
	return picked(r.t, m.GetRequestHeaders().GetResponse(), m.DynamicMetadata)
}

// body receives chunks until the end of the stream, or n bytes.
func (r *request) body(of func(*extproc.ProcessingResponse) *extproc.BodyResponse, n int) string {
	r.t.Helper()
	var b bytes.Buffer
	for {
		m := r.recv()
		c := of(m).GetResponse().GetBodyMutation().GetStreamedResponse()
		if c == nil {
			r.t.Fatalf("want a streamed body, got %v", m)
		}
		if len(c.Body) > 62000 {
			r.t.Errorf("a chunk of %d bytes", len(c.Body))
		}
		b.Write(c.Body)
		if c.EndOfStream || n > 0 && b.Len() == n {
			return b.String()
		}
	}
}

// closed checks that the picker ends the stream with this code.
func (r *request) closed(code codes.Code) {
	r.t.Helper()
	m, err := r.stream.Recv()
	if code == codes.OK && !errors.Is(err, io.EOF) || code != codes.OK && status.Code(err) != code {
		r.t.Errorf("want the stream to end with %v, got %v, %v", code, m, err)
	}
}

// refused checks that the picker answers the request itself, and ends the stream.
func (r *request) refused(code int, reason string) {
	r.t.Helper()
	m := r.recv()
	if got := int(m.GetImmediateResponse().GetStatus().GetCode()); got != code {
		r.t.Fatalf("want status %d, got %v", code, m)
	}
	got := map[string]string{}
	for _, h := range m.GetImmediateResponse().GetHeaders().GetSetHeaders() {
		got[h.Header.Key] = string(h.Header.RawValue)
	}
	want := map[string]string{HeaderPicker: "test"}
	if reason != "" {
		want[headerDropped] = reason
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Error(diff)
	}
	r.closed(codes.OK)
}

func TestFullDuplex(t *testing.T) {
	conn := start(t, Config{})
	long := `{"model":"m","prompt":"` + strings.Repeat("x", 200_000) + `"}`
	for _, tt := range []struct {
		name     string
		messages []*extproc.ProcessingRequest
		body     string
		trailers bool
	}{
		{name: "no body", messages: []*extproc.ProcessingRequest{withHeaders(true)}},
		{name: "one message", messages: []*extproc.ProcessingRequest{withHeaders(false), withBody(long, true)}, body: long},
		{name: "several messages", messages: []*extproc.ProcessingRequest{withHeaders(false), withBody(long[:100], false), withBody(long[100:], false), withBody("", true)}, body: long},
		{name: "second end of stream", messages: []*extproc.ProcessingRequest{withHeaders(false), withBody(long, true), withBody("", true)}, body: long},
		{name: "not JSON", messages: []*extproc.ProcessingRequest{withHeaders(false), withBody("]", true)}, body: "]"},
		{name: "trailers", messages: []*extproc.ProcessingRequest{withHeaders(false), withBody(long, false), withTrailers()}, body: long, trailers: true},
		{name: "trailers, no body", messages: []*extproc.ProcessingRequest{withHeaders(false), withTrailers()}, trailers: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := open(t, conn).send(tt.messages...)
			endpoint := r.pick()
			if len(endpoint) != 1 || !slices.Contains(nobody, endpoint[0]) {
				t.Errorf("picked %q", endpoint)
			}
			if tt.body != "" {
				n := 0
				if tt.trailers {
					n = len(tt.body) // the trailers are the end
				}
				if got := r.body((*extproc.ProcessingResponse).GetRequestBody, n); got != tt.body {
					t.Errorf("body of %d bytes came back as %d", len(tt.body), len(got))
				}
			}
			if tt.trailers && r.recv().GetRequestTrailers() == nil {
				t.Error("trailers were not answered")
			}
			served, _ := structpb.NewStruct(map[string]any{keyServed: endpoint[0]})
			r.send(withResponse(served), withResponseBody(long, false), withResponseBody("end", true))
			if diff := cmp.Diff(map[string]string{headerServed: endpoint[0], HeaderPicker: "test"}, responseHeaders(t, r.recv())); diff != "" {
				t.Error(diff)
			}
			if got := r.body((*extproc.ProcessingResponse).GetResponseBody, 0); got != long+"end" {
				t.Errorf("response came back with %d bytes", len(got))
			}
			r.send(&extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extproc.HttpTrailers{}}})
			if r.recv().GetResponseTrailers() == nil {
				t.Error("response trailers were not answered")
			}
			r.stream.CloseSend()
			r.closed(codes.OK)
		})
	}
}

func responseHeaders(t *testing.T, m *extproc.ProcessingResponse) map[string]string {
	t.Helper()
	if m.GetResponseHeaders() == nil {
		t.Fatalf("want the response headers' answer, got %v", m)
	}
	out := map[string]string{}
	for _, h := range m.GetResponseHeaders().GetResponse().GetHeaderMutation().GetSetHeaders() {
		out[h.Header.Key] = string(h.Header.RawValue)
	}
	return out
}

// In each body mode that Envoy can announce the pick arrives, and every message is
// answered in the mode's own way.
func TestOtherBodyModes(t *testing.T) {
	conn := start(t, Config{})
	for _, mode := range []filter.ProcessingMode_BodySendMode{filter.ProcessingMode_STREAMED, filter.ProcessingMode_NONE} {
		t.Run(mode.String(), func(t *testing.T) {
			r := open(t, conn).send(announce(withHeaders(false), mode, mode))
			r.pick()
			if mode == filter.ProcessingMode_STREAMED {
				r.send(withBody("a", false), withBody("b", true))
				for range 2 {
					if m := r.recv(); m.GetRequestBody() == nil || m.GetRequestBody().GetResponse().GetBodyMutation() != nil {
						t.Errorf("got %v", m)
					}
				}
			}
			r.send(withResponse(nil), withResponseBody("a", true))
			responseHeaders(t, r.recv())
			if m := r.recv(); m.GetResponseBody() == nil || m.GetResponseBody().GetResponse().GetBodyMutation() != nil {
				t.Errorf("got %v", m)
			}
		})
	}
	buffered := filter.ProcessingMode_BUFFERED
	t.Run("BUFFERED", func(t *testing.T) {
		r := open(t, conn).send(announce(withHeaders(false), buffered, buffered))
		if m := r.recv(); m.GetRequestHeaders() == nil || m.DynamicMetadata != nil {
			t.Errorf("headers must be answered for the body to come: %v", m)
		}
		r.send(withBody(`{"model":"m"}`, true))
		m := r.recv()
		picked(t, m.GetRequestBody().GetResponse(), m.DynamicMetadata)
	})
	t.Run("BUFFERED no body", func(t *testing.T) {
		open(t, conn).send(announce(withHeaders(true), buffered, buffered)).pick()
	})
	t.Run("BUFFERED headers skipped", func(t *testing.T) {
		m := open(t, conn).send(announce(withBody(`{"model":"m"}`, true), buffered, buffered)).recv()
		picked(t, m.GetRequestBody().GetResponse(), m.DynamicMetadata)
	})
	t.Run("BUFFERED trailers only", func(t *testing.T) {
		r := open(t, conn).send(announce(withHeaders(false), buffered, buffered), withTrailers())
		r.recv()
		if m := r.recv(); m.GetRequestTrailers() == nil || m.DynamicMetadata == nil {
			t.Errorf("got %v", m)
		}
	})
}

func TestWrongProtocol(t *testing.T) {
	conn := start(t, Config{})
	open(t, conn).send(withHeaders(false), withHeaders(false)).closed(codes.InvalidArgument)
	open(t, conn).send(withBody("x", true)).closed(codes.FailedPrecondition)
	open(t, conn).send(&extproc.ProcessingRequest{}).closed(codes.InvalidArgument)
}

func TestWhoMayBePicked(t *testing.T) {
	endpoints, err := NewEndpoints("127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:1", "[::1]:5")
	if err != nil {
		t.Fatal(err)
	}
	conn := start(t, Config{Endpoints: endpoints, MaxEndpoints: 10})
	for _, tt := range []struct {
		name string
		m    *extproc.ProcessingRequest
		want []string // nil: 503
	}{
		{"all", withHeaders(true), []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:1", "[::1]:5"}},
		{"list", hint(t, withHeaders(true), []any{"127.0.0.1:2", "[::1]:5", "10.0.0.1:2"}), []string{"127.0.0.1:2", "[::1]:5"}},
		{"string", hint(t, withHeaders(true), "127.0.0.1:2, 127.0.0.2:1"), []string{"127.0.0.1:2", "127.0.0.2:1"}},
		{"bare address", hint(t, withHeaders(true), []any{"127.0.0.1"}), []string{"127.0.0.1:1", "127.0.0.1:2"}},
		{"bare IPv6", hint(t, withHeaders(true), "::1"), []string{"[::1]:5"}},
		{"nobody left", hint(t, withHeaders(true), []any{"10.0.0.1:2"}), nil},
		{"empty hint", hint(t, withHeaders(true), []any{}), nil},
		{"selection", withHeaders(true, "Test-EPP-Endpoint-Selection", "127.0.0.2"), []string{"127.0.0.2:1"}},
		{"selection beats subset", hint(t, withHeaders(true, headerSelection, "127.0.0.1:1"), []any{"127.0.0.1:2"}), []string{"127.0.0.1:1"}},
		{"selection of nobody", withHeaders(true, headerSelection, "127.0.0.9"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := open(t, conn).send(tt.m)
			if tt.want == nil {
				r.refused(503, "rejected-no-endpoints")
				return
			}
			got := r.pick()
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMaxEndpoints(t *testing.T) {
	if got := open(t, start(t, Config{MaxEndpoints: 2})).send(withHeaders(true)).pick(); len(got) != 2 || got[0] == got[1] {
		t.Errorf("picked %q", got)
	}
}

func TestBodyTooLarge(t *testing.T) {
	r := open(t, start(t, Config{MaxBody: 10}))
	r.send(withHeaders(false), withBody("12345", false), withBody("123456", false)).refused(413, "")
}

// What was sent and is not over counts; what ended does not.
func TestSpreads(t *testing.T) {
	conn, p := startPicker(t, Config{})
	seen := map[string]*request{}
	for range nobody {
		r := open(t, conn).send(withHeaders(true))
		seen[r.pick()[0]] = r
	}
	if len(seen) != len(nobody) {
		t.Fatalf("three requests at once went to %d endpoints", len(seen))
	}
	seen[nobody[1]].stream.CloseSend()
	seen[nobody[1]].closed(codes.OK)
	for range 3 { // whoever's turn it is, the idle one is best
		r := open(t, conn).send(withHeaders(true))
		if got := r.pick(); got[0] != nobody[1] {
			t.Errorf("picked %q, idle is %s", got, nobody[1])
		}
		// The gateway used another one: the trip counts there.
		served, _ := structpb.NewStruct(map[string]any{keyServed: nobody[0]})
		r.send(withResponse(served)).recv()
	}
	p.fleet.mu.Lock()
	defer p.fleet.mu.Unlock()
	if got := p.fleet.trips[nobody[0]][""]; got != 4 {
		t.Errorf("%d requests count at %s, want 4", got, nobody[0])
	}
}

func TestSheds(t *testing.T) {
	conn := start(t, Config{QueueLimit: 1})
	for range nobody {
		open(t, conn).send(withHeaders(true, objectiveHeaders[1], sheddable)).pick()
	}
	for _, name := range objectiveHeaders {
		open(t, conn).send(withHeaders(true, name, sheddable)).refused(429, "rejected-saturated")
	}
	open(t, conn).send(withHeaders(true, objectiveHeaders[1], "critical")).pick()
	open(t, conn).send(withHeaders(true)).pick()
}

func TestServedFeedback(t *testing.T) {
	conn, p := startPicker(t, Config{})
	empty := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for want, lb := range map[string]*structpb.Struct{"fail: missing envoy lb metadata": nil, "fail: missing destination endpoint served metadata": empty} {
		if got := responseHeaders(t, open(t, conn).send(withResponse(lb)).recv()); got[headerServed] != want {
			t.Errorf("%q, want %q", got[headerServed], want)
		}
	}
	r := open(t, conn).send(withHeaders(false), withBody("", true), withBody("", true))
	e := r.pick()[0]
	served, _ := structpb.NewStruct(map[string]any{keyServed: e})
	r.send(withResponse(served))
	r.recv() // the end of the body
	r.recv()
	open(t, conn).send(withHeaders(true, headerSelection, "10.0.0.1")).refused(503, "rejected-no-endpoints")
	families, err := p.Metrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{"demo_picker_picks_total " + e: 1, "demo_picker_served_total " + e: 1, "demo_picker_refused_total 503": 1, "demo_picker_second_end_of_stream_total": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestHealth(t *testing.T) {
	file := filepath.Join(t.TempDir(), "endpoints")
	conn := start(t, Config{EndpointsFile: file, Plaintext: true})
	check := func(service string) healthpb.HealthCheckResponse_ServingStatus {
		resp, err := healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Status
	}
	names := []string{"", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"}
	for _, n := range names {
		if got := check(n); got != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Errorf("%q is %v before endpoints are known", n, got)
		}
	}
	if got := check("liveness"); got != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("liveness is %v", got)
	}
	open(t, conn).send(withHeaders(true)).refused(503, "rejected-no-endpoints")
	if err := os.WriteFile(file, []byte("# two pods\n127.0.0.1:1  127.0.0.1:2 # here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, n := range names {
		w, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: n})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := w.Recv()
			if err != nil {
				t.Fatalf("%q is not ready: %v", n, err)
			}
			if m.Status == healthpb.HealthCheckResponse_SERVING {
				break
			}
		}
	}
	open(t, conn).send(withHeaders(true)).pick()
}
