package incr

import (
	"maps"
	"slices"
)

// Index keeps lists of the keys of a table, by something computed from the rows.
type Index[X, K ~string] struct {
	g     *Graph
	level int
	keys  map[X]map[K]struct{}
	// changed holds the lists on which a key came or went; flipped those of them that
	// were, at some time in this round, empty.
	changed, flipped *changes[X]
}

// NewIndex indexes t; by returns the lists that a row belongs on, and must be pure. A
// list changes when a key comes on it or leaves it, not when a row on it changes: who
// lists keys and wants the rows too reads them with Get.
func NewIndex[X, K ~string, V any](t *Table[K, V], by func(K, V) []X) *Index[X, K] {
	ix := &Index[X, K]{g: t.g, level: t.level, keys: map[X]map[K]struct{}{}, changed: newChanges[X](t.g), flipped: newChanges[X](t.g)}
	t.indexes = append(t.indexes, func(k K, old, now *V) {
		was, is := listsOf(by, k, old), listsOf(by, k, now)
		for x := range was {
			if _, stays := is[x]; !stays {
				ix.remove(x, k)
			}
		}
		for x := range is {
			if _, stayed := was[x]; !stayed {
				ix.insert(x, k)
			}
		}
	})
	return ix
}

func listsOf[X, K ~string, V any](by func(K, V) []X, k K, v *V) map[X]struct{} {
	lists := map[X]struct{}{}
	if v != nil {
		for _, x := range by(k, *v) {
			lists[x] = struct{}{}
		}
	}
	return lists
}

func (ix *Index[X, K]) insert(x X, k K) {
	if ix.keys[x] == nil {
		ix.keys[x] = map[K]struct{}{}
		ix.flipped.keys[x] = struct{}{}
	}
	ix.keys[x][k] = struct{}{}
	ix.touch(x)
}

func (ix *Index[X, K]) remove(x X, k K) {
	if delete(ix.keys[x], k); len(ix.keys[x]) == 0 {
		delete(ix.keys, x)
		ix.flipped.keys[x] = struct{}{}
	}
	ix.touch(x)
}

func (ix *Index[X, K]) touch(x X) {
	ix.changed.keys[x] = struct{}{}
	ix.g.changed[cell{ix, x}] = struct{}{}
}

// Keys returns the keys on the list x, sorted, and records that they were looked at.
func (ix *Index[X, K]) Keys(r *Reads, x X) []K {
	r.add(ix.level, ix, x)
	return slices.Sorted(maps.Keys(ix.keys[x]))
}

// Group returns a table with a row fn(x, keys) for every list of ix that is not empty and
// for which fn reports true. A row is computed when a key comes on the list or leaves it,
// and when something that fn read for it changes: the rows of the keys, if fn got them.
func Group[X, K ~string, O any](ix *Index[X, K], equal func(a, b O) bool, fn func(r *Reads, x X, keys []K) (O, bool)) *Table[X, O] {
	return derive(ix.g, ix.changed, equal, func(r *Reads, x X) (o O, ok bool) {
		if len(ix.keys[x]) == 0 {
			return o, false
		}
		return fn(r, x, ix.Keys(r, x))
	})
}

// Distinct returns a table with a row fn(x) for every list of ix that is not empty and
// for which fn reports true. Unlike with Group, a row is not computed because the list
// grew or shrank, as long as something is on it.
func Distinct[X, K ~string, O any](ix *Index[X, K], equal func(a, b O) bool, fn func(r *Reads, x X) (O, bool)) *Table[X, O] {
	return derive(ix.g, ix.flipped, equal, func(r *Reads, x X) (o O, ok bool) {
		if len(ix.keys[x]) == 0 {
			return o, false
		}
		return fn(r, x)
	})
}

// Selection answers queries over the rows of a table with the keys of the rows that
// match, and keeps the answers that somebody has read up to date.
//
// It is for queries that an Index cannot foresee, such as a label selector: the answer
// changes only when a row starts or stops to match, so rows that match other queries, and
// changes of matching rows, cost its readers nothing.
type Selection[X, Q, K ~string, V any] struct {
	g     *Graph
	level int
	table *Table[K, V]
	lists *Index[X, K]
	parse func(Q) (X, func(K, V) bool)

	answers map[Q]*answer[X, K, V]
	byList  map[X]map[Q]struct{}
}

// answer is what a Selection keeps of one query.
type answer[X, K ~string, V any] struct {
	list    X
	match   func(K, V) bool
	keys    map[K]struct{}
	readers int
}

// NewSelection returns a selection over t. by returns the lists of a row as in NewIndex;
// parse returns the one list on which all rows that answer q are, and whether a row on
// that list answers it. Both must be pure.
func NewSelection[X, Q, K ~string, V any](t *Table[K, V], by func(K, V) []X, parse func(q Q) (X, func(K, V) bool)) *Selection[X, Q, K, V] {
	s := &Selection[X, Q, K, V]{g: t.g, level: t.level, table: t, lists: NewIndex(t, by), parse: parse,
		answers: map[Q]*answer[X, K, V]{}, byList: map[X]map[Q]struct{}{}}
	t.indexes = append(t.indexes, func(k K, old, now *V) {
		is := listsOf(by, k, now)
		for x := range listsOf(by, k, old) {
			if _, stays := is[x]; !stays {
				s.update(x, k, nil)
			}
		}
		for x := range is {
			s.update(x, k, now)
		}
	})
	return s
}

// update brings the answers to the queries of the list x up to date with the row k.
func (s *Selection[X, Q, K, V]) update(x X, k K, now *V) {
	for q := range s.byList[x] {
		a := s.answers[q]
		_, was := a.keys[k]
		is := now != nil && a.match(k, *now)
		if was == is {
			continue
		}
		if is {
			a.keys[k] = struct{}{}
		} else {
			delete(a.keys, k)
		}
		s.g.changed[cell{s, q}] = struct{}{}
	}
}

// Keys returns the keys of the rows that answer q, sorted, and records that the answer
// was looked at.
func (s *Selection[X, Q, K, V]) Keys(r *Reads, q Q) []K {
	r.add(s.level, s, q)
	a := s.answers[q]
	if a == nil {
		a = s.ask(q)
		if r != nil { // then retain follows
			s.keep(q, a)
		}
	}
	return slices.Sorted(maps.Keys(a.keys))
}

func (s *Selection[X, Q, K, V]) ask(q Q) *answer[X, K, V] {
	x, match := s.parse(q)
	a := &answer[X, K, V]{list: x, match: match, keys: map[K]struct{}{}}
	for k := range s.lists.keys[x] {
		if match(k, s.table.rows[k]) {
			a.keys[k] = struct{}{}
		}
	}
	return a
}

func (s *Selection[X, Q, K, V]) keep(q Q, a *answer[X, K, V]) {
	s.answers[q] = a
	if s.byList[a.list] == nil {
		s.byList[a.list] = map[Q]struct{}{}
	}
	s.byList[a.list][q] = struct{}{}
}

// retain counts a reader of the answer to q, which Keys has kept for it.
func (s *Selection[X, Q, K, V]) retain(key any) { s.answers[key.(Q)].readers++ }

// release forgets the answer to q with its last reader.
func (s *Selection[X, Q, K, V]) release(key any) {
	q := key.(Q)
	a := s.answers[q]
	if a.readers--; a.readers > 0 {
		return
	}
	delete(s.answers, q)
	if delete(s.byList[a.list], q); len(s.byList[a.list]) == 0 {
		delete(s.byList, a.list)
	}
}
