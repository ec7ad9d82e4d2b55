package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// streamPaths are the ways to a pod that a stream may take: all of them keep it.
var streamPaths = []string{"/service", "/pool", "/bare", "/h2c"}

// newStreamWorld routes model llama by path to a Service, a pool with a picker, one
// without, and one whose pods speak HTTP/2. All lead to the pod.
func newStreamWorld(t *testing.T, p *pod) *box {
	on := func(backend, path string) string {
		return rule(backend, "{path: {type: PathPrefix, value: "+path+"}, headers: [{name: X-Gateway-Model-Name, value: llama}]}")
	}
	return startBox(t, map[string]string{
		"gateway.yaml": yamlGateway,
		"backends.yaml": yamlService("pod", p) + yamlPool("pool", startPicker(t, "pool", p), p) + yamlPool("bare", "", p) +
			yamlPoolOf("appProtocol: kubernetes.io/h2c", "h2c", startPicker(t, "h2c", p), p),
		"routes.yaml": yamlRoute("llama", on(toService("pod"), "/service"), on(toPool("pool"), "/pool"), on(toPool("bare"), "/bare"), on(toPool("h2c"), "/h2c")),
	}, boxOptions{})
}

// openStream sends a chat request for model llama and returns the response, whose body
// still comes.
func openStream(t *testing.T, client *http.Client, url string) (*http.Response, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(string(chat("llama"))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s %s\n%s", url, resp.Status, resp.Header.Get("Content-Type"), body)
	}
	return resp, cancel
}

// lockstep is a pod's handler that sends one event, then waits to be told that the
// client has it before it sends the next: nothing on the way may wait for more.
type lockstep struct {
	events int
	next   chan struct{} // the client has an event
	gone   chan struct{} // closed: the pod has seen that its client has gone
}

func newLockstep(events int) *lockstep {
	return &lockstep{events: events, next: make(chan struct{}), gone: make(chan struct{})}
}

func (l *lockstep) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range l.events {
		fmt.Fprintf(w, "data: {\"i\":%d}\n\n", i)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-l.next:
		case <-r.Context().Done():
			close(l.gone)
			return
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// TestStreamEachEventAtOnce holds the gateway to passing on each event as it comes:
// the pod sends the next only when the client has the one before.
func TestStreamEachEventAtOnce(t *testing.T) {
	t.Parallel()
	var step atomic.Pointer[lockstep]
	b := newStreamWorld(t, startPodWith(t, "pod", func(w http.ResponseWriter, r *http.Request) { step.Load().ServeHTTP(w, r) }))
	const events = 50
	for _, protocol := range protocols {
		for _, path := range streamPaths {
			t.Run(protocol+path, func(t *testing.T) {
				l := newLockstep(events)
				step.Store(l)
				resp, _ := openStream(t, newClient(t, protocol), b.URL+path)
				lines := newEvents(resp)
				for i := range events {
					if got, want := nextEvent(t, lines), fmt.Sprintf(`{"i":%d}`, i); got != want {
						t.Fatalf("event %d is %s; want %s", i, got, want)
					}
					l.next <- struct{}{}
				}
				if got := nextEvent(t, lines); got != "[DONE]" {
					t.Errorf("the stream ends with %s; want [DONE]", got)
				}
				for lines.Scan() {
					if lines.Text() != "" {
						t.Errorf("after [DONE] comes %q", lines.Text())
					}
				}
			})
		}
	}
}

// newEvents reads a response as lines.
func newEvents(resp *http.Response) *bufio.Scanner { return bufio.NewScanner(resp.Body) }

// nextEvent returns the data of the next server-sent event.
func nextEvent(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			return data
		}
	}
	t.Fatalf("the stream ended: %v", lines.Err())
	return ""
}

// TestStreamTiming looks at a stream as its reader sees it: it begins long before the pod
// has sent its end, and no event is far behind. Only a machine that stands still for as
// long as the stream takes could spoil it.
func TestStreamTiming(t *testing.T) {
	t.Parallel()
	b := newStreamWorld(t, startPod(t, "pod"))
	const events, gap = 40, 20 * time.Millisecond
	for _, protocol := range protocols {
		for _, path := range streamPaths {
			t.Run(protocol+path, func(t *testing.T) {
				t.Parallel()
				resp, _ := openStream(t, newClient(t, protocol), fmt.Sprintf("%s/stream/%d/%v", b.URL+path, events, gap))
				lines := newEvents(resp)
				var first, sent time.Time // the first event's arrival, the last one's start
				for range events {
					var i, at int64
					event := nextEvent(t, lines)
					if _, err := fmt.Sscanf(event, `{"i":%d,"at":%d}`, &i, &at); err != nil {
						t.Fatalf("%s: %v", event, err)
					}
					if first.IsZero() {
						first = time.Now()
					}
					if sent = time.Unix(0, at); time.Since(sent) > events*gap {
						t.Errorf("event %d arrived %v after it was sent", i, time.Since(sent))
					}
				}
				if ahead := sent.Sub(first); ahead < gap {
					t.Errorf("the first event came %v before the last was sent; want it long before", ahead)
				}
			})
		}
	}
}

// TestStreamAbort has the client go away in the middle: the pod must learn of it, or it
// would generate for nobody.
func TestStreamAbort(t *testing.T) {
	t.Parallel()
	var step atomic.Pointer[lockstep]
	b := newStreamWorld(t, startPodWith(t, "pod", func(w http.ResponseWriter, r *http.Request) { step.Load().ServeHTTP(w, r) }))
	for _, protocol := range protocols {
		for _, path := range streamPaths {
			t.Run(protocol+path, func(t *testing.T) {
				l := newLockstep(10)
				step.Store(l)
				resp, cancel := openStream(t, newClient(t, protocol), b.URL+path)
				nextEvent(t, newEvents(resp))
				cancel()
				waitClosed(t, l.gone, "the pod sees that the client has gone")
			})
		}
	}
}

// TestAbortBeforeAnswer has the client go away while the pod still thinks.
func TestAbortBeforeAnswer(t *testing.T) {
	t.Parallel()
	type thought struct{ begun, dropped chan struct{} }
	var thoughts atomic.Pointer[thought]
	b := newStreamWorld(t, startPodWith(t, "pod", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		now := thoughts.Load()
		close(now.begun)
		<-r.Context().Done()
		close(now.dropped)
	}))
	for _, protocol := range protocols {
		for _, path := range streamPaths {
			t.Run(protocol+path, func(t *testing.T) {
				now := &thought{make(chan struct{}), make(chan struct{})}
				thoughts.Store(now)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.URL+path, strings.NewReader(string(chat("llama"))))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/json")
				answered := make(chan answer, 1)
				go func() { answered <- do(newClient(t, protocol), req) }()
				waitClosed(t, now.begun, "the request reaches the pod")
				cancel()
				waitClosed(t, now.dropped, "the pod sees that the client has gone")
				if a := <-answered; a.Err == nil {
					t.Errorf("got %d although the client gave up", a.Status)
				}
			})
		}
	}
}

// waitClosed waits for a channel to be closed.
func waitClosed(t testing.TB, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("not within %v: %s", patience, what)
	}
}
