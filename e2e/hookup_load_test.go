package e2e

import (
	"context"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hookupLoad sends requests at a constant rate, whatever becomes of them.
type hookupLoad struct {
	cancel context.CancelFunc
	ticks  chan struct{} // one for each round
	ended  chan struct{}
	mu     sync.Mutex
	got    []reply
}

// startLoad sends 40 requests a second to each pool; every body for which small says so is
// of 1 KB, the others of 100 KB.
func (h *hookup) startLoad(ctx context.Context, pools []string, small func(i int) bool) *hookupLoad {
	ctx, cancel := context.WithCancel(ctx)
	l := &hookupLoad{cancel: cancel, ticks: make(chan struct{}, 10000), ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		var all sync.WaitGroup
		defer all.Wait()
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			size := 100 << 10
			if small(i) {
				size = 1000
			}
			for _, p := range pools {
				all.Go(func() { l.add(h.send(context.WithoutCancel(ctx), p, size)) })
			}
			l.ticks <- struct{}{}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return l
}

func (l *hookupLoad) add(r reply) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got = append(l.got, r)
}

// rounds waits until so many more requests have been sent to each pool.
func (l *hookupLoad) rounds(n int) {
	for range n {
		<-l.ticks
	}
}

// stop returns all replies, by pool.
func (l *hookupLoad) stop() map[string][]reply {
	l.cancel()
	<-l.ended
	out := map[string][]reply{}
	for _, r := range l.got {
		out[r.Pool] = append(out[r.Pool], r)
	}
	return out
}

// outage is what is done to a picker's process under load.
type outage struct {
	name string
	hit  func(*pickerProcess)
	mend func(*pickerProcess)
}

var outages = []outage{
	{"SIGKILL", (*pickerProcess).Kill, (*pickerProcess).Start},
	{"SIGSTOP", func(p *pickerProcess) { p.Signal(syscall.SIGSTOP) }, func(p *pickerProcess) { p.Signal(syscall.SIGCONT) }},
	{"SIGTERM", func(p *pickerProcess) { p.Signal(syscall.SIGTERM) }, func(p *pickerProcess) { <-p.Ended; p.Start() }},
}

// TestOneOfTwoPickers: while one of two pickers is gone, the other is asked for everything,
// what the first one had taken in included. Nothing fails, with either failure mode.
func TestOneOfTwoPickers(t *testing.T) {
	h := newHookup(t)
	picks := h.Open[0].Address + "," + h.Close[0].Address
	one, two := startPickerProcess(t, "one", picks), startPickerProcess(t, "two", picks)
	pickers := []string{one.Address, two.Address}
	h.run(t, hookupPool{Name: "open", FailOpen: true, Pickers: pickers}, hookupPool{Name: "close", Pickers: pickers})
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			l := h.startLoad(t.Context(), []string{"open", "close"}, func(int) bool { return false })
			l.rounds(40)
			o.hit(one)
			l.rounds(120)
			o.mend(one)
			asked := one.Asked.Load()
			l.rounds(60)
			for pool, replies := range l.stop() {
				failed, unpicked, slowest := 0, 0, time.Duration(0)
				for _, r := range replies {
					slowest = max(slowest, r.Took)
					if got, ok := r.podGot(t); !ok {
						failed++
					} else if got.header(headerPicker) == "" {
						unpicked++
					}
				}
				t.Logf("%s: %d requests, %d failed, %d without a pick, slowest %v", pool, len(replies), failed, unpicked, slowest)
				if unpicked > 0 {
					t.Errorf("%s: %d requests went without a pick", pool, unpicked)
				}
				if slowest > hungBound {
					t.Errorf("%s: a request took %v", pool, slowest)
				}
			}
			if one.Asked.Load() == asked {
				t.Error("the first picker was not asked again")
			}
		})
	}
	if _, partial := requests(append(h.Open, h.Close...)...); partial != 0 {
		t.Errorf("pods saw %d requests in part", partial)
	}
}

// TestOnlyPickerUnderLoad: the only picker goes while 40 requests a second come in, and
// comes back. FailOpen loses nothing and spreads the load; FailClose lets nothing through
// that was not picked for, and both use the picker again.
func TestOnlyPickerUnderLoad(t *testing.T) {
	h := newHookup(t)
	picker := startPickerProcess(t, "epp", h.Open[0].Address+","+h.Close[0].Address)
	h.run(t, hookupPool{Name: "open", FailOpen: true, Pickers: []string{picker.Address}}, hookupPool{Name: "close", Pickers: []string{picker.Address}})
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			atClose := watchPods(h.Close...)
			l := h.startLoad(t.Context(), []string{"open", "close"}, func(i int) bool { return i%3 != 0 })
			l.rounds(40)
			hit := time.Now()
			o.hit(picker)
			hitDone := time.Now()
			l.rounds(120)
			mend := time.Now()
			o.mend(picker)
			mended := time.Now()
			l.rounds(140)
			replies := l.stop()
			for _, r := range replies["open"] {
				checkOpenUnderLoad(t, h, r, hit, mended)
			}
			spread(t, h, replies["open"])
			served := int64(0)
			for _, r := range replies["close"] {
				if r.Status == 200 {
					served++
					r.picked(t, "epp", h.Close[0])
				} else {
					r.refused(t)
				}
				over := r.Began.Add(r.Took)
				if during := r.Began.After(hitDone) && over.Before(mend); during && r.Status == 200 && o.name != "SIGTERM" {
					t.Errorf("%v: served while the picker was gone", r)
				}
				if well := over.Before(hit) || r.Began.After(mended.Add(usedAgain)); well && r.Status != 200 {
					t.Errorf("%v: refused while the picker was there (%v after it came back)", r, r.Began.Sub(mended))
				}
			}
			atClose(t, "close", served)
			t.Logf("open: %d, none failed; close: %d of %d served", len(replies["open"]), served, len(replies["close"]))
		})
	}
}

// usedAgain is how long after its return a picker may still be taken for dead.
const usedAgain = soon

func checkOpenUnderLoad(t *testing.T, h *hookup, r reply, hit, mended time.Time) {
	t.Helper()
	got, ok := r.podGot(t)
	if !ok {
		return
	}
	if r.Took > hungBound {
		t.Errorf("%v: later than %v", r, hungBound)
	}
	if well := r.Began.Add(r.Took).Before(hit) || r.Began.After(mended.Add(usedAgain)); well && got.header(headerPicker) != "epp" {
		t.Errorf("%v: not picked while the picker was there", r)
	}
	if !strings.HasPrefix(got.Pod, "open-") {
		t.Errorf("%v: served by %s", r, got.Pod)
	}
}

// spread checks that requests without a pick go to all pods.
func spread(t *testing.T, h *hookup, replies []reply) {
	t.Helper()
	count := map[string]int{}
	all := 0
	for _, r := range replies {
		if got := r.decode(t); got.header(headerPicker) == "" {
			count[got.Pod]++
			all++
		}
	}
	t.Logf("without a pick: %v", count)
	for _, p := range h.Open {
		if count[p.Name] < all/4 {
			t.Errorf("pod %s got %d of %d requests without a pick", p.Name, count[p.Name], all)
		}
	}
}
