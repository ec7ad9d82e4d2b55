package translator

import (
	"maps"
	"slices"
	"strings"

	"signalbox.dev/xds"
)

// ackRow is what the Envoys of a group said of their listeners: name of the Envoy
// listener → node → its last answer.
type ackRow struct {
	Listeners map[string]map[string]reply
}

// reply is what an Envoy said of one version of a resource.
type reply struct {
	Version string
	Refused string // Envoy's words; "" if it took the version
}

// answered puts acks into the input table. Only those on listeners count: a listener
// is what a Gateway's conditions speak of.
func (t *tables) answered(acks []xds.Ack) {
	rows := map[key]ackRow{}
	for _, a := range acks {
		if a.Type != xds.Listener && !a.Gone {
			continue
		}
		k := key(a.Group)
		row, ok := rows[k]
		if !ok {
			old, _ := t.acks.Get(nil, k)
			row = old.clone()
			rows[k] = row
		}
		if a.Gone {
			row.forget(a.Node)
		} else {
			row.record(a)
		}
	}
	for k, row := range rows {
		if len(row.Listeners) == 0 {
			t.acks.Delete(k)
		} else {
			t.acks.Set(k, row)
		}
	}
}

func (row ackRow) clone() ackRow {
	out := ackRow{Listeners: make(map[string]map[string]reply, len(row.Listeners))}
	for name, nodes := range row.Listeners {
		out.Listeners[name] = maps.Clone(nodes)
	}
	return out
}

func (row ackRow) forget(node string) {
	for name, nodes := range row.Listeners {
		if delete(nodes, node); len(nodes) == 0 {
			delete(row.Listeners, name)
		}
	}
}

func (row ackRow) record(a xds.Ack) {
	refused := refusedListeners(a)
	for name, version := range a.Versions {
		if row.Listeners[name] == nil {
			row.Listeners[name] = map[string]reply{}
		}
		row.Listeners[name][a.Node] = reply{Version: version, Refused: refused[name]}
	}
}

// refusedListeners returns Envoy's words on each resource that it refused. Of a refused
// response it takes the good listeners and names the bad ones, a line each: "Error
// adding/updating listener(s) NAME: words\nNAME: words\n". Words that name none of the
// response's listeners are about all of them.
func refusedListeners(a xds.Ack) map[string]string {
	if a.Error == "" {
		return nil
	}
	_, list, ok := strings.Cut(a.Error, "listener(s) ")
	out := map[string]string{}
	for _, line := range strings.Split(list, "\n") {
		for name := range a.Versions {
			if words, mine := strings.CutPrefix(line, name+": "); ok && mine {
				out[name] = words
			}
		}
	}
	if len(out) == 0 {
		for name := range a.Versions {
			out[name] = a.Error
		}
	}
	return out
}

// verdictOn returns what the group's Envoys say of a version of an Envoy listener: the
// words of the first one that refused it, or whether any has taken it.
func (row ackRow) verdictOn(listener, version string) (taken bool, node, refused string) {
	nodes := row.Listeners[listener]
	for _, n := range slices.Sorted(maps.Keys(nodes)) {
		switch a := nodes[n]; {
		case a.Version != version:
		case a.Refused != "":
			return false, n, a.Refused
		default:
			taken = true
		}
	}
	return taken, "", ""
}
