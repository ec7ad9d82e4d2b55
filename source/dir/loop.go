package dir

import (
	"context"
	"maps"
	"time"

	"go.uber.org/zap"

	"signalbox.dev/source"
)

// patience is how long, in settle times, files that never get quiet are waited for.
const patience = 50

// Run implements source.Source.
func (w *watched) Run(ctx context.Context, batches chan<- source.Batch) error {
	hints := newHints(w.log)
	defer hints.close()
	l := &loop{watched: w, hints: hints, batches: batches}
	first := l.look()
	if err := first.missing(); err != nil {
		return err
	}
	if !l.deliver(ctx, first) {
		return nil
	}
	poll := time.NewTicker(w.poll)
	defer poll.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hints.c:
			quiet.Reset(l.wait(w.settle))
		case <-poll.C:
			if l.since.IsZero() && l.look().sum() != l.applied {
				quiet.Reset(l.wait(w.settle))
			}
		case <-quiet.C:
			if !l.deliver(ctx, l.look()) {
				return nil
			}
			if wait, ok := l.losses.next(l.grace); ok {
				quiet.Reset(wait)
			}
		}
	}
}

// loop is the state of one Run.
type loop struct {
	*watched
	hints   *hints
	batches chan<- source.Batch
	objects objects
	losses  losses
	applied sum       // of the files as delivered
	synced  bool      // the first batch was received
	since   time.Time // of the first hint that was not yet followed up; zero if there is none

	toldProblems map[source.Problem]bool
	toldIgnored  map[string]bool
}

func (l *loop) look() *snapshot {
	var files snapshot
	l.hints.begin()
	for _, path := range l.paths {
		files.root(path, l.hints)
	}
	l.hints.end()
	return &files
}

// wait returns d, or less where patience ends before.
func (l *loop) wait(d time.Duration) time.Duration {
	if l.since.IsZero() {
		l.since = time.Now()
	}
	return max(0, min(d, time.Until(l.since.Add(patience*l.settle))))
}

// deliver sends what changed; false: ctx ended before it was received.
func (l *loop) deliver(ctx context.Context, files *snapshot) bool {
	l.since = time.Time{}
	held := l.losses.see(l.objects.lost(files), l.grace)
	if l.synced && files.sum() == l.applied {
		return true
	}
	changes := l.objects.apply(files, held)
	l.applied = sum{}
	if len(held) == 0 {
		l.applied = files.sum()
	}
	problems := l.objects.problems()
	l.tellIgnored()
	if !l.tellProblems(problems) && len(changes) == 0 && l.synced {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case l.batches <- source.Batch{Changes: changes, Problems: problems, ProblemsKnown: true, Synced: true}:
		l.synced = true
		return true
	}
}

// tellProblems logs each problem once when it comes and once when it is gone, and
// reports whether there was one of either.
func (l *loop) tellProblems(problems []source.Problem) (changed bool) {
	now := map[source.Problem]bool{}
	for _, p := range problems {
		now[p] = true
		if !l.toldProblems[p] {
			l.log.Warn("problem in a file", zap.String("where", p.Where), zap.String("object", p.Object), zap.String("problem", p.Message))
		}
	}
	for p := range l.toldProblems {
		if !now[p] {
			l.log.Info("problem in a file is gone", zap.String("where", p.Where), zap.String("object", p.Object), zap.String("problem", p.Message))
		}
	}
	changed = !maps.Equal(now, l.toldProblems)
	l.toldProblems = now
	return changed
}

func (l *loop) tellIgnored() {
	now := map[string]bool{}
	for _, i := range l.objects.ignored() {
		what := i.Kind + " " + i.APIVersion + " " + i.Name
		if now[what] = true; !l.toldIgnored[what] {
			l.log.Info("ignored, signalbox does not read this kind", zap.String("where", i.Where), zap.String("kind", i.Kind), zap.String("apiVersion", i.APIVersion), zap.String("name", i.Name))
		}
	}
	l.toldIgnored = now
}

// losses are the files that held objects and are gone or shorter now, but may be in
// the middle of being written: by path, what they look like and since when.
type losses map[string]loss

type loss struct {
	sight
	since time.Time
}

type sight struct {
	sum   sum
	mtime time.Time
}

// see takes the losses of a look and returns those that are not believed yet: new
// ones, and those that do not look the same for long enough.
func (ls *losses) see(now map[string]sight, grace time.Duration) (held map[string]bool) {
	before := *ls
	*ls, held = losses{}, map[string]bool{}
	for path, l := range now {
		seen := loss{l, time.Now()}
		if b, ok := before[path]; ok && b.sight == l {
			seen = b
		}
		if time.Since(seen.since) < grace {
			(*ls)[path], held[path] = seen, true
		}
	}
	return held
}

// next returns how long to wait until another loss may be believed; false: there is
// none.
func (ls losses) next(grace time.Duration) (wait time.Duration, ok bool) {
	for _, loss := range ls {
		if d := max(0, time.Until(loss.since.Add(grace))); !ok || d < wait {
			wait, ok = d, true
		}
	}
	return wait, ok
}
