package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	loadRate  = 200 // requests a second, as far as the machine keeps up
	loadSlots = 24  // requests at a time; a tick that finds none free is left out
	// loadFew is how many are sent at a time when answers take longer than loadSlow: a
	// machine that is busy otherwise must have time left for pickers to show that they live.
	loadFew  = 4
	loadSlow = 250 * time.Millisecond
	loadMost = 40_000          // requests of one load
	loadTime = 4 * time.Minute // of one load
	// loadPatience is how long one request may take. It is not a measure of speed: the
	// machine may be busy with anything.
	loadPatience = time.Minute
	headerLoad   = "X-Load-Id" // says which request this is
)

// ledger counts what the pods of a load receive: each request must arrive exactly once.
type ledger struct {
	released chan struct{} // closed: streams below /hold/ come to their end
	release  func()        // closes it

	mu      sync.Mutex
	arrived map[string]int // by headerLoad
}

func newLedger() *ledger {
	released := make(chan struct{})
	return &ledger{released: released, release: sync.OnceFunc(func() { close(released) }), arrived: map[string]int{}}
}

// startPod starts a pod whose requests are entered in the ledger. Listen may name an
// address; else it is any of 127.0.0.1.
func (l *ledger) startPod(t testing.TB, name string, listen ...string) *pod {
	t.Helper()
	p := &pod{Name: name}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id := r.Header.Get(headerLoad); id != "" {
			l.mu.Lock()
			l.arrived[id]++
			l.mu.Unlock()
		}
		if strings.HasPrefix(r.URL.Path, "/hold/") {
			l.hold(w, r, name)
			return
		}
		p.ServeHTTP(w, r)
	})}
	if len(listen) == 0 {
		listen = []string{"127.0.0.1:0"}
	}
	for _, address := range listen {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		p.Address = listener.Addr().String()
		go s.Serve(listener)
	}
	t.Cleanup(func() { s.Close() })
	return p
}

// hold is a token stream that lasts until the ledger's streams are released.
func (l *ledger) hold(w http.ResponseWriter, r *http.Request, pod string) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("X-Pod", pod)
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		fmt.Fprintf(w, "data: {\"i\":%d}\n\n", i)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-tick.C:
		case <-l.released:
			fmt.Fprint(w, "data: [DONE]\n\n")
			return
		case <-r.Context().Done():
			return
		}
	}
}

// expectation is what an answer may be: from which pods, passed by which pickers ("":
// none).
type expectation struct{ pods, pickers []string }

// loadTarget is a part of the load that all goes the same way.
type loadTarget struct {
	name  string
	model string // "": requests that name no model
	path  string // prefix of every path, without a slash at the end
	host  string // "": the address
	want  atomic.Pointer[expectation]
}

// newTarget returns a target for a model; model "" sends requests to the path, which
// name none.
func newTarget(name, model, path string) *loadTarget {
	return &loadTarget{name: name, model: model, path: path}
}

// expect says what answers may be from now on; a request that is under way may also be
// answered as before.
func (x *loadTarget) expect(pods []*pod, pickers ...string) *loadTarget {
	e := &expectation{pickers: pickers}
	for _, p := range pods {
		e.pods = append(e.pods, p.Name)
	}
	if len(pickers) == 0 {
		e.pickers = []string{""}
	}
	x.want.Store(e)
	return x
}

// load is traffic at a constant rate of which every answer is checked, from a client of
// HTTP/1.1 with keep-alive and one of HTTP/2.
type load struct {
	t       testing.TB
	url     string
	ledger  *ledger
	targets atomic.Pointer[[]*loadTarget]
	clients []*http.Client
	slots   chan struct{}
	cancel  context.CancelFunc
	running sync.WaitGroup
	holds   sync.WaitGroup

	sent, checked atomic.Int64
	slow          atomic.Bool  // the last answer was
	closed        atomic.Int64 // connections that the other side closed
	ended         atomic.Bool

	mu       sync.Mutex
	failures map[string]*failure
	ids      map[string]bool // answered well, so delivered once
}

// failure is one kind of it.
type failure struct {
	times   int
	request string // the first one
	at      time.Time
}

