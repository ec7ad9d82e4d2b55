package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// longerModel renames the model of a body, as a picker with rewrite rules does.
func longerModel(body []byte) []byte {
	return bytes.Replace(body, []byte(`{"model":"`), []byte(`{"model":"served-under-another-and-longer-name-than-`), 1)
}

// TestPickerHeaders: a picker that sets every header again from a map, as those that ship
// do, takes none of several values away, in either direction.
func TestPickerHeaders(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	open.Do(script{Endpoint: h.Open[0].Address})
	closed.Do(script{Endpoint: h.Close[0].Address})
	for _, r := range h.sendAll(t.Context(), []string{"open", "close"}, "Cookie", "a=1", "Cookie", "b=2", "X-Multi", "one", "X-Multi", "two",
		"X-Gateway-Inference-Objective", "sheddable") {
		got, ok := r.podGot(t)
		if !ok {
			continue
		}
		if c := strings.Join(got.Header["Cookie"], "; "); c != "a=1; b=2" {
			t.Errorf("%v: cookies %q", r, c)
		}
		if m := strings.Join(got.Header["X-Multi"], ","); m != "one,two" {
			t.Errorf("%v: x-multi %q", r, m)
		}
		if got.header("X-Gateway-Inference-Objective") != "sheddable" {
			t.Errorf("%v: the objective is lost", r)
		}
		if want := fmt.Sprint(len(r.Sent)); r.Size != noBody && got.header("Content-Length") != want {
			t.Errorf("%v: content-length %q, want %s", r, got.header("Content-Length"), want)
		}
		if c := r.Header["Set-Cookie"]; !slices.Equal(c, []string{"a=1", "b=2"}) {
			t.Errorf("%v: set-cookie %q", r, c)
		}
		if r.Header.Get(headerPicker) != r.Pool+"-epp" || r.Header.Get("X-Went-Into-Resp-Headers") != "true" {
			t.Errorf("%v: what the picker added to the response is lost: %v", r, r.Header)
		}
	}
	for _, p := range []*faultyPicker{open, closed} {
		if n := p.biggest.Load(); n > 62000 {
			t.Errorf("%s was sent %d bytes in a message", p.Name, n)
		}
	}
}

// TestPickerRewrites: a picker may give other bodies back, in both directions.
func TestPickerRewrites(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	shorter := func(b []byte) []byte { return bytes.Replace(b, []byte(`"pod":`), []byte(`"p":`), 1) }
	for _, rewrite := range []func([]byte) []byte{longerModel, func(b []byte) []byte { return b[:len(b)/2] }} {
		open.Do(script{Endpoint: h.Open[0].Address, Rewrite: rewrite, Respond: shorter})
		closed.Do(script{Endpoint: h.Close[0].Address, Rewrite: rewrite, Respond: shorter})
		for _, r := range h.sendAll(t.Context(), []string{"open", "close"}) {
			if !strings.HasPrefix(r.Body, `{"p":`) {
				t.Errorf("%v: want the body that the picker gave back", r)
				continue
			}
			if r.Body = `{"pod":` + strings.TrimPrefix(r.Body, `{"p":`); r.Size != noBody {
				r.Sent = rewrite(r.Sent)
			}
			if got, ok := r.podGot(t); ok && got.header(headerPicker) != r.Pool+"-epp" {
				t.Errorf("%v: picked by %s", r, got.header(headerPicker))
			}
		}
	}
}

// TestServed: a picker learns which pod has served, in the response phase, also when that
// is not its pick; and nothing when none has.
func TestServed(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	served := func(p *faultyPicker, pool string) (reply, string) {
		before := len(p.Served())
		r := h.send(t.Context(), pool, 300)
		waitFor(t, p.Name+" is told", func() bool { return len(p.Served()) == before+1 })
		return r, p.Served()[before]
	}
	for _, pods := range [][2]*pod{{h.Open[0], h.Close[1]}, {h.Open[1], h.Close[0]}} {
		open.Do(script{Endpoint: pods[0].Address})
		closed.Do(script{Endpoint: "10.255.255.1:8000," + pods[1].Address})
		if r, to := served(open, "open"); to != pods[0].Address {
			t.Errorf("%v: the picker was told %q served", r, to)
		}
		if r, to := served(closed, "close"); to != pods[1].Address {
			t.Errorf("%v: the picker was told %q served", r, to)
		}
	}
	open.Do(script{Endpoint: "10.255.255.1:8000"})
	closed.Do(script{Endpoint: "10.255.255.1:8000"})
	r, to := served(open, "open")
	got := r.decode(t)
	if i := slices.IndexFunc(h.Open, func(p *pod) bool { return p.Address == to }); i < 0 || h.Open[i].Name != got.Pod {
		t.Errorf("%s served, and the picker was told %q", got.Pod, to)
	}
	if r, to := served(closed, "close"); r.Status != 503 || to != "" {
		t.Errorf("%v: the picker was told %q served; want 503, and none", r, to)
	}
}

