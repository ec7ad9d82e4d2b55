package server

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"signalbox.dev/xds"
)

// model is an Envoy that behaves as Envoy does: it subscribes to what it was told of,
// holds the CDS answer back for a while, and refuses what is marked bad. It watches the
// invariants at every message.
type model struct {
	*envoy
	routes  map[string]string    // tables in force: name → clusters
	refused map[string]bool      // clusters whose newest revision was refused
	flying  map[xds.Type]int     // responses that were not answered
	due     map[xds.Type][]timed // answers that are held back
	delay   func(xds.Type) time.Duration
	failed  []string
}

type timed struct {
	at    time.Time
	m     message
	words string
}

// bad is a cluster revision that is refused, and badCluster a cluster for which a table
// that names it is.
const (
	bad        = "bad"
	badCluster = "c-bad"
)

func (m *model) complain(format string, args ...any) {
	m.failed = append(m.failed, fmt.Sprintf(format, args...))
}

// receive handles one response.
func (m *model) receive(msg message) {
	t := msg.typ
	m.flying[t]++
	before, versions := maps.Clone(m.has[t]), maps.Clone(m.versions[t])
	m.apply(msg)
	words := ""
	switch t {
	case xds.Cluster:
		for name, a := range msg.resources {
			_, rev := show(a)
			m.refused[name] = rev == bad
			if rev == bad {
				words += " " + name + ": bad"
				if old, ok := before[name]; ok {
					m.has[t][name], m.versions[t][name] = old, versions[name]
				} else {
					delete(m.has[t], name)
					delete(m.versions[t], name)
				}
			}
		}
		if words != "" {
			words = "Error adding/updating cluster(s)" + words
		}
		m.follow(xds.Endpoint, m.has[xds.Cluster])
	case xds.Listener:
		tables := map[string]string{}
		for name := range m.has[t] {
			tables["table-of-"+name] = ""
		}
		m.follow(xds.Route, tables)
	case xds.Route:
		if len(msg.resources) > 1 {
			m.complain("%d tables in one response", len(msg.resources))
		}
		for name, a := range msg.resources {
			_, clusters := show(a)
			if !m.names[t][name] {
				continue // it has unsubscribed meanwhile
			}
			if strings.Contains(clusters, badCluster) {
				words = "missing ]: ["
				if old, ok := before[name]; ok {
					m.has[t][name], m.versions[t][name] = old, versions[name]
				} else {
					delete(m.has[t], name)
					delete(m.versions[t], name)
				}
				continue
			}
			m.routes[name] = clusters
		}
	}
	m.invariant()
	m.due[t] = append(m.due[t], timed{time.Now().Add(m.delay(t)), msg, words})
}

// follow subscribes to exactly the names.
func (m *model) follow(t xds.Type, names map[string]string) {
	var add, drop []string
	for name := range names {
		if !m.names[t][name] {
			add = append(add, name)
		}
	}
	for name := range m.names[t] {
		if _, ok := names[name]; !ok {
			drop = append(drop, name)
		}
	}
	slices.Sort(add)
	slices.Sort(drop)
	for _, name := range drop {
		delete(m.routes, name)
	}
	if len(drop) > 0 {
		m.unsubscribe(t, drop...)
	}
	if len(add) > 0 {
		m.subscribe(t, add...)
	}
}

// invariant: no table in force names a cluster that the Envoy does not have.
func (m *model) invariant() {
	for name, clusters := range m.routes {
		for c := range strings.SplitSeq(clusters, "+") {
			if c == "" {
				continue
			}
			if _, ok := m.has[xds.Cluster][c]; !ok && !m.refused[c] {
				m.complain("table %s names cluster %s, which the Envoy does not have (it has %v)", name, c, m.has[xds.Cluster])
			}
		}
	}
}

// step handles all that is there, and answers what is due.
func (m *model) step() {
	for {
		synctest.Wait()
		select {
		case msg := <-m.in:
			m.receive(msg)
			continue
		default:
		}
		if !m.answer() {
			return
		}
	}
}

func (m *model) answer() bool {
	for _, t := range xds.Types {
		q := m.due[t]
		if len(q) == 0 || q[0].at.After(time.Now()) {
			continue
		}
		a := q[0]
		m.due[t] = q[1:]
		m.flying[t]--
		if !m.delta && m.flying[t] > 0 {
			return true // only the last of several is answered
		}
		if a.words != "" {
			m.nack(a.m, a.words)
		} else {
			m.ack(a.m)
		}
		return true
	}
	return false
}

// target is a random, consistent target: each table names clusters that are there.
type target struct {
	clusters  map[string]string // name → revision
	endpoints map[string]string
	tables    map[string][]string
}

func drawTarget(rt *rapid.T, good bool) target {
	out := target{map[string]string{}, map[string]string{}, map[string][]string{}}
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"c-one", "c-two", "c-three", "c-four", "c-five"}), 1, 5, rapid.ID[string]).Draw(rt, "clusters")
	for _, c := range names {
		out.clusters[c] = rapid.SampledFrom([]string{"1", "2", "3", bad}).Draw(rt, "revision")
		if good && out.clusters[c] == bad {
			out.clusters[c] = "1"
		}
		out.endpoints[c] = fmt.Sprint(rapid.IntRange(1, 3).Draw(rt, "endpoints"))
	}
	if !good {
		out.clusters[badCluster], out.endpoints[badCluster] = "1", "1"
		names = append(names, badCluster)
	}
	for _, l := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"l80", "l443", "l8080"}), 1, 3, rapid.ID[string]).Draw(rt, "listeners") {
		out.tables[l] = rapid.SliceOfN(rapid.SampledFrom(names), 0, 3).Draw(rt, "table")
	}
	return out
}

