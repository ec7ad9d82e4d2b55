package picker

import (
	"bytes"
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"signalbox.dev/extproc/contract"
)

// TestNextEndpoint: what fails at one endpoint of a picker is asked of another, even in
// the middle of a body, and the client notices nothing.
func TestNextEndpoint(t *testing.T) {
	for name, bad := range map[string]func(t *testing.T) contract.Picker{
		"refusing": func(t *testing.T) contract.Picker { return at(closedPort(t)) },
		"silent":   func(t *testing.T) contract.Picker { return at(silent(t)) },
		"error":    replies(beforeHeaders, endsWith(broken)),
		"closes":   replies(midBody, endsWith(errOK)),
		"garbage":  replies(afterHeaders, says(requestSide.body(nil))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := hurried(t, Config{})
			good := &scripted{}
			cfg := at(bad(t).Endpoints[0], bad(t).Endpoints[0], listen(t, good.process))
			x := exchange{body: bytesOf(large), hasBody: true, trailers: true}
			for range 4 {
				o := g.do(t.Context(), t, cfg, x)
				if o.status() != 200 || !bytes.Equal(o.body, x.body) || !o.trailers || o.pick() != pod {
					t.Fatalf("status %d, %d bytes, pick %q", o.status(), len(o.body), o.pick())
				}
			}
			if good.streams.Load() != 4 {
				t.Errorf("the good endpoint was asked %d times", good.streams.Load())
			}
			g.settled(t)
		})
	}
}

// TestAttemptsAreBounded: a pool with many broken endpoints does not ask them all.
func TestAttemptsAreBounded(t *testing.T) {
	g := newGateway(t, Config{})
	p := &scripted{replyTo: func(extprocv3.ExternalProcessor_ProcessServer, string) error { return broken }}
	var endpoints []string
	for range 2 * maxAttempts {
		endpoints = append(endpoints, listen(t, p.process))
	}
	checkFailClose(t, g.do(t.Context(), t, at(endpoints...), post(bytesOf(small))))
	if got := p.streams.Load(); got != maxAttempts {
		t.Errorf("%d endpoints asked; want %d", got, maxAttempts)
	}
}

// TestSpread: requests that wait at the same time are spread evenly.
func TestSpread(t *testing.T) {
	g := newGateway(t, Config{})
	release := make(chan struct{})
	var pickers [3]scripted
	var endpoints []string
	for i := range pickers {
		pickers[i].replyTo = func(_ extprocv3.ExternalProcessor_ProcessServer, phase string) error {
			if phase == beforeHeaders {
				<-release
			}
			return nil
		}
		endpoints = append(endpoints, listen(t, pickers[i].process))
	}
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() { g.do(t.Context(), t, at(endpoints...), post(bytesOf(small))) })
		waitFor(t, "it waits", func() bool { return g.waiting() == i+1 })
	}
	for i := range pickers {
		if n := pickers[i].streams.Load(); n < 9 || n > 11 {
			t.Errorf("endpoint %d got %d of 30 requests", i, n)
		}
	}
	close(release)
	all.Wait()
}

// TestTLS: the ways of dialling, each with its probe.
func TestTLS(t *testing.T) {
	cert, ca := selfSigned(t)
	secure := listen(t, (&scripted{}).process, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	plain := listen(t, (&scripted{}).process)
	for name, cfg := range map[string]contract.Picker{
		"plaintext": {Endpoints: []string{plain}, TLS: contract.TLSPlaintext},
		"insecure":  {Endpoints: []string{secure}, TLS: contract.TLSInsecure},
		"verify":    {Endpoints: []string{secure}, TLS: contract.TLSVerify, CA: ca, ServerName: "epp.test"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, Config{})
			cfg.Pool = "ns/pool"
			if o := g.do(t.Context(), t, cfg, post(bytesOf(large))); o.status() != 200 || o.pick() != pod {
				t.Errorf("status %d, pick %q", o.status(), o.pick())
			}
			r, err := g.remotes.get(cfg.Endpoints[0], cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer g.remotes.put(r)
			if err := r.ping(t.Context()); err != nil {
				t.Errorf("probe: %v", err)
			}
			bad := cfg
			if bad.ServerName = "other.test"; cfg.TLS == contract.TLSVerify {
				checkFailClose(t, g.do(t.Context(), t, bad, post(bytesOf(small))))
			}
		})
	}
}

