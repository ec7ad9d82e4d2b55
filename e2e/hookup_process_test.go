package e2e

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// sseStream is a response of server-sent events that a goroutine reads.
type sseStream struct {
	Pool    string
	Running chan struct{} // closed after a few events
	Ended   chan struct{}
	// After Ended:
	Status int
	Events int           // in order, from 0
	Done   bool          // the last was [DONE]
	Gap    time.Duration // the longest between two
	Err    error
}

// stream requests count events from a pool, pause apart.
func (h *hookup) stream(ctx context.Context, pool string, count int, pause time.Duration) *sseStream {
	s := &sseStream{Pool: pool, Running: make(chan struct{}), Ended: make(chan struct{})}
	go func() {
		defer close(s.Ended)
		s.read(ctx, h, fmt.Sprintf("/stream/%d/%s", count, pause))
	}()
	return s
}

func (s *sseStream) read(ctx context.Context, h *hookup, path string) {
	resp, err := h.client.Do(h.request(ctx, path, hookupBody(s.Pool, 2000)))
	if err != nil {
		s.Err = err
		return
	}
	defer resp.Body.Close()
	s.Status = resp.StatusCode
	last := time.Now()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			continue
		}
		s.Gap = max(s.Gap, time.Since(last))
		last = time.Now()
		switch {
		case line == "data: [DONE]":
			s.Done = true
		case strings.HasPrefix(line, fmt.Sprintf(`data: {"i":%d,`, s.Events)) && !s.Done:
			s.Events++
		default:
			s.Err = fmt.Errorf("after %d events: %q", s.Events, line)
			return
		}
		if s.Events == 3 && !s.Done {
			close(s.Running)
		}
	}
	s.Err = lines.Err()
}

// whole checks that nothing is missing, and that there was no longer pause than gap.
func (s *sseStream) whole(t *testing.T, count int, gap time.Duration) {
	t.Helper()
	<-s.Ended
	if s.Err != nil || s.Status != 200 || s.Events != count || !s.Done || s.Gap > gap {
		t.Errorf("%s: %d, %d of %d events, [DONE] %v, longest pause %v of %v, %v", s.Pool, s.Status, s.Events, count, s.Done, s.Gap, gap, s.Err)
	}
}

// processHookup is a FailOpen and a FailClose pool for each response mode, whose picker is
// a process.
func processHookup(t *testing.T) (h *hookup, picker *pickerProcess, pools []string) {
	t.Helper()
	h = newHookup(t)
	picker = startPickerProcess(t, "epp", h.Open[0].Address+","+h.Close[0].Address) // each pool has one of them
	var all []hookupPool
	for _, mode := range []string{"Full", "Headers", "None"} {
		for _, open := range []bool{true, false} {
			p := hookupPool{FailOpen: open, Pickers: []string{picker.Address}, Annotations: "signalbox.dev/picker-response: " + mode}
			p.Name = strings.ToLower(mode) + "-" + p.pods()
			all, pools = append(all, p), append(pools, p.Name)
		}
	}
	h.run(t, all...)
	return h, picker, pools
}