// startLoad begins to send. tlsConfig is nil for plain HTTP.
func startLoad(t testing.TB, url string, l *ledger, tlsConfig *tls.Config, targets ...*loadTarget) *load {
	t.Helper()
	x := &load{t: t, url: url, ledger: l, slots: make(chan struct{}, loadSlots), failures: map[string]*failure{}, ids: map[string]bool{}}
	x.targets.Store(&targets)
	for _, http2 := range []bool{false, true} {
		x.clients = append(x.clients, x.client(http2, tlsConfig))
	}
	ctx, cancel := context.WithTimeout(t.Context(), loadTime)
	x.cancel = cancel
	x.running.Go(func() { x.run(ctx) })
	t.Cleanup(func() { // before the gateway is stopped, which waits for streams
		cancel()
		l.release()
	})
	x.during(50) // every part of the way has been used once
	return x
}

func (x *load) client(http2 bool, tlsConfig *tls.Config) *http.Client {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2 && tlsConfig == nil)
	protocols.SetHTTP2(http2 && tlsConfig != nil)
	tr := &http.Transport{Protocols: protocols, MaxIdleConnsPerHost: 2 * loadSlots, DisableCompression: true, TLSClientConfig: tlsConfig.Clone(),
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, network, address)
			return &watchedConn{Conn: c, load: x}, err
		}}
	x.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// watchedConn notices that the other side closes a connection: clients often do not tell,
// they dial again.
type watchedConn struct {
	net.Conn
	load *load
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, net.ErrClosed) && !c.load.ended.Load() {
		c.load.closed.Add(1)
	}
	return n, err
}

// add adds a target to those that the load goes to.
func (x *load) add(target *loadTarget) {
	targets := append(slices.Clone(*x.targets.Load()), target)
	x.targets.Store(&targets)
}

// run sends at the rate until ctx ends.
func (x *load) run(ctx context.Context) {
	tick := time.NewTicker(time.Second / loadRate)
	defer tick.Stop()
	for x.sent.Load() < loadMost {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if x.slow.Load() && len(x.slots) >= loadFew {
			continue
		}
		select {
		case x.slots <- struct{}{}:
		default:
			continue
		}
		n := x.sent.Add(1)
		x.running.Go(func() {
			defer func() { <-x.slots }()
			x.one(n)
		})
	}
}

// loadKinds is the mix: of 16 requests of a target 10 small, 3 large, 3 token streams.
// Where no model is named half of the small ones are GETs.
var loadKinds = []string{"small", "small", "large", "small", "stream", "small", "small", "large", "small", "small", "stream", "small", "large", "small", "stream", "small"}

// one sends the n-th request and checks its answer.
func (x *load) one(n int64) {
	targets := *x.targets.Load()
	target := targets[n%int64(len(targets))]
	round := n / int64(len(targets))
	kind := loadKinds[round%int64(len(loadKinds))]
	protocol := (round + round/int64(len(loadKinds))) % 2
	id := fmt.Sprintf("%s-%d", target.name, n)
	before := target.want.Load()
	began := time.Now()
	err := x.exchange(x.clients[protocol], target, kind, id, func(pod, picker string) error {
		for _, e := range []*expectation{before, target.want.Load()} {
			if slices.Contains(e.pods, pod) && slices.Contains(e.pickers, picker) {
				return nil
			}
		}
		return fmt.Errorf("answered by pod %q picked by %q; want one of %v, by one of %q", pod, picker, target.want.Load().pods, target.want.Load().pickers)
	})
	x.slow.Store(time.Since(began) > loadSlow)
	x.note(id, fmt.Sprintf("%s: %s over HTTP/%d: %v", target.name, kind, 1+protocol, err), err == nil)
	x.checked.Add(1)
}

// note notes how a request ended.
func (x *load) note(id, what string, well bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if well {
		x.ids[id] = true
		return
	}
	if x.failures[what] == nil {
		x.failures[what] = &failure{request: id, at: time.Now()}
	}
	x.failures[what].times++
}

