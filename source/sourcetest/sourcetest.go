// Package sourcetest is the one test suite that every source of objects passes, so
// that the rest of signalbox need not know where its objects come from.
//
// A source's test package brings a World, the place that its objects are in, and
// calls Run:
//
//	sourcetest.Run(t, func(t *testing.T) (source.Source, sourcetest.World) { … })
package sourcetest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"

	"signalbox.dev/source"
)

// World is the place that a source reads from.
type World interface {
	// Put creates or replaces the objects of a manifest, as kubectl apply would. It
	// returns when they are stored. A World that validates refuses what is invalid
	// and keeps what it has, without failing the test.
	Put(t *testing.T, manifest string)
	// Delete removes an object.
	Delete(t *testing.T, ref source.Ref)
}

// Start makes an empty world and a source of it that does not run yet.
type Start func(t *testing.T) (source.Source, World)

// Run tests a source.
func Run(t *testing.T, start Start) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, source.Source, World)
	}{
		{"an empty world is synced", testEmpty},
		{"all that was there comes before synced", testInitial},
		{"nothing is lost while the first read goes on", testBusyStart},
		{"objects have the defaults of their CRDs", testDefaults},
		{"served versions are read as v1", testVersions},
		{"kinds that are not read are ignored", testIgnored},
		{"one change for each real change", testChanges},
		{"changes of an object come in order", testOrder},
		{"a refused update keeps the last good object", testRefused},
		{"objects that were sent stay as they are", testImmutable},
		{"Run ends with its context though nobody reads", testEnd},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, world := start(t)
			test.run(t, s, world)
		})
	}
}

// patience is how long a batch may take to come.
const patience = 30 * time.Second

// Reader runs a source and keeps what it has sent. Sources' own tests use it too.
type Reader struct {
	t       *testing.T
	batches chan source.Batch
	// Objects are those in force, Sent every object ever received, as it was then.
	Objects  map[source.Ref]source.Object
	Problems []source.Problem
	sent     []sent
}

type sent struct{ object, copy runtime.Object }

// Read starts a source. It is stopped at the end of the test, when Run must return
// nil and all objects sent must be as they were when they were sent.
func Read(t *testing.T, s source.Source) *Reader {
	t.Helper()
	r := &Reader{t: t, batches: make(chan source.Batch), Objects: map[source.Ref]source.Object{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, r.batches) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run returned %v, want nil at the end of its context", err)
			}
		case <-time.After(patience):
			t.Error("Run did not return at the end of its context")
		}
		for _, s := range r.sent {
			if d := cmp.Diff(s.copy, s.object); d != "" {
				t.Errorf("an object was modified after it was sent (-sent +now):\n%s", d)
			}
		}
	})
	return r
}

// Next receives one batch and applies it, after checking what holds for every
// batch: refs fit their objects, none stands twice, none says what was said before.
func (r *Reader) Next() source.Batch {
	r.t.Helper()
	var batch source.Batch
	select {
	case batch = <-r.batches:
	case <-time.After(patience):
		r.t.Fatalf("no batch came; objects so far: %v", r.Objects)
	}
	if batch.ProblemsKnown {
		r.Problems = batch.Problems
	}
	seen := map[source.Ref]bool{}
	for _, c := range batch.Changes {
		r.apply(c, seen)
	}
	return batch
}

func (r *Reader) apply(c source.Change, seen map[source.Ref]bool) {
	r.t.Helper()
	if seen[c.Ref] {
		r.t.Errorf("%v stands twice in one batch", c.Ref)
	}
	seen[c.Ref] = true
	before, known := r.Objects[c.Ref]
	if c.Object == nil {
		if !known {
			r.t.Errorf("%v is said to be gone, but never came", c.Ref)
		}
		delete(r.Objects, c.Ref)
		return
	}
	if ref := source.RefOf(c.Object); ref != c.Ref {
		r.t.Errorf("the object of %v is %v", c.Ref, ref)
	}
	if known && cmp.Equal(before, c.Object) {
		r.t.Errorf("%v was sent again though nothing changed", c.Ref)
	}
	r.Objects[c.Ref] = c.Object
	r.sent = append(r.sent, sent{c.Object, c.Object.DeepCopyObject()})
}

// Sync reads batches up to the first that is synced.
func (r *Reader) Sync() {
	r.t.Helper()
	for !r.Next().Synced {
	}
}

// Until reads batches until ok, and returns all changes on the way.
func (r *Reader) Until(ok func() bool) (changes []source.Change) {
	r.t.Helper()
	for !ok() {
		batch := r.Next()
		if !batch.Synced {
			r.t.Error("a batch after the first synced one says that it is not synced")
		}
		changes = append(changes, batch.Changes...)
	}
	return changes
}

// Has returns a condition for Until: the object is there.
func (r *Reader) Has(ref source.Ref) func() bool {
	return func() bool { return r.Objects[ref] != nil }
}