// TestPickerResponseModes: what the pool's annotation hides, the picker is not shown.
func TestPickerResponseModes(t *testing.T) {
	t.Parallel()
	h := newHookup(t)
	p := startFaulty(t, "epp", true)
	p.Do(script{Endpoint: h.Close[0].Address, Respond: bytes.ToUpper})
	for _, mode := range []string{"Full", "Headers", "None"} {
		pool := hookupPool{Name: "m-" + strings.ToLower(mode), Pickers: []string{p.Address},
			Annotations: fmt.Sprintf("signalbox.dev/picker-tls: plaintext, signalbox.dev/picker-response: %s", mode)}
		if h.box == nil {
			h.run(t, pool)
		} else {
			h.Write("pool-"+pool.Name+".yaml", pool.yaml())
			h.Write("picker-"+pool.Name+".yaml", pool.pickersYAML())
		}
		waitFor(t, mode+" is served", func() bool { return h.send(t.Context(), pool.Name, noBody).Status == 200 })
		before := len(p.Served())
		r := h.send(t.Context(), pool.Name, 100<<10)
		headers, body := r.Header.Get(headerPicker) == "epp", strings.Contains(r.Body, `"POD":"CLOSE-0"`)
		if r.Status != 200 || headers != (mode != "None") || body != (mode == "Full") {
			t.Errorf("%s: %v: headers seen %v, body seen %v", mode, r, headers, body)
		}
		if told := len(p.Served()) - before; told != 1 && mode != "None" || told != 0 && mode == "None" {
			t.Errorf("%s: the picker was told %d times who served", mode, told)
		}
	}
}

// TestTrailersThroughPicker: real pickers wait for ever for a body that ends by trailers,
// and never answer trailers. The pod gets them all the same.
func TestTrailersThroughPicker(t *testing.T) {
	t.Parallel()
	h := newHookup(t)
	h2c := "  appProtocol: kubernetes.io/h2c\n"
	open, closed := startFaulty(t, "open-epp", false), startFaulty(t, "close-epp", false)
	h.run(t, hookupPool{Name: "open", FailOpen: true, Pickers: []string{open.Address}, Spec: h2c},
		hookupPool{Name: "close", Pickers: []string{closed.Address}, Spec: h2c})
	client := newClient(t, "h2c")
	trailers := func(pool string, size int) reply {
		r := reply{Pool: pool, Size: size, Sent: hookupBody(pool, size), Began: time.Now()}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req := h.request(ctx, "/v1/chat/completions", r.Sent)
		req.Body, req.ContentLength, req.Trailer = io.NopCloser(bytes.NewReader(r.Sent)), -1, http.Header{"X-Checksum": {"abc"}}
		r.answer = do(client, req)
		r.Took = time.Since(r.Began)
		return r
	}
	for _, works := range []bool{true, false} {
		open.Do(script{Endpoint: h.Open[0].Address})
		closed.Do(script{Endpoint: h.Close[0].Address})
		if !works {
			open.Do(at(midBody, fails(errEnd)))
			closed.Do(at(midBody, fails(errEnd)))
		}
		for _, size := range []int{300, 100 << 10, 1 << 20} {
			for _, pool := range []string{"open", "close"} {
				r := trailers(pool, size)
				if !works && pool == "close" {
					r.refused(t)
					continue
				}
				got, ok := r.podGot(t)
				if ok && (len(got.Trailer["X-Checksum"]) != 1 || got.Trailer["X-Checksum"][0] != "abc") {
					t.Errorf("%v: the pod got the trailers %v", r, got.Trailer)
				}
				if picked := got.header(headerPicker) != ""; ok && picked != works {
					t.Errorf("%v: picked %v, want %v", r, picked, works)
				}
			}
		}
	}
}

// TestPickerThinks: a picker may take as long as it likes, and so may a pod whose response
// the picker sees: nothing that keeps connections alive or finds the dead cuts them. Eight
// seconds is twice what HTTP/2 keepalive of a second would last.
func TestPickerThinks(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	open.Do(script{Endpoint: h.Open[0].Address})
	closed.Do(script{Endpoint: h.Close[0].Address})
	pools := []string{"open", "close"}
	var silent []*sseStream
	for _, p := range pools {
		silent = append(silent, h.stream(t.Context(), p, 2, 9*time.Second))
	}
	var all sync.WaitGroup
	all.Go(func() {
		for _, r := range h.sendAll(t.Context(), pools, headerThink, "9s", headerPodThink, "1s") {
			h.checkPicked(t, r)
			if r.Took < 10*time.Second {
				t.Errorf("%v: want 10s at least", r)
			}
		}
	})
	for i := range 40 { // a queue, while that runs
		all.Go(func() { h.checkPicked(t, h.send(t.Context(), pools[i%2], 100<<10, headerThink, "2s")) })
	}
	all.Wait()
	for _, s := range silent {
		s.whole(t, 2, 9*time.Second+hungBound)
	}
}

