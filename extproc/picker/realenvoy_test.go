package picker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"signalbox.dev/extproc/contract"
)

// answer is what a client of the real Envoy got.
type answer struct {
	status   int
	header   http.Header
	trailer  http.Header
	body     []byte
	err      error // while reading the body
	received received
}

// send sends a request and reads the whole answer.
func (r *rig) send(t *testing.T, c *http.Client, path string, body io.Reader, with ...func(*http.Request)) *answer {
	t.Helper()
	method := http.MethodPost
	if body == nil {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(t.Context(), method, r.front+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for _, f := range with {
		f(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	a.trailer = resp.Trailer
	if a.status == http.StatusOK {
		_ = json.Unmarshal(a.body, &a.received)
	}
	return a
}

func withFault(f string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("X-Fault", f) }
}

func digest(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }

// chunked hides the length of a body.
func chunked(b []byte) io.Reader { return io.MultiReader(bytes.NewReader(b)) }

func both(name string, p contract.Picker) []route {
	shut := p
	shut.FailOpen = false
	return []route{{Name: name + "-open", Picker: open(p), Idle: "0s"}, {Name: name + "-close", Picker: shut, Idle: "0s"}}
}

// TestEnvoyBodies: every size, every framing, both protocols: the pod that was picked gets
// the client's bytes, framed as the client framed them.
func TestEnvoyBodies(t *testing.T) {
	r := newRig(t, func(r *rig) (out []route) {
		for _, mode := range []contract.ResponseMode{contract.ResponseFull, contract.ResponseHeaders, contract.ResponseNone} {
			for name, atOnce := range map[string]bool{"end": false, "once": true} {
				p := at(listen(t, (&scripted{endpoint: r.picked(), atOnce: atOnce}).process))
				p.Response = mode
				out = append(out, both(name+"-"+string(mode), p)...)
			}
		}
		return out
	})
	for _, name := range []string{"end-full", "once-full", "end-headers", "once-headers", "end-none", "once-none"} {
		for _, c := range []*http.Client{r.h1, r.h2} {
			for _, size := range []int{none, 0, small, 100000, large, larger} {
				for _, frame := range []string{"content-length", "chunked"} {
					var body io.Reader
					switch {
					case size == none:
					case frame == "chunked":
						body = chunked(bytesOf(size))
					default:
						body = bytes.NewReader(bytesOf(size))
					}
					a := r.send(t, c, "/"+name+"-close", body)
					want := ""
					if size > 0 {
						want = string(bytesOf(size))
					}
					if a.status != 200 || a.err != nil || a.received.Digest != digest([]byte(want)) || a.received.Pod != r.picked() || a.received.Destination != r.picked() {
						t.Errorf("%s, %d bytes, %s, h2 %v: %d %v %+v", name, size, frame, c == r.h2, a.status, a.err, a.received)
					}
					if size > 0 && (a.received.Length != "") != (frame == "content-length") {
						t.Errorf("%s, %d bytes, %s: the pod saw content-length %q", name, size, frame, a.received.Length)
					}
					if got := a.header.Values("Set-Cookie"); len(got) != 2 {
						t.Errorf("%s: set-cookie %q", name, got)
					}
				}
			}
		}
	}
	r.settled(t)
}

// TestEnvoyFaults: with FailOpen the pool answers, body intact; with FailClose 503 in
// OpenAI's shape, and no pod sees the request.
func TestEnvoyFaults(t *testing.T) {
	r := newRig(t, func(r *rig) []route {
		out := both("up", at(listen(t, (&scripted{endpoint: r.picked()}).process)))
		out = append(out, both("gone", at())...)
		out = append(out, both("refusing", at(closedPort(t)))...)
		return append(out, both("silent", at(silent(t)))...)
	})
	for _, f := range []struct{ route, fault string }{
		{"gone", ""}, {"refusing", ""}, {"silent", ""},
		{"up", "error@" + beforeHeaders}, {"up", "close@" + beforeHeaders}, {"up", "garbage@" + beforeHeaders},
		{"up", "error@" + afterHeaders}, {"up", "close@" + afterHeaders}, {"up", "garbage@" + afterHeaders},
		{"up", "error@" + midBody}, {"up", "close@" + midBody},
	} {
		for _, c := range []*http.Client{r.h1, r.h2} {
			for _, size := range []int{none, small, large, larger} {
				body := func() io.Reader { return bytes.NewReader(bytesOf(size)) }
				if size == none {
					if !strings.HasSuffix(f.fault, beforeHeaders) && f.fault != "" {
						continue
					}
					body = func() io.Reader { return nil }
				}
				a := r.send(t, c, "/"+f.route+"-open", body(), withFault(f.fault))
				if want := digest(bytesOf(max(size, 0))); a.status != 200 || a.received.Digest != want {
					t.Errorf("%v, %d bytes, FailOpen: %d %s", f, size, a.status, a.body)
				}
				r.podsSaw()
				a = r.send(t, c, "/"+f.route+"-close", body(), withFault(f.fault))
				if a.status != 503 || a.header.Get("Content-Type") != "application/json" || !bytes.Contains(a.body, []byte(`"code":"endpoint_picker_unavailable"`)) {
					t.Errorf("%v, %d bytes, FailClose: %d %s", f, size, a.status, a.body)
				}
				if saw := r.podsSaw(); len(saw) != 0 {
					t.Errorf("%v, %d bytes, FailClose: a pod saw %+v", f, size, saw)
				}
			}
		}
	}
	r.settled(t)
}

// TestEnvoyKilled: a picker process that is killed or stopped takes nothing with it that
// it has let go.
func TestEnvoyKilled(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		t.Run(signal.String()+" while tokens stream", func(t *testing.T) {
			for _, mode := range []contract.ResponseMode{contract.ResponseFull, contract.ResponseHeaders, contract.ResponseNone} {
				r := newRig(t, func(r *rig) []route {
					addr, process := child(t, r.picked())
					p := at(addr)
					p.Response = mode
					kill = func() { _ = process.Signal(signal) }
					return both("epp", p)
				})
				name := ticket(t)
				resp, err := r.h1.Post(r.front+"/epp-close/sse?ticket="+url.QueryEscape(name), "application/json", strings.NewReader("{}"))
				if err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewScanner(resp.Body)
				got := 0
				tickets[name] <- struct{}{}
				for lines.Scan() {
					if strings.HasPrefix(lines.Text(), "data: ") {
						if got++; got == 3 {
							kill()
						}
						if got < events {
							tickets[name] <- struct{}{}
						}
					}
				}
				if got != events || lines.Err() != nil {
					t.Errorf("%s: %d of %d events, %v", mode, got, events, lines.Err())
				}
				_ = resp.Body.Close()
				r.settled(t)
			}
		})
		t.Run(signal.String()+" while it picks", func(t *testing.T) {
			r := newRig(t, func(r *rig) []route {
				addr, process := child(t, r.picked())
				kill = func() { _ = process.Signal(signal) }
				return both("epp", at(addr))
			})
			got := make(chan *answer, 2)
			for _, to := range []string{"/epp-open", "/epp-close"} {
				go func() { got <- r.send(t, r.h1, to, bytes.NewReader(bytesOf(large)), withFault("think@"+beforeHeaders)) }()
			}
			waitFor(t, "both requests wait for the picker", func() bool { return r.waiting() == 2 })
			kill()
			a, b := <-got, <-got
			if a.status+b.status != 703 {
				t.Fatalf("answers %d and %d; want 200 and 503", a.status, b.status)
			}
			if a.status == 503 {
				a = b
			}
			if a.received.Digest != digest(bytesOf(large)) {
				t.Errorf("FailOpen: %+v", a.received)
			}
			r.settled(t)
		})
	}
}

var kill func()

// waiting is how many requests wait for pickers.
func (g *gateway) waiting() (n int) {
	g.remotes.mu.Lock()
	defer g.remotes.mu.Unlock()
	for _, r := range g.remotes.m {
		w, _ := r.load()
		n += w
	}
	return n
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(10 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("it does not come to pass that %s", what)
		}
	}
}

// TestEnvoyHeaders: several values stay several, both ways; a rewritten body is framed
// anew; trailers arrive.
func TestEnvoyHeaders(t *testing.T) {
	rewritten := bytesOf(150000)
	r := newRig(t, func(r *rig) []route {
		out := both("same", at(listen(t, (&scripted{endpoint: r.picked()}).process)))
		p := &scripted{endpoint: r.picked(), rewrite: func([]byte) []byte { return rewritten },
			headers: map[string]string{"x-new": "1|2", "x-multi": "c|d"}}
		return append(out, both("rewrite", at(listen(t, p.process)))...)
	})
	for _, c := range []*http.Client{r.h1, r.h2} {
		a := r.send(t, c, "/same-close", bytes.NewReader(bytesOf(large)), func(q *http.Request) {
			q.Header["Cookie"] = []string{"c1=1", "c2=2"}
			q.Header["X-Multi"] = []string{"a", "b"}
		})
		if got := strings.Join(a.received.Cookies, "; "); got != "c1=1; c2=2" {
			t.Errorf("cookies %q", a.received.Cookies)
		}
		if got := strings.Join(a.received.Multi, ","); got != "a,b" {
			t.Errorf("x-multi %q", a.received.Multi)
		}
		if got := a.header.Values("Set-Cookie"); len(got) != 2 || a.header.Get("X-Went-Into-Resp-Headers") != "true" {
			t.Errorf("response headers %v", a.header)
		}
		a = r.send(t, c, "/rewrite-close", bytes.NewReader(bytesOf(large)), func(q *http.Request) { q.Header["X-Multi"] = []string{"a", "b"} })
		if got := a.received; strings.Join(got.New, ",") != "1,2" || strings.Join(got.Multi, ",") != "c,d" {
			t.Errorf("changed headers: x-new %q, x-multi %q", got.New, got.Multi)
		}
		if a.status != 200 || a.received.Digest != digest(rewritten) || a.received.Length != "" {
			t.Errorf("rewritten: %d %+v", a.status, a.received)
		}
		a = r.send(t, c, "/same-close", chunked(bytesOf(large)), func(q *http.Request) { q.Trailer = http.Header{"X-Tail": {"here"}} })
		if a.received.Trailer != "here" || a.received.Digest != digest(bytesOf(large)) || a.trailer.Get("X-Done") != "yes" {
			t.Errorf("trailers, h2 %v: request %q, response %q, %d", c == r.h2, a.received.Trailer, a.trailer.Get("X-Done"), a.status)
		}
		a = r.send(t, c, "/same-open", bytes.NewReader(bytesOf(small)), withFault("shed@"+beforeHeaders))
		if a.status != 429 || string(a.body) != "saturated" || a.header.Get("X-Dropped") != "sheddable" {
			t.Errorf("shed: %d %s %v", a.status, a.body, a.header)
		}
	}
	r.settled(t)
}

// TestEnvoyGivesUp: clients that leave, and Envoy's own timeouts, end the picker's stream.
func TestEnvoyGivesUp(t *testing.T) {
	p := &scripted{}
	r := newRig(t, func(r *rig) []route {
		p.endpoint = r.picked()
		c := at(listen(t, p.process))
		return append(both("epp", c), route{Name: "idle", Picker: open(c), Idle: "1s"})
	})
	begin := time.Now()
	a := r.send(t, r.h1, "/idle", bytes.NewReader(bytesOf(small)), withFault("think@"+beforeHeaders))
	if took := time.Since(begin); a.status < 500 || took > 1800*time.Millisecond {
		t.Errorf("Envoy's idle timeout of 1 s: %d after %v", a.status, took)
	}
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.front+"/epp-open", bytes.NewReader(bytesOf(large)))
	if err != nil {
		t.Fatal(err)
	}
	withFault("think@" + beforeHeaders)(req)
	left := make(chan error, 1)
	go func() { _, err := r.h1.Do(req); left <- err }()
	waitFor(t, "the request waits", func() bool { return r.waiting() == 1 })
	leave()
	if <-left == nil {
		t.Error("the client got an answer")
	}
	waitFor(t, "the picker's stream is over", func() bool { return r.waiting() == 0 })
	r.settled(t)
	if got := gauge(r.metrics.requests.WithLabelValues("ns/pool", resultAborted)); got != 2 {
		t.Errorf("%v aborted requests counted", got)
	}
}

