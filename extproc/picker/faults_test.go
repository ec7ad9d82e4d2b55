package picker

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"signalbox.dev/extproc/contract"
)

// fault is a way in which a picker fails. It returns how the relay is told to reach it.
type fault struct {
	name   string
	picker func(t *testing.T) contract.Picker
	from   int // the smallest body that it happens to
}

// Sizes of bodies, bytes.
const (
	none   = -1
	small  = 300
	large  = 1 << 20
	larger = 8 << 20
)

// replies is a picker that does as f says at a phase.
func replies(at string, f func(s extprocv3.ExternalProcessor_ProcessServer) error) func(t *testing.T) contract.Picker {
	return scriptedAs(&scripted{replyTo: func(s extprocv3.ExternalProcessor_ProcessServer, phase string) error {
		if phase == at {
			return f(s)
		}
		return nil
	}})
}

func scriptedAs(p *scripted) func(t *testing.T) contract.Picker {
	return func(t *testing.T) contract.Picker { return at(listen(t, p.process)) }
}

func says(m *toEnvoy) func(s extprocv3.ExternalProcessor_ProcessServer) error {
	return func(s extprocv3.ExternalProcessor_ProcessServer) error {
		_ = s.Send(m)
		<-s.Context().Done()
		return s.Context().Err()
	}
}

func endsWith(err error) func(extprocv3.ExternalProcessor_ProcessServer) error {
	return func(extprocv3.ExternalProcessor_ProcessServer) error { return err }
}

var broken = status.Error(codes.Unavailable, "test fault")

var faults = []fault{
	{"no endpoint", func(*testing.T) contract.Picker { return at() }, none},
	{"refusing", func(t *testing.T) contract.Picker { return at(closedPort(t)) }, none},
	{"blackholed", func(t *testing.T) contract.Picker { return at(blackhole(t)) }, none},
	{"accepts and is silent", func(t *testing.T) contract.Picker { return at(silent(t)) }, none},
	{"hangs", func(t *testing.T) contract.Picker {
		l := newFreezer(t)
		p := &scripted{replyTo: func(extprocv3.ExternalProcessor_ProcessServer, string) error { l.freeze(); return nil }}
		return l.serve(t, p)
	}, none},
	{"hangs before it reads", func(t *testing.T) contract.Picker {
		l := newFreezer(t)
		p := &scripted{seen: func(*fromEnvoy) { l.freeze() }}
		return l.serve(t, p)
	}, none},
	{"plaintext where TLS is said", func(t *testing.T) contract.Picker {
		c := at(listen(t, (&scripted{}).process))
		c.TLS = contract.TLSInsecure
		return c
	}, none},
	{"TLS where plaintext is said", func(t *testing.T) contract.Picker {
		cert, _ := selfSigned(t)
		return at(listen(t, (&scripted{}).process, grpc.Creds(credentials.NewServerTLSFromCert(&cert))))
	}, none},
	{"a certificate of another CA", func(t *testing.T) contract.Picker {
		cert, _ := selfSigned(t)
		_, other := selfSigned(t)
		c := at(listen(t, (&scripted{}).process, grpc.Creds(credentials.NewServerTLSFromCert(&cert))))
		c.TLS, c.CA, c.ServerName = contract.TLSVerify, other, "epp.test"
		return c
	}, none},
	{"a CA that is none", func(t *testing.T) contract.Picker {
		c := at("127.0.0.1:1")
		c.TLS, c.CA = contract.TLSVerify, []byte("no PEM")
		return c
	}, none},
	{"not gRPC", func(t *testing.T) contract.Picker { return at(garbage(t)) }, none},
	{"error at once", replies(beforeHeaders, endsWith(broken)), none},
	{"OK at once", replies(beforeHeaders, endsWith(errOK)), none},
	{"error after the headers", replies(afterHeaders, endsWith(broken)), small},
	{"OK after the headers", replies(afterHeaders, endsWith(errOK)), small},
	{"error in the body", replies(midBody, endsWith(broken)), small},
	{"OK in the body", replies(midBody, endsWith(errOK)), small},
	{"OK in a body that it changes", scriptedAs(&scripted{rewrite: func(b []byte) []byte { return append([]byte("{"), b...) },
		replyTo: func(_ extprocv3.ExternalProcessor_ProcessServer, phase string) error {
			if phase == midBody {
				return errOK
			}
			return nil
		}}), small},
	{"OK in the body, piece by piece", scriptedAs(&scripted{atOnce: true, replyTo: func(_ extprocv3.ExternalProcessor_ProcessServer, phase string) error {
		if phase == midBody {
			return errOK
		}
		return nil
	}}), small},
	{"a body reply that is not streamed", replies(afterHeaders, says(requestSide.body(&extprocv3.BodyResponse{}))), small},
	{"a body in the way of BUFFERED", replies(afterHeaders, says(requestSide.body(&extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{
		BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: []byte("x")}}}}))), small},
	{"the body before the headers", replies(beforeHeaders, says(requestSide.piece(nil, true))), none},
	{"the end before the client's", scriptedAs(&scripted{atOnce: true, replyTo: func(s extprocv3.ExternalProcessor_ProcessServer, phase string) error {
		if phase == afterHeaders {
			return says(requestSide.piece(nil, true))(s)
		}
		return nil
	}}), large},
	{"the headers twice", replies(afterHeaders, says(requestSide.headers(nil))), small},
	{"response headers", replies(beforeHeaders, says(responseSide.headers(nil))), none},
	{"trailers", replies(beforeHeaders, says(requestSide.trailers())), none},
	{"nothing in a message", replies(beforeHeaders, says(&toEnvoy{})), none},
	{"a mode override", replies(beforeHeaders, says(&toEnvoy{Response: picks(nil, nil, pod).Response, ModeOverride: &filterv3.ProcessingMode{}})), none},
	{"a streamed immediate response", replies(beforeHeaders, says(&toEnvoy{Response: &extprocv3.ProcessingResponse_StreamedImmediateResponse{}})), none},
	{"replace", replies(beforeHeaders, says(requestSide.headers(&extprocv3.CommonResponse{Status: extprocv3.CommonResponse_CONTINUE_AND_REPLACE}))), none},
	{"an illegal header value", replies(beforeHeaders, says(picks(nil, map[string]string{"x-a": "b\r\nc: d"}, pod))), none},
	{"an illegal header name", replies(beforeHeaders, says(picks(nil, map[string]string{"x a": "b"}, pod))), none},
	{"an illegal header in its own answer", replies(beforeHeaders, says(&toEnvoy{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{Headers: again(fields{"x a": {"b"}}, nil)}}})), none},
	{"two picks that differ", replies(beforeHeaders, says(&toEnvoy{Response: picks(nil, nil, pod).Response, DynamicMetadata: pickedIn("10.0.0.2:8000")})), none},
	{"a pick that is no header value", replies(beforeHeaders, says(&toEnvoy{Response: requestSide.headers(nil).Response, DynamicMetadata: pickedIn("a\nb")})), none},
}

