package extproc_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"signalbox.dev/extproc"
	"signalbox.dev/extproc/contract"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortDir is a directory whose name leaves room for a socket's path (107 bytes).
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := extproc.Listen(t.Context(), "unix:"+path, false)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v; want 0600", info.Mode(), err)
	}
	if _, err := extproc.Listen(t.Context(), "unix:"+path, false); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a socket in use: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = extproc.Listen(t.Context(), "unix:"+path, false)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := extproc.Listen(t.Context(), "unix:"+path, false); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
}

func TestListenTCP(t *testing.T) {
	for _, c := range []struct {
		address string
		remote  bool
		ok      bool
	}{
		{"127.0.0.1:0", false, true}, {"[::1]:0", false, true}, {"localhost:0", false, true},
		{"0.0.0.0:0", false, false}, {":0", false, false}, {"[::]:0", false, false}, {"example.com:0", false, false},
		{"0.0.0.0:0", true, true}, {"127.0.0.1", false, false}, {"", false, false},
	} {
		l, err := extproc.Listen(t.Context(), c.address, c.remote)
		if (err == nil) != c.ok {
			t.Errorf("%q, remote %v: %v", c.address, c.remote, err)
		}
		if err == nil {
			_ = l.Close()
		}
	}
}

// running is a server, and a connection to it.
type running struct {
	conn   *grpc.ClientConn
	stop   context.CancelFunc
	served chan error
}

func start(t *testing.T, drain time.Duration) *running {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	r := &running{served: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	t.Cleanup(cancel)
	l, err := extproc.Listen(ctx, "unix:"+path, false)
	if err != nil {
		t.Fatal(err)
	}
	server, err := extproc.New(extproc.Config{DrainTimeout: drain})
	if err != nil {
		t.Fatal(err)
	}
	go func() { r.served <- server.Serve(ctx, l) }()
	if r.conn, err = grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	return r
}

// held opens a stream that the server has taken up: a body that is released.
func (r *running) held(t *testing.T) extprocv3.ExternalProcessor_ProcessClient {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(context.Background(), contract.KeyPart, contract.PartModel, contract.KeyHoldLimit, "12")
	stream, err := extprocv3.NewExternalProcessorClient(r.conn).Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	header := &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: ":method", RawValue: []byte("POST")}}}
	send(t, stream, &extprocv3.ProcessingRequest{
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: header}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: extprocfilter.ProcessingMode_STREAMED, SendBodyWithoutWaitingForHeaderResponse: true}})
	send(t, stream, bodyChunk(`{"model":"m"`))
	for range 2 { // the headers' answer, the chunk's
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	return stream
}

func send(t *testing.T, stream extprocv3.ExternalProcessor_ProcessClient, m *extprocv3.ProcessingRequest) {
	t.Helper()
	if err := stream.Send(m); err != nil {
		t.Fatal(err)
	}
}

func bodyChunk(text string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte(text)}}}
}

// TestDrain: after the stop the health service says so, and a stream in flight ends well.
func TestDrain(t *testing.T) {
	r := start(t, time.Minute)
	watch, err := healthv1.NewHealthClient(r.conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if up, err := watch.Recv(); err != nil || up.Status != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("%v, %v; want SERVING", up, err)
	}
	stream := r.held(t)
	r.stop()
	if down, err := watch.Recv(); err != nil || down.Status != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("%v, %v; want NOT_SERVING", down, err)
	}
	send(t, stream, bodyChunk(`}`))
	if _, err := stream.Recv(); err != nil {
		t.Errorf("the stream in flight: %v", err)
	}
	_ = r.conn.Close() // ends the watch
	if err := <-r.served; err != nil {
		t.Error(err)
	}
}

// TestDrainTimeout: a stream that does not end is cut, as an error.
func TestDrainTimeout(t *testing.T) {
	r := start(t, time.Millisecond)
	stream := r.held(t)
	r.stop()
	if err := <-r.served; err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream in flight: %v; want Unavailable", err)
	}
}

func TestParts(t *testing.T) {
	r := start(t, time.Second)
	for name, md := range map[string]metadata.MD{
		"none": {}, "unknown": metadata.Pairs(contract.KeyPart, "x"), "two": metadata.Pairs(contract.KeyPart, contract.PartModel, contract.KeyPart, contract.PartModel),
		"picker without its metadata": metadata.Pairs(contract.KeyPart, contract.PartPicker),
	} {
		stream, err := extprocv3.NewExternalProcessorClient(r.conn).Process(metadata.NewOutgoingContext(t.Context(), md))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v; want InvalidArgument", name, err)
		}
	}
	r.stop()
	if err := <-r.served; err != nil {
		t.Error(err)
	}
}

// TestRun: wrong configs and addresses are errors, and a stop is none.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := extproc.Run(ctx, extproc.Config{Listen: "unix:" + filepath.Join(shortDir(t), "s")}); err != nil {
		t.Error(err)
	}
	for _, c := range []extproc.Config{{Listen: "nowhere"}, {Listen: "127.0.0.1:0", HoldLimit: -1}, {Listen: "127.0.0.1:0", MaxConcurrent: -1}} {
		if err := extproc.Run(t.Context(), c); err == nil {
			t.Errorf("%+v runs", c)
		}
	}
}