// TestEnvoyCut: where a picker fails when a part was given on already, neither pod nor
// client takes it for whole.
func TestEnvoyCut(t *testing.T) {
	passed := make(chan struct{}, events) // response messages that a picker got
	seen := func(m *fromEnvoy) {
		if m.GetResponseBody() != nil {
			passed <- struct{}{}
		}
	}
	half := func(b []byte) []byte { return append([]byte("x"), b[:len(b)/2]...) }
	r := newRig(t, func(r *rig) []route {
		p := &scripted{endpoint: r.picked(), atOnce: true, replyTo: nth(midBody, 1, endsWith(errOK))}
		out := both("stream", at(listen(t, p.process)))
		for i := range 2 {
			p := &scripted{endpoint: r.picked(), respond: half, seen: seen, replyTo: nth(respBody, 1, torn)}
			out = append(out, both("torn", at(listen(t, p.process)))[i])
		}
		return out
	})
	more, body := io.Pipe()
	got := make(chan *answer, 1)
	go func() {
		got <- r.send(t, r.h2, "/stream-close", more, func(q *http.Request) {
			q.Header.Set("Content-Type", "application/grpc")
		})
	}()
	_, _ = body.Write(bytesOf(1000))
	waitFor(t, "the pod reads the request", func() bool { return r.begun.Load() == 1 })
	_, _ = body.Write(bytesOf(1000))
	if a := <-got; a.status != 200 || a.header.Get("Grpc-Status") != "14" {
		t.Errorf("gRPC: %d %v", a.status, a.header)
	}
	_ = body.Close()
	waitFor(t, "the pod has seen the end", func() bool {
		saw := r.podsSaw()
		if len(saw) > 0 && saw[0].Whole {
			t.Fatal("the pod took the request for whole")
		}
		return len(saw) > 0
	})
	for _, to := range []string{"/torn-open", "/torn-close"} {
		name := ticket(t)
		resp, err := r.h1.Post(r.front+to+"/sse?ticket="+url.QueryEscape(name), "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		tickets[name] <- struct{}{}
		<-passed
		tickets[name] <- struct{}{} // the second event tears it
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: the client took %q for whole", to, b)
		}
		<-passed
		_ = resp.Body.Close()
	}
	r.settled(t)
}