// TestFaults: FailOpen goes on without the picker, with the whole body; FailClose is 503,
// and no pod sees a byte.
func TestFaults(t *testing.T) {
	for _, f := range faults {
		for _, size := range []int{none, small, large, larger} {
			if size < f.from {
				continue
			}
			t.Run(f.name+"/"+map[int]string{none: "GET", small: "300 B", large: "1 MiB", larger: "8 MiB"}[size], func(t *testing.T) {
				t.Parallel()
				x := exchange{respBody: [][]byte{bytesOf(70000), []byte("end")}}
				if size != none {
					x.body, x.hasBody, x.trailers = bytesOf(size), true, size == small
				}
				g := hurried(t, Config{})
				cfg := f.picker(t)
				checkFailClose(t, g.do(t.Context(), t, cfg, x))
				checkFailOpen(t, g.do(t.Context(), t, open(f.picker(t)), x), x)
				g.settled(t)
			})
		}
	}
}

func checkFailOpen(t *testing.T, o *outcome, x exchange) {
	t.Helper()
	if o.status() != 200 || !o.whole || !bytes.Equal(o.body, x.body) || o.trailers != x.trailers || o.pick() != "" {
		t.Errorf("FailOpen: status %d (%v), %d of %d bytes, whole %v, trailers %v, pick %q",
			o.status(), o.err, len(o.body), len(x.body), o.whole, o.trailers, o.pick())
	}
	if m := o.req.GetResponse().GetHeaderMutation(); m != nil {
		t.Errorf("FailOpen: headers changed: %v", m)
	}
	if !bytes.Equal(o.respBody, bytes.Join(x.respBody, nil)) {
		t.Errorf("FailOpen: response of %d bytes", len(o.respBody))
	}
}