// TestPickerProcess: what becomes of everything that is under way when the picker's
// process is killed, stopped, or asked to end: responses, requests that wait for their
// pick, and requests that a pod works on.
func TestPickerProcess(t *testing.T) {
	t.Parallel()
	h, picker, pools := processHookup(t)
	const events = 40
	for _, c := range []struct {
		name    string
		think   string // of the picker, for those that wait
		hit     func()
		mend    func()
		answers bool          // those that wait are still answered by the picker
		bound   time.Duration // until those that wait are answered
	}{
		{"SIGKILL", "60s", picker.Kill, picker.Start, false, soon},
		{"SIGSTOP", "60s", func() { picker.Signal(syscall.SIGSTOP) }, func() { picker.Signal(syscall.SIGCONT) }, false, hungBound},
		{"SIGTERM", "2s", func() { picker.Signal(syscall.SIGTERM) }, func() { <-picker.Ended; picker.Start() }, true, hungBound},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked, arrived := picker.Asked.Load(), h.Arrived.Load()
			var streams []*sseStream
			for _, p := range pools {
				streams = append(streams, h.stream(t.Context(), p, events, 50*time.Millisecond))
			}
			var all sync.WaitGroup
			waiting, working := make([]reply, 2*len(pools)), make([]reply, len(pools))
			for i, p := range pools {
				all.Go(func() { waiting[2*i] = h.send(t.Context(), p, 100<<10, headerThink, c.think) })
				all.Go(func() { waiting[2*i+1] = h.send(t.Context(), p, noBody, headerThink, c.think) })
				all.Go(func() { working[i] = h.send(t.Context(), p, 100<<10, headerPodThink, "2s") })
			}
			for _, s := range streams {
				<-s.Running
			}
			waitFor(t, "all are under way", func() bool {
				return picker.Asked.Load()-asked == int64(4*len(pools)) && h.Arrived.Load()-arrived == int64(2*len(pools))
			})
			hit := time.Now()
			c.hit()
			all.Wait()
			for _, r := range waiting {
				if late := r.Took - hit.Sub(r.Began); late > c.bound {
					t.Errorf("%v: %v after the signal, want %v", r, late, c.bound)
				}
				h.checkOutcome(t, r, c.answers)
			}
			for _, r := range working {
				h.checkOutcome(t, r, true)
			}
			for _, s := range streams {
				gap := soon
				if strings.HasPrefix(s.Pool, "full") && c.name == "SIGSTOP" {
					gap = hungBound // until it is known to be dead, it may be thinking
				}
				s.whole(t, events, gap)
				t.Logf("%s: longest pause %v", s.Pool, s.Gap.Round(time.Millisecond))
			}
			h.mend(t, c.mend)
		})
	}
	if _, partial := requests(append(h.Open, h.Close...)...); partial != 0 {
		t.Errorf("pods saw %d requests in part", partial)
	}
}

// checkOutcome checks what became of a request: picked, or the failure mode's.
func (h *hookup) checkOutcome(t *testing.T, r reply, picked bool) {
	t.Helper()
	pods := h.Close
	if strings.HasSuffix(r.Pool, "open") {
		pods = h.Open
	}
	switch {
	case picked:
		r.picked(t, "epp", pods[0])
	case strings.HasSuffix(r.Pool, "open"):
		r.unpicked(t, pods)
	default:
		r.refused(t)
	}
}

// mend brings the picker back, and checks how soon it is used again: the next probe of a
// dead picker is half a second away at most.
func (h *hookup) mend(t *testing.T, mend func()) {
	t.Helper()
	mend()
	back := time.Now()
	waitFor(t, "the picker is used again", func() bool { return h.send(t.Context(), "full-close", 300).Status == 200 })
	if took := time.Since(back); took > soon {
		t.Errorf("the picker was used again %v after it came back", took)
	} else {
		t.Logf("used again after %v", took.Round(time.Millisecond))
	}
	for _, r := range h.sendAll(t.Context(), []string{"full-open", "full-close"}) {
		h.checkOutcome(t, r, true)
	}
}

// TestHungPickerLargeBodies: a stopped process reads nothing any more; its socket fills up
// with a body of which it has seen a part.
func TestHungPickerLargeBodies(t *testing.T) {
	t.Parallel()
	h, picker, pools := processHookup(t)
	atClose := watchPods(h.Close...)
	picker.Signal(syscall.SIGSTOP)
	for _, r := range h.sendAll(t.Context(), pools) {
		if r.Size <= 300 && r.Took > hungBound {
			t.Errorf("%v: later than %v", r, hungBound)
		}
		h.checkOutcome(t, r, false)
	}
	atClose(t, "close", 0)
	h.mend(t, func() { picker.Signal(syscall.SIGCONT) })
}