func (a target) resources() map[string]*xds.Resource {
	out := map[string]*xds.Resource{}
	add := func(r *xds.Resource) { out[r.Type.Short()+"/"+r.Name] = r }
	for c, rev := range a.clusters {
		add(cluster(c, rev))
		add(cla(c, a.endpoints[c]))
	}
	for l, clusters := range a.tables {
		add(listener(l, "1"))
		add(table("table-of-"+l, clusters...))
	}
	return out
}

func diff(from, to map[string]*xds.Resource) []xds.Change {
	var out []xds.Change
	for k, r := range to {
		if old := from[k]; old == nil || old.Version != r.Version {
			out = append(out, put(r)...)
		}
	}
	for k, r := range from {
		if to[k] == nil {
			out = append(out, gone(r.Type, r.Name)...)
		}
	}
	slices.SortFunc(out, xds.Change.Compare)
	return out
}

// Whatever the targets, their pace and the Envoy's: no table in force ever names a
// cluster that is not there, and in the end the Envoy has exactly the last target.
func TestOrderProperty(t *testing.T) {
	for _, delta := range []bool{true, false} {
		t.Run(map[bool]string{true: "delta", false: "sotw"}[delta], func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				// All is drawn before, as a bubble must not see rapid's panics.
				targets := []target{}
				n := rapid.IntRange(1, 8).Draw(rt, "targets")
				for i := range n {
					targets = append(targets, drawTarget(rt, i == n-1))
				}
				reconnect := -1
				if delta {
					reconnect = rapid.IntRange(-1, n-1).Draw(rt, "reconnect")
				}
				pauses := rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 50, 3000, 20_000, 40_000}), len(targets), len(targets)).Draw(rt, "pauses")
				slow := rapid.SampledFrom([]int{0, 1, 100, 4000, 20_000}).Draw(rt, "slow")
				delays := rapid.SliceOfN(rapid.IntRange(0, slow), 50, 50).Draw(rt, "delays")
				var failed []string
				synctest.Test(t, func(t *testing.T) { failed = runOrder(t, delta, targets, pauses, delays, reconnect) })
				if len(failed) > 0 {
					rt.Fatalf("%s", strings.Join(failed, "\n"))
				}
			})
		})
	}
}

func runOrder(t *testing.T, delta bool, targets []target, pauses, delays []int, reconnect int) []string {
	h := newHarness(t)
	n := 0
	m := &model{envoy: h.connect(delta, string(gw), nil), routes: map[string]string{}, refused: map[string]bool{}, flying: map[xds.Type]int{}, due: map[xds.Type][]timed{},
		delay: func(xds.Type) time.Duration { n++; return time.Duration(delays[n%len(delays)]) * time.Millisecond }}
	m.subscribe(xds.Cluster)
	m.subscribe(xds.Listener)
	have := map[string]*xds.Resource{}
	for i, next := range targets {
		want := next.resources()
		if i == reconnect {
			m.reconnect(h)
		}
		h.Publish(diff(have, want))
		have = want
		m.run(time.Duration(pauses[i]) * time.Millisecond)
	}
	m.run(5 * time.Minute)
	last := targets[len(targets)-1]
	if !maps.Equal(m.has[xds.Cluster], last.clusters) {
		m.complain("clusters in the end: %v, want %v", m.has[xds.Cluster], last.clusters)
	}
	if !maps.Equal(m.has[xds.Endpoint], last.endpoints) {
		m.complain("endpoints in the end: %v, want %v", m.has[xds.Endpoint], last.endpoints)
	}
	for l, clusters := range last.tables {
		if got, want := m.routes["table-of-"+l], strings.Join(clusters, "+"); got != want {
			m.complain("table of %s in the end: %q, want %q", l, got, want)
		}
	}
	if len(m.has[xds.Listener]) != len(last.tables) {
		m.complain("listeners in the end: %v", m.has[xds.Listener])
	}
	for typ, unanswered := range m.flying {
		if unanswered != 0 {
			m.complain("%d %s responses unanswered", unanswered, typ.Short())
		}
	}
	if step := h.Clients()[0].Step; step != "in sync" {
		m.complain("step in the end: %s", step)
	}
	return m.failed
}

// reconnect ends the stream and comes again with what the Envoy has; routes first, as
// an Envoy may.
func (m *model) reconnect(h *harness) {
	m.cancel()
	<-m.err
	synctest.Wait()
	m.envoy = h.connect(m.delta, string(gw), m.envoy)
	clear(m.flying)
	clear(m.due)
	for _, t := range []xds.Type{xds.Route, xds.Listener, xds.Endpoint, xds.Cluster} {
		if names := slices.Sorted(maps.Keys(m.names[t])); len(names) > 0 || t == xds.Listener || t == xds.Cluster {
			m.subscribe(t, names...)
		}
	}
}

// run lets time pass, in the steps in which something can happen.
func (m *model) run(d time.Duration) {
	end := time.Now().Add(d)
	for {
		m.step()
		next := end
		for _, q := range m.due {
			if len(q) > 0 && q[0].at.Before(next) {
				next = q[0].at
			}
		}
		left := time.Until(next)
		if !next.Before(end) {
			left = time.Until(end)
		}
		if left <= 0 {
			if !time.Now().Before(end) {
				return
			}
			continue
		}
		select {
		case msg := <-m.in:
			m.receive(msg)
		case <-time.After(left):
		}
	}
}