func checkFailClose(t *testing.T, o *outcome) {
	t.Helper()
	if o.status() != 503 || o.released || o.body != nil {
		t.Errorf("FailClose: status %d (%v), headers given on %v, %d bytes", o.status(), o.err, o.released, len(o.body))
		return
	}
	var body struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal(o.immediate.GetBody(), &body); err != nil || body.Error.Code != "endpoint_picker_unavailable" || body.Error.Message == "" {
		t.Errorf("FailClose: body %s: %v", o.immediate.GetBody(), err)
	}
	if h := o.immediate.GetHeaders().GetSetHeaders(); len(h) != 1 || string(h[0].GetHeader().GetRawValue()) != "application/json" {
		t.Errorf("FailClose: headers %v", h)
	}
}

// TestKnownAtOnce: a picker without endpoints, or found dead before, costs no time.
func TestKnownAtOnce(t *testing.T) {
	g := hurried(t, Config{})
	dead := at(silent(t))
	for range 3 { // the first waits for two missed probes, the others know
		begin := time.Now()
		checkFailClose(t, g.do(t.Context(), t, dead, post(bytesOf(300))))
		took := time.Since(begin)
		if known := g.deaths() > 0 && took < 100*time.Millisecond; !known && took < 500*time.Millisecond {
			t.Errorf("given up after %v, before two probes could be missed", took)
		}
	}
	if got := gauge(g.metrics.failures.WithLabelValues(string(reasonSilent))); got != 1 {
		t.Errorf("%v requests waited for a picker to be found dead; want 1", got)
	}
}

// deaths is how many pickers are out of use.
func (g *gateway) deaths() (n int) {
	g.remotes.mu.Lock()
	defer g.remotes.mu.Unlock()
	for _, r := range g.remotes.m {
		if r.dead.Load() {
			n++
		}
	}
	return n
}

func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// blackhole is an address where connections neither succeed nor fail: the queue of its
// socket is full.
func blackhole(t *testing.T) string {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*syscall.SockaddrInet4).Port}).String()
	for {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}

// silent accepts connections and never says a word.
func silent(t *testing.T) string {
	return accept(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1))
		for {
			if _, err := c.Read(make([]byte, 4096)); err != nil {
				return
			}
		}
	})
}

// garbage answers with something that is no HTTP/2.
func garbage(t *testing.T) string {
	return accept(t, func(c net.Conn) {
		_, _ = c.Write([]byte("220 mail.test ESMTP ready\r\n"))
		_, _ = c.Read(make([]byte, 4096))
	})
}

func accept(t *testing.T, f func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			all.Go(func() { defer c.Close(); f(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}

// freezer is a listener whose process can be stopped: as with SIGSTOP, the kernel still
// accepts and takes bytes, and nobody reads or writes.
type freezer struct {
	net.Listener
	mu     sync.Mutex
	frozen chan struct{} // nil: runs; closed when it runs on
	over   bool          // it cannot be stopped any more
}

func newFreezer(t *testing.T) *freezer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &freezer{Listener: l}
}

// serve serves a picker that can be frozen.
func (f *freezer) serve(t *testing.T, p *scripted) contract.Picker {
	c := at(listenOn(t, f, p.process))
	t.Cleanup(func() { // before the server is stopped
		f.thaw()
		f.mu.Lock()
		defer f.mu.Unlock()
		f.over = true
	})
	return c
}

func (f *freezer) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen == nil && !f.over {
		f.frozen = make(chan struct{})
	}
}

func (f *freezer) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen != nil {
		close(f.frozen)
		f.frozen = nil
	}
}

func (f *freezer) wait() {
	f.mu.Lock()
	c := f.frozen
	f.mu.Unlock()
	if c != nil {
		<-c
	}
}

func (f *freezer) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return frozenConn{c, f}, nil
}

type frozenConn struct {
	net.Conn
	f *freezer
}

func (c frozenConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.f.wait()
	return n, err
}

func (c frozenConn) Write(b []byte) (int, error) {
	c.f.wait()
	return c.Conn.Write(b)
}

// selfSigned returns a certificate for epp.test, and its PEM.
func selfSigned(t testing.TB) (tls.Certificate, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "epp.test"}, DNSNames: []string{"epp.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
