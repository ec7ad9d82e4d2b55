// Package status says what the translator derived: of each object the newest status
// only, times filled in, written where the objects came from, or kept and printed
// where nothing can be written (a directory).
package status

import (
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator"
)

// Writer takes statuses as they change. Write never blocks: it is called from the
// control plane's one loop. Of an object only the newest status counts.
type Writer interface {
	Write(statuses []translator.Status)
}

// Book is the Writer of a directory: it keeps every status for /debug/status and
// logs each condition that changes. Safe for concurrent use.
type Book struct {
	log *zap.Logger
	now func() time.Time

	mu      sync.Mutex
	entries map[source.Ref]translator.Status
}

// NewBook returns an empty Book. now is the clock of lastTransitionTime.
func NewBook(log *zap.Logger, now func() time.Time) *Book {
	return &Book{log: log, now: now, entries: map[source.Ref]translator.Status{}}
}

// Write implements Writer.
func (b *Book) Write(statuses []translator.Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := metav1.NewTime(b.now().UTC().Truncate(time.Second))
	for _, s := range statuses {
		before := conditions(b.entries[s.Ref])
		s = s.WithTimes(func(where, typ string, status metav1.ConditionStatus) metav1.Time {
			if old, ok := before[[2]string{where, typ}]; ok && old.Status == status {
				return old.LastTransitionTime
			}
			return now
		})
		b.report(s, before)
		if s.Empty() {
			delete(b.entries, s.Ref)
		} else {
			b.entries[s.Ref] = s
		}
	}
}

// report logs every condition that is new or changed: as a warning where the user has
// something to mend.
func (b *Book) report(s translator.Status, before map[[2]string]metav1.Condition) {
	s.EachCondition(func(where string, c *metav1.Condition) {
		if old, ok := before[[2]string{where, c.Type}]; ok && old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return
		}
		log := b.log.Info
		if bad(c) {
			log = b.log.Warn
		}
		log("condition", zap.Stringer("object", s.Ref), zap.String("of", where), zap.String("type", c.Type),
			zap.String("status", string(c.Status)), zap.String("reason", c.Reason), zap.String("message", c.Message))
	})
	for _, w := range s.Warnings {
		if !slices.Contains(b.entries[s.Ref].Warnings, w) {
			b.log.Warn(w, zap.Stringer("object", s.Ref))
		}
	}
}

// bad says whether a condition is one that its user has to mend: some types are good
// when False, and Pending passes by itself.
func bad(c *metav1.Condition) bool {
	switch c.Type {
	case "Conflicted", "OverlappingTLSConfig", "PartiallyInvalid", "InsecureFrontendValidationMode":
		return c.Status == metav1.ConditionTrue
	}
	return c.Status == metav1.ConditionFalse && c.Reason != "Pending"
}

func conditions(s translator.Status) map[[2]string]metav1.Condition {
	out := map[[2]string]metav1.Condition{}
	s.EachCondition(func(where string, c *metav1.Condition) { out[[2]string{where, c.Type}] = *c })
	return out
}

// All returns every status, sorted by object.
func (b *Book) All() []translator.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]translator.Status, 0, len(b.entries))
	for _, s := range b.entries {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b translator.Status) int { return a.Ref.Compare(b.Ref) })
	return out
}

// Fan returns a Writer that hands every status to each of the writers, in order.
func Fan(writers ...Writer) Writer { return fan(writers) }

type fan []Writer

func (f fan) Write(statuses []translator.Status) {
	for _, w := range f {
		w.Write(statuses)
	}
}