// exchange sends one request and reads its answer to the end; from checks who answered.
func (x *load) exchange(client *http.Client, target *loadTarget, kind, id string, from func(pod, picker string) error) error {
	const events = 6
	method, path, size := http.MethodPost, target.path+"/v1/chat/completions", 2<<10
	switch {
	case kind == "stream":
		path = fmt.Sprintf("/stream/%d/15ms", events)
		if target.model == "" {
			path = target.path + "/v1/chat/completions"
		}
	case kind == "large":
		size = 64 << 10
	case target.model == "" && len(id)%2 == 0:
		method, size = http.MethodGet, 0
	}
	body := loadBody(target.model, id, size)
	ctx, cancel := context.WithTimeout(context.Background(), loadPatience)
	defer cancel()
	resp, err := x.send(ctx, client, target, method, path, id, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d %q, body %.100q", resp.StatusCode, resp.Header.Get("X-Pod"), answer)
	case err != nil:
		return fmt.Errorf("cut after %d bytes of the answer: %w", len(answer), err)
	case resp.Close: // the client then closes the connection, as it is told
		x.closed.Add(1)
	}
	if err := from(resp.Header.Get("X-Pod"), resp.Header.Get("X-Demo-Picker")); err != nil {
		return err
	}
	if strings.HasPrefix(path, "/stream/") {
		if n, done := countEvents(answer); n != events || !done {
			return fmt.Errorf("stream cut: %d of %d events, done: %v", n, events, done)
		}
		return nil
	}
	return checkReceived(answer, resp.Header.Get("X-Pod"), id, body)
}

// send sends a request that the client will not send again by itself if it has a body.
func (x *load) send(ctx context.Context, client *http.Client, target *loadTarget, method, path, id string, body []byte) (*http.Response, error) {
	var r io.Reader
	if len(body) > 0 {
		r = io.NopCloser(bytes.NewReader(body))
	}
	req, err := http.NewRequestWithContext(ctx, method, x.url+path, r)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(len(body))
	if target.host != "" {
		req.Host = target.host
	}
	req.Header.Set(headerLoad, id)
	req.Header.Set("Content-Type", "application/json")
	return client.Do(req)
}

// loadBody is a chat request of about size bytes, with the model first or last, or bytes
// that are nothing if there is no model. No two are alike.
func loadBody(model, id string, size int) []byte {
	filler := strings.Repeat(id+" ", size/(len(id)+1))
	switch {
	case size == 0:
		return nil
	case model == "":
		return []byte(filler)
	case len(id)%2 == 0:
		return fmt.Appendf(nil, `{"model":%q,"messages":[{"role":"user","content":%q}]}`, model, filler)
	}
	return fmt.Appendf(nil, `{"messages":[{"role":"user","content":%q}],"model":%q}`, filler, model)
}

// countEvents counts the events of a token stream that come in order.
func countEvents(stream []byte) (n int, done bool) {
	for line := range strings.Lines(string(stream)) {
		data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		switch {
		case !ok:
		case data == "[DONE]":
			return n, true
		case !strings.HasPrefix(data, `{"i":`+strconv.Itoa(n)) || strings.TrimLeft(data[len(`{"i":`+strconv.Itoa(n)):], "0123456789") != data[len(`{"i":`+strconv.Itoa(n)):]:
			return n, false
		default:
			n++
		}
	}
	return n, false
}

// checkReceived checks what a pod says that it received.
func checkReceived(answer []byte, pod, id string, body []byte) error {
	var got received
	if err := json.Unmarshal(answer, &got); err != nil {
		return fmt.Errorf("not a pod's answer: %w: %.100q", err, answer)
	}
	sum := sha256.Sum256(body)
	switch {
	case got.Pod != pod:
		return fmt.Errorf("the header says pod %q, the body %q", pod, got.Pod)
	case !slices.Equal(got.Header[headerLoad], []string{id}):
		return fmt.Errorf("an answer to request %v", got.Header[headerLoad])
	case got.Length != int64(len(body)) || got.SHA256 != hex.EncodeToString(sum[:]):
		return fmt.Errorf("the pod got %d bytes, or others than the %d that were sent", got.Length, len(body))
	}
	return nil
}

// hold starts a token stream that lasts until finish, over each protocol.
func (x *load) hold(target *loadTarget) {
	x.t.Helper()
	for i, client := range x.clients {
		id := fmt.Sprintf("hold-%s-%d-%d", target.name, i+1, x.sent.Add(1))
		ctx, cancel := context.WithTimeout(context.Background(), loadTime+loadPatience)
		resp, err := x.send(ctx, client, target, http.MethodPost, target.path+"/hold/"+id, id, loadBody(target.model, id, 2<<10))
		if err != nil || resp.StatusCode != http.StatusOK {
			cancel()
			x.t.Fatalf("long stream of %s: %v %v", target.name, resp, err)
		}
		x.holds.Go(func() {
			defer cancel()
			defer resp.Body.Close()
			stream, err := io.ReadAll(resp.Body)
			n, done := countEvents(stream)
			x.note(id, fmt.Sprintf("the long stream of %s over HTTP/%d was cut after %d events: %v", target.name, i+1, n, err), err == nil && done)
		})
	}
}