// checkPicked checks that the first pod of the pool served what its picker picked.
func (h *hookup) checkPicked(t *testing.T, r reply) {
	t.Helper()
	if r.Pool == "open" {
		r.picked(t, "open-epp", h.Open[0])
	} else {
		r.picked(t, "close-epp", h.Close[0])
	}
}

// TestPickTimeout: with a bound on picking, a picker that is alive and does not answer
// costs that much; one that answers in time picks.
func TestPickTimeout(t *testing.T) {
	t.Parallel()
	h := newHookup(t)
	open, closed := startFaulty(t, "open-epp", false), startFaulty(t, "close-epp", false)
	const bound = "signalbox.dev/pick-timeout: 1s"
	h.run(t, hookupPool{Name: "open", FailOpen: true, Pickers: []string{open.Address}, Annotations: bound},
		hookupPool{Name: "close", Pickers: []string{closed.Address}, Annotations: bound})
	open.Do(script{Endpoint: h.Open[0].Address})
	closed.Do(script{Endpoint: h.Close[0].Address})
	for _, pool := range []string{"open", "close"} {
		h.checkPicked(t, h.send(t.Context(), pool, 100<<10, headerThink, "200ms"))
	}
	atClose := watchPods(h.Close...)
	for name, s := range map[string]script{
		"hangs":         at(beforeAnswer, hangs),
		"reads nothing": at(atHeaders, hangs),
	} {
		open.Do(s)
		closed.Do(s)
		for _, r := range h.sendAll(t.Context(), []string{"open", "close"}) {
			if r.Took < time.Second || r.Size <= 300 && r.Took > time.Second+soon {
				t.Errorf("%s: %v: want a second", name, r)
			}
			if r.Pool == "open" {
				r.unpicked(t, h.Open)
			} else {
				r.refused(t)
			}
		}
	}
	atClose(t, "close", 0)
}

// TestPickerFailsInResponse: once a pod has answered, its client gets that answer, whatever
// the picker does. One that is alive and keeps the headers or the end to itself has five
// seconds: there is nothing to think about.
func TestPickerFailsInResponse(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	for _, c := range []struct {
		name string
		at   phase
		do   func(*faultyStream) error
		gap  time.Duration
	}{
		{"error at the headers", atResponse, fails(errFault), soon},
		{"OK at the headers", atResponse, fails(errEnd), soon},
		{"the request's answer again", atResponse, func(x *faultyStream) error { return x.Send(x.pick()) }, soon},
		{"hangs at the headers", atResponse, hangs, 5*time.Second + soon},
		{"error in the body", atResponseBody, fails(errFault), soon},
		{"OK in the body", atResponseBody, fails(errEnd), soon},
		{"a body as if BUFFERED", atResponseBody, says(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
			ResponseBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{}}}}), soon},
	} {
		for _, p := range []*faultyPicker{open, closed} {
			p.Do(script{Endpoint: h.Open[0].Address + "," + h.Close[0].Address, At: map[phase]func(*faultyStream) error{c.at: c.do}})
		}
		var streams []*sseStream
		for _, pool := range []string{"open", "close"} {
			streams = append(streams, h.stream(t.Context(), pool, 10, 20*time.Millisecond))
		}
		for _, r := range h.sendAll(t.Context(), []string{"open", "close"}) {
			if r.Took > c.gap && r.Size <= 300 {
				t.Errorf("%s: %v: want it within %v", c.name, r, c.gap)
			}
			h.checkPicked(t, r)
		}
		for _, s := range streams {
			s.whole(t, 10, c.gap)
		}
	}
}

// TestClientGivesUp: a client that goes takes its place in the picker's queue with it.
func TestClientGivesUp(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	atOpen, atClose := watchPods(h.Open...), watchPods(h.Close...)
	for _, p := range []*faultyPicker{open, closed} {
		asked, left := make(chan struct{}), make(chan struct{})
		p.Do(at(beforeAnswer, func(x *faultyStream) error {
			asked <- struct{}{}
			<-x.Context().Done()
			left <- struct{}{}
			return x.Context().Err()
		}))
		for _, size := range []int{noBody, 100 << 10} {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan reply)
			go func() { ended <- h.send(ctx, strings.TrimSuffix(p.Name, "-epp"), size) }()
			<-asked
			cancel()
			select {
			case <-left:
			case <-time.After(patience):
				t.Fatalf("%s: the stream is still open", p.Name)
			}
			<-ended
		}
	}
	atOpen(t, "open", 0)
	atClose(t, "close", 0)
}
