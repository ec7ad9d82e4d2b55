package kube

import (
	"context"
	"fmt"
	"reflect"
	"sync"

	"signalbox.dev/source"
)

// feed collects what all stores see and sends it in batches: what has come since the
// last send, whatever it was, is the next batch.
type feed struct {
	wake chan struct{} // holds one token while there is something to send

	mu      sync.Mutex
	pending []source.Change // at most one per object: the newest
	index   map[source.Ref]int
	waiting int // stores that have not been filled yet
}

func newFeed() *feed {
	return &feed{wake: make(chan struct{}, 1), index: map[source.Ref]int{}}
}

// store returns the store of one kind in one scope.
func (f *feed) store(kind source.KindInfo, namespace string) *store {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting++
	return &store{feed: f, kind: kind, namespace: namespace, objects: map[source.Ref]source.Object{}}
}

// run sends batches until ctx ends. The first is sent when every store is filled, and
// says that all has been read.
func (f *feed) run(ctx context.Context, batches chan<- source.Batch) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		}
		f.mu.Lock()
		if f.waiting > 0 {
			f.mu.Unlock()
			continue
		}
		changes := f.pending
		f.pending, f.index = nil, map[source.Ref]int{}
		f.mu.Unlock()
		select {
		case batches <- source.Batch{Changes: changes, Synced: true}:
		case <-ctx.Done():
			return nil
		}
	}
}

// store is what a reflector fills. It keeps the objects that were sent, stripped, to
// tell real changes from those of what is stripped (a status, say).
type store struct {
	feed      *feed
	kind      source.KindInfo
	namespace string
	filled    bool
	objects   map[source.Ref]source.Object
}

// set notes an object, or with nil that it is gone. The feed's lock is held.
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
	f := s.feed
	if i, ok := f.index[ref]; ok {
		f.pending[i].Object = o
	} else {
		f.index[ref] = len(f.pending)
		f.pending = append(f.pending, source.Change{Ref: ref, Object: o})
	}
}

// done says that the store has been changed, and filled. The feed's lock is held.
func (s *store) done() {
	if !s.filled {
		s.filled = true
		s.feed.waiting--
	}
	if len(s.feed.pending) == 0 && s.feed.waiting > 0 {
		return
	}
	select {
	case s.feed.wake <- struct{}{}:
	default:
	}
}

// absent says that there are no objects of the kind, for now.
func (s *store) absent() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.done()
}

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error {
	o, err := s.strip(obj)
	if err != nil {
		return err
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.set(source.RefOf(o), o)
	s.changed()
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error {
	o, ok := obj.(source.Object)
	if !ok {
		return fmt.Errorf("%s: %w", s.kind.Kind, errNotAnObject)
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.set(source.RefOf(o), nil)
	s.changed()
	return nil
}

// changed wakes the feed if there is something to send.
func (s *store) changed() {
	if s.filled && len(s.feed.pending) > 0 {
		s.done()
	}
}

// Replace implements cache.ReflectorStore: it is called after each list, with all that
// exists in the store's scope.
func (s *store) Replace(list []any, _ string) error {
	now := make(map[source.Ref]source.Object, len(list))
	for _, obj := range list {
		o, err := s.strip(obj)
		if err != nil {
			return err
		}
		now[source.RefOf(o)] = o
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	for ref := range s.objects {
		if now[ref] == nil {
			s.set(ref, nil)
		}
	}
	for ref, o := range now {
		s.set(ref, o)
	}
	s.done()
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *store) Resync() error { return nil }