// TestWhatThePickerGets: everything that Envoy says, unchanged, and the protocol that is
// really spoken.
func TestWhatThePickerGets(t *testing.T) {
	var mu sync.Mutex
	var got []*fromEnvoy
	p := &scripted{seen: func(m *fromEnvoy) { mu.Lock(); got = append(got, m); mu.Unlock() }}
	g := newGateway(t, Config{})
	cfg := at(listen(t, p.process))
	x := exchange{headers: [][2]string{{"x-a", "1"}, {"x-a", "2"}}, body: bytesOf(small), hasBody: true, trailers: true,
		subset: "10.0.0.1:8000,10.0.0.2:8000", respBody: tokens(1), respTrailers: true}
	g.do(t.Context(), t, cfg, x)
	g.settled(t)
	mu.Lock()
	defer mu.Unlock()
	if len(got) < 4 {
		t.Fatalf("the picker got %d messages", len(got))
	}
	first := got[0]
	if c := first.GetProtocolConfig(); c.GetRequestBodyMode() != filterv3.ProcessingMode_FULL_DUPLEX_STREAMED || c.GetResponseBodyMode() != filterv3.ProcessingMode_FULL_DUPLEX_STREAMED {
		t.Errorf("protocol_config %v", c)
	}
	if v := first.GetMetadataContext().GetFilterMetadata()[contract.MetadataSubsetHint].GetFields()[contract.KeySubset].GetStringValue(); v != x.subset {
		t.Errorf("subset hint %q", v)
	}
	if f := fieldsOf(first.GetRequestHeaders().GetHeaders()); !slices.Equal(f["x-a"], []string{"1", "2"}) || f.first(":path") == "" {
		t.Errorf("headers %v", f)
	}
	ends := 0
	for _, m := range got {
		if m.GetRequestTrailers() != nil || m.GetResponseTrailers() != nil {
			t.Error("the picker got trailers")
		}
		if m.GetRequestBody().GetEndOfStream() || m.GetResponseBody().GetEndOfStream() {
			ends++
		}
		if m.GetResponseHeaders() != nil {
			if v := m.GetMetadataContext().GetFilterMetadata()[contract.MetadataLB].GetFields()[contract.KeyServed].GetStringValue(); v != pod {
				t.Errorf("served %q", v)
			}
		}
	}
	if ends != 2 {
		t.Errorf("%d ends of bodies; want 2", ends)
	}
}

// TestChangedBody: a body that the picker rewrites is taken as it is, whatever its length;
// content-length goes, unless the body is the client's.
func TestChangedBody(t *testing.T) {
	in := bytesOf(200000)
	for name, out := range map[string][]byte{
		"same": in, "shorter": in[:130000], "empty": {}, "longer": append(slices.Clone(in), "tail"...),
		"other": bytes.Repeat([]byte("x"), 70000), "one byte": append(slices.Clone(in[:150000]), append([]byte{'X'}, in[150001:]...)...),
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, Config{})
			p := &scripted{rewrite: func([]byte) []byte { return out }, headers: map[string]string{"content-length": "7"}}
			x := exchange{headers: [][2]string{{"content-length", "200000"}}, body: in, hasBody: true}
			o := g.do(t.Context(), t, at(listen(t, p.process)), x)
			if o.status() != 200 || !bytes.Equal(o.body, out) {
				t.Errorf("status %d, %d bytes; want %d", o.status(), len(o.body), len(out))
			}
			removed := slices.Contains(o.req.GetResponse().GetHeaderMutation().GetRemoveHeaders(), "content-length")
			if removed != (name != "same") || len(o.set("content-length")) != 0 {
				t.Errorf("content-length removed %v, set %q", removed, o.set("content-length"))
			}
			g.settled(t)
		})
	}
}

// TestPickTimeout bounds picking, over all endpoints together.
func TestPickTimeout(t *testing.T) {
	think := &scripted{replyTo: func(s extprocv3.ExternalProcessor_ProcessServer, _ string) error { <-s.Context().Done(); return errOK }}
	g := newGateway(t, Config{})
	cfg := at(listen(t, think.process), listen(t, think.process))
	cfg.PickTimeout = 50 * time.Millisecond
	checkFailClose(t, g.do(t.Context(), t, cfg, post(bytesOf(small))))
	x := post(bytesOf(small))
	checkFailOpen(t, g.do(t.Context(), t, open(cfg), x), x)
	if n := think.streams.Load(); n != 2 {
		t.Errorf("%d endpoints asked for two requests", n)
	}
	g.settled(t)
}

