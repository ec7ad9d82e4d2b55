package kube

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"signalbox.dev/source"
)

// feed collects what all stores see and sends it in batches: what has come since the
// last send, whatever it was, is the next batch.
type feed struct {
	wake chan struct{} // holds one token while there may be something to send

	mu      sync.Mutex
	stores  []*store
	waiting int  // stores that have not been filled yet
	synced  bool // a synced batch has been taken
	// changed are the objects that have changed since the last batch, as they were in it.
	changed         map[source.Ref]before
	problemsChanged bool
}

// before is an object as the receiver has it; nil if it has none.
type before struct {
	store  *store
	object source.Object
}

func newFeed() *feed {
	return &feed{wake: make(chan struct{}, 1), changed: map[source.Ref]before{}}
}

// store returns the store of one kind in one scope. Before run only.
func (f *feed) store(kind source.KindInfo, observe func(source.Object)) *store {
	s := &store{feed: f, kind: kind, observe: observe, objects: map[source.Ref]source.Object{}}
	f.stores = append(f.stores, s)
	f.waiting++
	return s
}

// run sends batches until ctx ends. The first synced one is sent when every store is
// filled; before it, only problems are sent.
func (f *feed) run(ctx context.Context, batches chan<- source.Batch) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		batch, some := f.take()
		if !some {
			continue
		}
		select {
		case batches <- batch:
		case <-ctx.Done():
			return
		}
	}
}

// take returns what there is to send, and whether there is anything.
func (f *feed) take() (batch source.Batch, some bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.problemsChanged {
		f.problemsChanged = false
		batch.ProblemsKnown, some = true, true
		for _, s := range f.stores {
			if s.problem != nil {
				batch.Problems = append(batch.Problems, *s.problem)
			}
		}
	}
	if f.waiting > 0 {
		return batch, some
	}
	batch.Synced, some = true, some || !f.synced
	f.synced = true
	for ref, was := range f.changed {
		// It may have changed back, or have come and gone.
		if now := was.store.objects[ref]; !reflect.DeepEqual(was.object, now) {
			batch.Changes = append(batch.Changes, source.Change{Ref: ref, Object: now})
		}
	}
	clear(f.changed)
	slices.SortFunc(batch.Changes, func(a, b source.Change) int { return a.Ref.Compare(b.Ref) })
	return batch, some || len(batch.Changes) > 0
}

// signal says that there may be something to send.
func (f *feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// store is what a reflector fills. It keeps the objects, stripped, to tell real changes
// from those of what is stripped (a status, say). Its fields are guarded by the feed's
// lock.
type store struct {
	feed    *feed
	kind    source.KindInfo
	observe func(source.Object)
	objects map[source.Ref]source.Object
	problem *source.Problem // why the kind cannot be read now
	filled  bool
	// doubted is true after a list that lacked most of the objects, until the next one.
	doubted bool
}

// set notes an object, or with nil that it is gone.
func (s *store) set(ref source.Ref, o source.Object) {
	old, known := s.objects[ref]
	switch {
	case o == nil && !known, o != nil && known && reflect.DeepEqual(old, o):
		return
	case o == nil:
		delete(s.objects, ref)
	default:
		s.objects[ref] = o
	}
	if _, noted := s.feed.changed[ref]; !noted {
		s.feed.changed[ref] = before{s, old}
	}
	if s.filled {
		s.feed.signal()
	}
}

// trouble notes why the kind cannot be read now, nil if it can be, and returns whether
// that is news.
func (s *store) trouble(p *source.Problem) (news bool) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	if reflect.DeepEqual(s.problem, p) {
		return false
	}
	s.problem, s.feed.problemsChanged = p, true
	s.feed.signal()
	return true
}

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error {
	o, err := s.object(obj)
	if err != nil {
		return err
	}
	if err := s.strip(o); err != nil {
		return err
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.set(source.RefOf(o), o)
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error {
	o, err := s.object(obj)
	if err != nil {
		return err
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.set(source.RefOf(o), nil)
	return nil
}

// Replace implements cache.ReflectorStore: it is called after each list, with all that
// exists in the store's scope, stripped.
//
// A list that lacks more than half of the objects that were there, and more than ten, is
// not believed until the next one says the same: objects that people delete go one by one
// through a watch, and so many at once are rather an API server that is not itself (an
// etcd that comes back empty, a CRD that is made anew). What is new in the list counts at
// once.
func (s *store) Replace(list []any, _ string) error {
	now := make(map[source.Ref]source.Object, len(list))
	for _, obj := range list {
		o, err := s.object(obj)
		if err != nil {
			return err
		}
		now[source.RefOf(o)] = o
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	had := len(s.objects)
	var gone []source.Ref
	for ref := range s.objects {
		if now[ref] == nil {
			gone = append(gone, ref)
		}
	}
	for ref, o := range now {
		s.set(ref, o)
	}
	if s.doubted = len(gone) > doubtful && 2*len(gone) > had && !s.doubted; s.doubted {
		return fmt.Errorf("%d of %d objects (%v among them) are missing: believed when the next list says so too", len(gone), had, gone[0])
	}
	for _, ref := range gone {
		s.set(ref, nil)
	}
	if !s.filled {
		s.filled = true
		if s.feed.waiting--; s.feed.waiting == 0 {
			s.feed.signal()
		}
	}
	return nil
}

// doubtful is how many objects may vanish from a list without a question.
const doubtful = 10

// doubts says whether the last list was not believed.
func (s *store) doubts() bool {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	return s.doubted
}

// Resync implements cache.ReflectorStore.
func (s *store) Resync() error { return nil }

// object returns what the API server sent as an object of the store's kind.
func (s *store) object(obj any) (source.Object, error) {
	if o, ok := obj.(source.Object); ok && source.RefOf(o).Kind == s.kind.Kind {
		return o, nil
	}
	return nil, fmt.Errorf("the API server sent a %T for a %s", obj, s.kind.Kind)
}
