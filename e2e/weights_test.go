package e2e

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
)

// TestWeights: of weighted backends the picker that is asked and the pod that serves are
// always of the same pool, the shares are as the weights say, and a backend that is broken
// costs its own share.
func TestWeights(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	// One endpoint of either pool: were the other's picker asked, its pick would be served.
	both := h.Open[0].Address + "," + h.Close[0].Address
	open.Do(script{Endpoint: both})
	closed.Do(script{Endpoint: both})
	web := startThinkingPod(t, "web", &h.Arrived)
	h.Write("web.yaml", yamlService("web", web))
	toPools := func(weights string) string { return "backendRefs: [" + weights + "]" }
	pool := func(name string, weight int) string {
		return fmt.Sprintf("{group: inference.networking.k8s.io, kind: InferencePool, name: %s, weight: %d}", name, weight)
	}
	h.Write("weights.yaml", yamlRoute("weights",
		rule(toPools(pool("open", 70)+", "+pool("close", 30)), onModel("two-pools")),
		rule(toPools(pool("close", 50)+", {name: web, port: 80, weight: 30}, "+pool("missing", 20)), onModel("mixed"))))
	for _, c := range []struct {
		model  string
		shares map[string]float64 // by the pool or Service that answers; "": 500
	}{
		{"two-pools", map[string]float64{"open": 0.7, "close": 0.3}},
		{"mixed", map[string]float64{"close": 0.5, "web": 0.3, "": 0.2}},
	} {
		t.Run(c.model, func(t *testing.T) {
			waitFor(t, "the route is served", func() bool { return h.send(t.Context(), c.model, 300).Status != 404 })
			const n = 2000
			askedOpen, askedClose := open.asked.Load(), closed.asked.Load()
			count := map[string]int{}
			for _, r := range h.sendMany(t, c.model, n) {
				count[weighedAnswer(t, r)]++
			}
			t.Logf("%v", count)
			for who, share := range c.shares {
				if got := float64(count[who]) / n; math.Abs(got-share) > 0.04 {
					t.Errorf("%q has a share of %.3f, want %.2f", who, got, share)
				}
			}
			if o, cl := open.asked.Load()-askedOpen, closed.asked.Load()-askedClose; int(o) != count["open"] || int(cl) != count["close"] {
				t.Errorf("pickers were asked %d and %d times; want %d and %d", o, cl, count["open"], count["close"])
			}
		})
	}
}

// sendMany sends n requests, eight at a time, every tenth with a body of 200 KB.
func (h *hookup) sendMany(t *testing.T, model string, n int) []reply {
	replies := make([]reply, n)
	next := make(chan int)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range next {
				size := 1000
				if i%10 == 0 {
					size = 200 << 10
				}
				replies[i] = h.send(t.Context(), model, size)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
	return replies
}

// weighedAnswer returns which pool or Service answered, "" for the broken one, and checks
// that the picker asked was its own, or none.
func weighedAnswer(t *testing.T, r reply) string {
	t.Helper()
	if r.Status == 500 && r.Err == nil {
		if r.Header.Get(headerPicker) != "" {
			t.Errorf("%v: a picker was asked for a broken backend", r)
		}
		return ""
	}
	got, ok := r.podGot(t)
	if !ok {
		return "failed"
	}
	who, _, _ := strings.Cut(got.Pod, "-")
	picker := who + "-epp"
	if who == "web" {
		picker = ""
	}
	if r.Header.Get(headerPicker) != picker || got.header(headerPicker) != picker {
		t.Errorf("%v: served by %s, and the picker asked was %q (%q at the pod)", r, got.Pod, r.Header.Get(headerPicker), got.header(headerPicker))
	}
	return who
}