// TestThinks: a picker that is alive may queue a request for many probes.
func TestThinks(t *testing.T) {
	var probes atomic.Int64
	answer := make(chan struct{})
	g := newGateway(t, Config{})
	cfg := at(listen(t, (&scripted{replyTo: func(_ extprocv3.ExternalProcessor_ProcessServer, phase string) error {
		if phase == beforeHeaders {
			<-answer
		}
		return nil
	}}).process))
	r, err := g.remotes.get(cfg.Endpoints[0], cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer g.remotes.put(r)
	ping := r.ping
	r.timing.interval = 20 * time.Millisecond
	r.ping = func(ctx context.Context) error {
		if probes.Add(1) == 10 {
			close(answer)
		}
		return ping(ctx)
	}
	if o := g.do(t.Context(), t, cfg, post(bytesOf(small))); o.status() != 200 || o.pick() != pod {
		t.Errorf("status %d after %d probes", o.status(), probes.Load())
	}
}

// TestComesBack: a dead picker is used again soon after it answers.
func TestComesBack(t *testing.T) {
	g := hurried(t, Config{})
	g.remotes.timing.revive = 20 * time.Millisecond
	l := newFreezer(t)
	p := &scripted{}
	cfg := l.serve(t, p)
	l.freeze()
	checkFailClose(t, g.do(t.Context(), t, cfg, post(bytesOf(small))))
	l.thaw()
	waitFor(t, "the picker is in use again", func() bool { return g.deaths() == 0 })
	if o := g.do(t.Context(), t, cfg, post(bytesOf(small))); o.status() != 200 || o.pick() != pod {
		t.Errorf("status %d", o.status())
	}
	g.settled(t)
}

// TestClientLeaves: the picker's stream ends at once, and nothing stays held.
func TestClientLeaves(t *testing.T) {
	for _, phase := range []string{beforeHeaders, respBody} {
		gone, asked := make(chan struct{}), make(chan struct{})
		p := &scripted{replyTo: nth(phase, 0, func(s extprocv3.ExternalProcessor_ProcessServer) error {
			close(asked)
			<-s.Context().Done()
			close(gone)
			return errOK
		})}
		g := newGateway(t, Config{})
		ctx, leave := context.WithCancel(t.Context())
		go func() { <-asked; leave() }()
		x := post(bytesOf(large))
		x.respBody = tokens(5)
		g.do(ctx, t, at(listen(t, p.process)), x)
		<-gone
		g.settled(t)
	}
}

// TestBudget: a body over the budget goes on, without what it would have been held for.
func TestBudget(t *testing.T) {
	x := post(bytesOf(larger))
	x.piece = 62000
	for name, c := range map[string]Config{"of a stream": {StreamBudget: 1 << 20}, "of all": {BodyBudget: 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, c)
			var most atomic.Int64
			watch := func(*fromEnvoy) { most.Store(max(most.Load(), g.budget.held.Load())) }
			ok, dies := &scripted{seen: watch}, &scripted{replyTo: nth(beforeHeaders, 0, endsWith(errOK))}
			o := g.do(t.Context(), t, at(listen(t, ok.process)), x)
			if o.status() != 200 || !bytes.Equal(o.body, x.body) || o.pick() != pod {
				t.Errorf("status %d, %d bytes", o.status(), len(o.body))
			}
			if most.Load() > 3<<20 {
				t.Errorf("%d bytes held", most.Load())
			}
			checkFailClose(t, g.do(t.Context(), t, open(at(listen(t, dies.process))), x))
			g.settled(t)
		})
	}
	t.Run("of the response", func(t *testing.T) { // the picker is given up, the response is not
		g := newGateway(t, Config{StreamBudget: 1 << 20})
		x := post(bytesOf(small))
		x.respBody = [][]byte{bytesOf(large), bytesOf(large), bytesOf(large), bytesOf(large)}
		p := &scripted{replyTo: nth(respBody, 2, func(s extprocv3.ExternalProcessor_ProcessServer) error { <-s.Context().Done(); return errOK })}
		o := g.do(t.Context(), t, at(listen(t, p.process)), x)
		if o.status() != 200 || !bytes.Equal(o.respBody, bytes.Join(x.respBody, nil)) {
			t.Errorf("status %d, response %d bytes", o.status(), len(o.respBody))
		}
		g.settled(t)
	})
	t.Run("of others", func(t *testing.T) { // small requests keep their share
		g := newGateway(t, Config{BodyBudget: 1})
		g.budget.held.Add(1 << 30)
		defer g.budget.held.Add(-1 << 30)
		x := post(bytesOf(100000))
		checkFailOpen(t, g.do(t.Context(), t, open(at(closedPort(t))), x), x)
	})
}

