package picker

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// watched is a remote with the real times, whose probes are answered as f says.
func watched(f func(ctx context.Context) error) *remote {
	r := newRemote(key{endpoint: "127.0.0.1:1"}, nil, defaultTiming, zap.NewNop())
	r.ping = f
	return r
}

func isDead(r *remote) bool {
	select {
	case <-r.death():
		return true
	default:
		return r.dead.Load()
	}
}

func hangs(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

var errMissed = errors.New("no answer")

// TestWatch: when pickers are probed, and when they count as dead.
func TestWatch(t *testing.T) {
	t.Run("nobody waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var probes atomic.Int64
			r := watched(func(context.Context) error { probes.Add(1); return errMissed })
			for range 100 { // short requests, one after the other
				r.wait()
				time.Sleep(time.Millisecond)
				r.waited()
				time.Sleep(time.Second)
			}
			if probes.Load() != 0 || isDead(r) {
				t.Errorf("%d probes, dead %v", probes.Load(), isDead(r))
			}
			r.close()
		})
	})
	t.Run("alive for an hour", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var probes atomic.Int64
			r := watched(func(context.Context) error { probes.Add(1); return nil })
			r.wait()
			time.Sleep(time.Hour)
			if n := probes.Load(); n != 3600 || isDead(r) {
				t.Errorf("%d probes in an hour, dead %v", n, isDead(r))
			}
			r.waited()
			time.Sleep(time.Hour)
			if n := probes.Load(); n > 3601 {
				t.Errorf("%d probes after nobody waited", n)
			}
			r.close()
		})
	})
	t.Run("two misses", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := watched(hangs)
			begin := time.Now()
			r.wait()
			<-r.death()
			if took := time.Since(begin); took != 2250*time.Millisecond {
				t.Errorf("dead after %v", took)
			}
			r.waited()
			r.close()
		})
	})
	t.Run("one miss is none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			r := watched(func(context.Context) error {
				if n++; n%2 == 0 {
					return errMissed
				}
				return nil
			})
			r.wait()
			time.Sleep(time.Minute)
			if isDead(r) {
				t.Error("dead")
			}
			r.waited()
			r.close()
		})
	})
	t.Run("too busy to answer probes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := watched(hangs)
			r.wait()
			for range 100 {
				time.Sleep(300 * time.Millisecond)
				r.heard()
			}
			if isDead(r) {
				t.Error("dead, though it spoke")
			}
			r.waited()
			r.close()
		})
	})
	t.Run("comes back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var up atomic.Bool
			r := watched(func(ctx context.Context) error {
				if up.Load() {
					return nil
				}
				return hangs(ctx)
			})
			r.wait()
			<-r.death()
			r.waited()
			up.Store(true)
			time.Sleep(defaultTiming.timeout + defaultTiming.revive)
			if isDead(r) {
				t.Error("still dead")
			}
			r.close()
		})
	})
	t.Run("forgotten", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var probes atomic.Int64
			r := watched(func(ctx context.Context) error { probes.Add(1); return errMissed })
			r.wait()
			<-r.death()
			r.waited()
			r.load() // somebody asks, once
			time.Sleep(defaultTiming.forget + time.Second)
			seen := probes.Load()
			time.Sleep(time.Hour)
			if probes.Load() != seen || isDead(r) {
				t.Errorf("%d probes for nobody; dead %v", probes.Load()-seen, isDead(r))
			}
			r.close()
		})
	})
}
