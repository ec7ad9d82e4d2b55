package translator_test

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"signalbox.dev/source"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// place is where a resource stands.
type place struct {
	Group xds.Group
	Type  xds.Type
	Name  string
}

func (p place) String() string {
	return string(p.Group) + " " + p.Type.Short() + " " + p.Name
}

func comparePlaces(a, b place) int {
	return cmp.Or(strings.Compare(string(a.Group), string(b.Group)), cmp.Compare(slices.Index(xds.Types, a.Type), slices.Index(xds.Types, b.Type)), strings.Compare(a.Name, b.Name))
}

// world is what Outputs come to, one after another: what an xDS server and a status
// writer would hold.
type world struct {
	resources map[place]*xds.Resource
	statuses  map[source.Ref]translator.Status
}

func newWorld() *world {
	return &world{map[place]*xds.Resource{}, map[source.Ref]translator.Status{}}
}

func worldOf(out translator.Output) *world {
	w := newWorld()
	w.take(out)
	return w
}

func (w *world) take(out translator.Output) {
	for _, c := range out.Resources {
		if p := (place{c.Group, c.Type, c.Name}); c.Resource == nil {
			delete(w.resources, p)
		} else {
			w.resources[p] = c.Resource
		}
	}
	for _, s := range out.Statuses {
		if s.Empty() {
			delete(w.statuses, s.Ref)
		} else {
			w.statuses[s.Ref] = s
		}
	}
}

// output is all that the world holds, in the order of an Output.
func (w *world) output() translator.Output {
	var out translator.Output
	for _, p := range slices.SortedFunc(maps.Keys(w.resources), comparePlaces) {
		out.Resources = append(out.Resources, xds.Change{Group: p.Group, Type: p.Type, Name: p.Name, Resource: w.resources[p]})
	}
	for _, ref := range slices.SortedFunc(maps.Keys(w.statuses), source.Ref.Compare) {
		out.Statuses = append(out.Statuses, w.statuses[ref])
	}
	return out
}

// acks are the answers of one Envoy of the group to all its listeners: words are why it
// refuses them, none if it takes them.
func (w *world) acks(group xds.Group, words string) []xds.Ack {
	a := xds.Ack{Group: group, Node: "envoy-1", Type: xds.Listener, Versions: map[string]string{}, Error: words}
	for p, r := range w.resources {
		if p.Group == group && p.Type == xds.Listener {
			a.Versions[p.Name] = r.Version
		}
	}
	return []xds.Ack{a}
}

// added are the changes that bring the objects.
func added(objects ...source.Object) []source.Change {
	out := make([]source.Change, len(objects))
	for i, o := range objects {
		out[i] = source.Change{Ref: source.RefOf(o), Object: o}
	}
	return out
}
