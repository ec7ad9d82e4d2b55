package translator_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"signalbox.dev/source"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// TestApplyIsTranslate: whatever is edited, in whatever batches, what the changes come to
// is what the objects come to from scratch, in any order. Each Output is sorted, says
// nothing twice and nothing that has not changed. No input is modified.
func TestApplyIsTranslate(t *testing.T) {
	all := goldens(t)
	m := newMutator(all)
	for _, k := range source.Kinds {
		with := goldensWith(all, k.Kind)
		t.Run(string(k.Kind), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				first := rapid.SampledFrom(with).Draw(t, "golden")
				second := rapid.SampledFrom(all).Draw(t, "another golden")
				e := newEditor(m, first.options.translator(), first.objects, second.objects)
				e.favourite = k.Kind
				e.apply(t, added(e.all()...), nil)
				for range rapid.IntRange(1, 6).Draw(t, "batches") {
					e.batch(t)
				}
				e.untouched(t)
			})
		})
	}
}

// editor keeps a translator, what its Outputs come to, and what they ought to.
type editor struct {
	m       *mutator
	options translator.Options
	tr      *translator.Translator
	world   *world

	favourite source.Kind // what is edited most

	objects map[source.Ref]source.Object
	gone    map[source.Ref]source.Object // deleted: may come again
	copies  map[source.Object]source.Object
	acks    []xds.Ack
}

func newEditor(m *mutator, options translator.Options, objects ...[]source.Object) *editor {
	e := &editor{
		m: m, options: options, tr: translator.New(options), world: newWorld(),
		objects: map[source.Ref]source.Object{}, gone: map[source.Ref]source.Object{}, copies: map[source.Object]source.Object{},
	}
	for _, list := range objects {
		for _, o := range list {
			if _, taken := e.objects[source.RefOf(o)]; !taken {
				e.objects[source.RefOf(o)] = o
			}
		}
	}
	return e
}

// all are the objects, in a fixed order.
func (e *editor) all() []source.Object {
	var out []source.Object
	for _, ref := range sortedRefs(e.objects) {
		out = append(out, e.objects[ref])
	}
	return out
}

func sortedRefs[V any](in map[source.Ref]V) []source.Ref {
	return slices.SortedFunc(maps.Keys(in), source.Ref.Compare)
}

// batch edits some objects, lets some Envoys answer, and applies both.
func (e *editor) batch(t *rapid.T) {
	t.Helper()
	var changes []source.Change
	var acks []xds.Ack
	for range rapid.IntRange(1, 3).Draw(t, "changes") {
		if rapid.IntRange(0, 9).Draw(t, "ack") == 0 {
			acks = append(acks, e.ack(t)...)
		} else {
			changes = append(changes, e.edit(t))
		}
	}
	for _, c := range changes {
		t.Logf("%s: %s", c.Ref, mustJSON(c.Object))
	}
	e.apply(t, changes, acks)
}

// draw draws one of the objects: of the favourite kind half of the time, else of any kind
// alike, since most objects are routes and backends.
func (e *editor) draw(t *rapid.T, objects map[source.Ref]source.Object, label string) source.Ref {
	kinds := map[source.Kind][]source.Ref{}
	for _, ref := range sortedRefs(objects) {
		kinds[ref.Kind] = append(kinds[ref.Kind], ref)
	}
	kind := e.favourite
	if len(kinds[kind]) == 0 || rapid.Bool().Draw(t, label+": any kind") {
		kind = rapid.SampledFrom(slices.Sorted(maps.Keys(kinds))).Draw(t, label+": kind")
	}
	return rapid.SampledFrom(kinds[kind]).Draw(t, label)
}

// edit deletes an object, brings one back, or changes one.
func (e *editor) edit(t *rapid.T) source.Change {
	kind := rapid.IntRange(0, 5).Draw(t, "kind of edit")
	switch {
	case len(e.gone) > 0 && (kind == 0 || len(e.objects) == 0):
		ref := e.draw(t, e.gone, "returns")
		c := source.Change{Ref: ref, Object: e.gone[ref]}
		e.objects[ref] = e.gone[ref]
		delete(e.gone, ref)
		return c
	case kind == 1 && len(e.objects) > 1:
		ref := e.draw(t, e.objects, "goes")
		e.gone[ref] = e.objects[ref]
		delete(e.objects, ref)
		return source.Change{Ref: ref}
	}
	ref := e.draw(t, e.objects, "changes")
	e.objects[ref] = e.m.mutate(t, e.objects[ref])
	return source.Change{Ref: ref, Object: e.objects[ref]}
}

// ack is an answer of an Envoy, or its end.
func (e *editor) ack(t *rapid.T) []xds.Ack {
	groups := e.world.groups()
	if len(groups) == 0 {
		return nil
	}
	acks := e.world.acks(rapid.SampledFrom(groups).Draw(t, "group"), rapid.SampledFrom([]string{"", "", "refused"}).Draw(t, "words"))
	acks[0].Gone = rapid.IntRange(0, 3).Draw(t, "gone") == 0
	return acks
}

// apply applies a batch and compares.
func (e *editor) apply(t *rapid.T, changes []source.Change, acks []xds.Ack) {
	t.Helper()
	for _, c := range changes {
		if c.Object != nil && e.copies[c.Object] == nil {
			e.copies[c.Object] = c.Object.DeepCopyObject().(source.Object)
		}
	}
	e.acks = append(e.acks, acks...)
	out := e.tr.Apply(changes, acks)
	if err := e.world.surprise(out); err != nil {
		t.Fatal(err)
	}
	e.world.take(out)

	objects := rapid.Permutation(e.all()).Draw(t, "order")
	scratch := worldOf(translator.New(e.options).Apply(added(objects...), e.acks))
	if diff := e.world.differs(scratch); diff != "" {
		t.Fatalf("not what it comes to from scratch: %s", diff)
	}
	if err := e.world.fault(); err != nil {
		t.Fatal(err)
	}
}

// untouched compares every object that was ever applied with how it was.
func (e *editor) untouched(t *rapid.T) {
	t.Helper()
	for o, before := range e.copies {
		if !reflect.DeepEqual(o, before) {
			t.Fatalf("%s was modified", source.RefOf(o))
		}
	}
}

// surprise returns what is wrong with an Output that is to come after the world: it is
// out of order, or says what is known already.
func (w *world) surprise(out translator.Output) error {
	for i, c := range out.Resources {
		p := place{c.Group, c.Type, c.Name}
		if i > 0 && out.Resources[i-1].Compare(c) >= 0 {
			return fmt.Errorf("%s comes after %v", p, out.Resources[i-1])
		}
		switch had, ok := w.resources[p]; {
		case c.Resource == nil && !ok:
			return fmt.Errorf("%s goes, and was not there", p)
		case c.Resource != nil && ok && had.Version == c.Resource.Version:
			return fmt.Errorf("%s is said to change and does not", p)
		}
	}
	for i, s := range out.Statuses {
		if i > 0 && out.Statuses[i-1].Ref.Compare(s.Ref) >= 0 {
			return fmt.Errorf("the status of %s comes after that of %s", s.Ref, out.Statuses[i-1].Ref)
		}
		if had, ok := w.statuses[s.Ref]; ok == s.Empty() && ok || ok && reflect.DeepEqual(had, s) {
			if s.Empty() {
				continue // it goes
			}
			return fmt.Errorf("the status of %s is said to change and does not", s.Ref)
		}
	}
	return nil
}