// during waits until n more answers have been checked, so that what was done before met
// traffic.
func (x *load) during(n int64) {
	x.t.Helper()
	until := x.checked.Load() + n
	waitFor(x.t, fmt.Sprintf("%d more answers to the load", n), func() bool { return x.checked.Load() >= until })
}

// settle waits until every request that is under way now has its answer; long streams
// aside.
func (x *load) settle() {
	x.t.Helper()
	x.during(loadSlots + 1) // so many at most are older
	for range loadSlots {   // a slow one among them
		x.slots <- struct{}{}
	}
	for range loadSlots {
		<-x.slots
	}
}

// errors returns what failed so far, sorted.
func (x *load) errors() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for _, what := range slices.Sorted(maps.Keys(x.failures)) {
		f := x.failures[what]
		out = append(out, fmt.Sprintf("%d × %s (first %s at %s)", f.times, what, f.request, f.at.Format("15:04:05.000")))
	}
	return out
}

// stop ends the load and returns all that was wrong with it.
func (x *load) stop() []string {
	x.cancel()
	x.running.Wait()
	x.ledger.release()
	x.holds.Wait()
	x.ended.Store(true)
	wrong := x.errors()
	x.ledger.mu.Lock()
	defer x.ledger.mu.Unlock()
	for id := range x.ids {
		if n := x.ledger.arrived[id]; n != 1 {
			wrong = append(wrong, fmt.Sprintf("request %s arrived %d times", id, n))
		}
	}
	if n := x.closed.Load(); n > 0 {
		wrong = append(wrong, fmt.Sprintf("%d connections were closed by the gateway", n))
	}
	return wrong
}

// finish ends the load, and fails the test if anything was wrong with it.
func (x *load) finish() {
	x.t.Helper()
	wrong := x.stop()
	x.t.Logf("%d requests, %d kinds of failures", x.sent.Load(), len(wrong))
	for _, w := range wrong[:min(len(wrong), 20)] {
		x.t.Error(w)
	}
}

// TestLoadNotices: the load sees each way in which an answer can be wrong. What it does
// not complain about in the other tests is worth nothing otherwise.
func TestLoadNotices(t *testing.T) {
	faults := map[string]struct {
		fault http.HandlerFunc // what answers in place of the pod, or before it
		want  string
	}{
		"status":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "status 503"},
		"pod":         {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Pod", "other"); fmt.Fprint(w, "{}") }, "answered by pod"},
		"picker":      {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Demo-Picker", "other") }, "answered by pod"},
		"digest":      {func(_ http.ResponseWriter, r *http.Request) { _, _ = r.Body.Read(make([]byte, 1)) }, "bytes"},
		"cut":         {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "100000") }, "cut after"},
		"refused":     {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "small over HTTP/1"},
		"twice":       {nil, "arrived 2 times"},
		"not arrived": {nil, "arrived 0 times"},
		"closed":      {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }, "closed by the gateway"},
		"nothing":     {nil, ""},
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			l := newLedger()
			p := l.startPod(t, "a")
			var protocols http.Protocols
			protocols.SetHTTP1(true)
			protocols.SetUnencryptedHTTP2(true)
			front := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				l.mu.Lock()
				if name != "not arrived" {
					l.arrived[r.Header.Get(headerLoad)]++
				}
				if name == "twice" {
					l.arrived[r.Header.Get(headerLoad)]++
				}
				l.mu.Unlock()
				if f.fault != nil {
					if f.fault(w, r); name == "status" || name == "pod" {
						return
					}
				}
				p.ServeHTTP(w, r)
			})}
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go front.Serve(listener)
			t.Cleanup(func() { front.Close() })
			x := startLoad(t, "http://"+listener.Addr().String(), l, nil, newTarget("m", "m", "").expect([]*pod{p}))
			wrong := strings.Join(x.stop(), "\n")
			if f.want == "" && wrong != "" || !strings.Contains(wrong, f.want) {
				t.Errorf("the load said %q; want something about %q", wrong, f.want)
			}
		})
	}
}