// TestPicks: the ways to name endpoints.
func TestPicks(t *testing.T) {
	header := func(v string) *toEnvoy {
		return requestSide.headers(&extprocv3.CommonResponse{HeaderMutation: again(nil, map[string]string{contract.KeyDestination: v})})
	}
	in := func(v *structpb.Value) *toEnvoy {
		m := requestSide.headers(nil)
		m.DynamicMetadata = pickedIn("")
		m.DynamicMetadata.Fields[contract.MetadataLB].GetStructValue().Fields[contract.KeyDestination] = v
		return m
	}
	list := structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStringValue("10.0.0.2:80"), structpb.NewStringValue("10.0.0.1:80")}})
	two := picks(nil, nil, "10.0.0.2:80, 10.0.0.1:80")
	two.DynamicMetadata = pickedIn("10.0.0.2:80,10.0.0.1:80")
	for name, c := range map[string]struct {
		says *toEnvoy
		want string
	}{
		"header alone":          {header(pod), pod},
		"metadata alone":        {in(structpb.NewStringValue(pod)), pod},
		"a list in the header":  {header("10.0.0.2:80,10.0.0.1:80"), "10.0.0.2:80,10.0.0.1:80"},
		"a list in metadata":    {in(list), "10.0.0.2:80,10.0.0.1:80"},
		"the same, other blank": {two, "10.0.0.2:80,10.0.0.1:80"},
		"nothing":               {requestSide.headers(nil), ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, Config{})
			cfg := replies(beforeHeaders, func(s extprocv3.ExternalProcessor_ProcessServer) error { _ = s.Send(c.says); return errOK })(t)
			o := g.do(t.Context(), t, open(cfg), exchange{})
			if o.status() != 200 || o.pick() != c.want || c.want != "" && !slices.Equal(o.set(contract.KeyDestination), []string{c.want}) {
				t.Errorf("status %d, metadata %q, header %q", o.status(), o.pick(), o.set(contract.KeyDestination))
			}
			if o := g.do(t.Context(), t, cfg, exchange{}); (o.status() == 503) != (c.want == "") {
				t.Errorf("FailClose: %d", o.status())
			}
		})
	}
}

// TestWrongSetup: what only a wrong configuration of Envoy can bring.
func TestWrongSetup(t *testing.T) {
	g := newGateway(t, Config{})
	stream, err := g.client.Process(metadata.AppendToOutgoingContext(t.Context(), contract.KeyPool, "ns/pool"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without metadata: %v", err)
	}
	stream = g.open(t.Context(), t, at("127.0.0.1:1"))
	_ = stream.Send(&fromEnvoy{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_BUFFERED}})
	if _, err = stream.Recv(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("BUFFERED: %v", err)
	}
}

// TestConnections: one connection serves many requests, no PING is ever sent to a picker,
// and a connection that nobody uses is closed.
func TestConnections(t *testing.T) {
	l := &tapped{Listener: mustListen(t), closed: make(chan struct{}, 10)}
	g := newGateway(t, Config{})
	g.remotes.timing.idle = 2 * time.Second
	cfg := at(listenOn(t, l, (&scripted{}).process))
	for range 20 {
		x := post(bytesOf(large))
		x.respBody = [][]byte{bytesOf(large)}
		if o := g.do(t.Context(), t, cfg, x); o.status() != 200 {
			t.Fatal(o.status())
		}
	}
	if n := l.conns.Load(); n > 2 { // one for requests, perhaps one for probes
		t.Errorf("%d connections", n)
	}
	if n := l.pings.Load(); n != 0 {
		t.Errorf("the picker got %d PINGs", n)
	}
	<-l.closed
}

func mustListen(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// tapped counts connections, and the PING frames of those that speak gRPC.
type tapped struct {
	net.Listener
	conns, pings atomic.Int64
	closed       chan struct{}
}

func (l *tapped) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.conns.Add(1)
	return &tappedConn{Conn: c, l: l, skip: len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")}, nil
}

type tappedConn struct {
	net.Conn
	l    *tapped
	skip int // bytes to the next frame header
	head []byte
}

const framePing, flagAck = 6, 1

func (c *tappedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for rest := b[:n]; len(rest) > 0; {
		if c.skip > 0 {
			k := min(c.skip, len(rest))
			c.skip, rest = c.skip-k, rest[k:]
			continue
		}
		k := min(9-len(c.head), len(rest))
		c.head, rest = append(c.head, rest[:k]...), rest[k:]
		if len(c.head) == 9 {
			if c.head[3] == framePing && c.head[4]&flagAck == 0 {
				c.l.pings.Add(1)
			}
			c.skip, c.head = int(c.head[0])<<16|int(c.head[1])<<8|int(c.head[2]), nil
		}
	}
	if err != nil {
		select {
		case c.l.closed <- struct{}{}:
		default:
		}
	}
	return n, err
}
