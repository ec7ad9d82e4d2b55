package incr

import (
	"fmt"
	"slices"
	"testing"
)

// fill puts in routes over gateways and pools, three pods a pool.
func (m *model) fill(routes, gateways, pools int) {
	for i := range gateways {
		n := fmt.Sprintf("gw%03d", i)
		m.gateways.Set(n, gateway{n, true})
	}
	for i := range pools {
		n, app := fmt.Sprintf("pool%03d", i), fmt.Sprintf("app%03d", i)
		m.pools.Set(n, pool{n, 8000, app})
		for j := range 3 {
			m.pods.Set(fmt.Sprintf("pod%03d-%d", i, j), pod{App: app, Zone: "zone", IP: j})
		}
	}
	for i := range routes {
		m.setRoute(i, gateways, pools, 1)
	}
}

func (m *model) setRoute(i, gateways, pools, weight int) {
	n := fmt.Sprintf("route%05d", i)
	m.routes.Set(n, route{n, fmt.Sprintf("gw%03d", i%gateways), "model", []string{fmt.Sprintf("pool%03d", i%pools), fmt.Sprintf("pool%03d", (i+1)%pools)}, weight})
}

// What each kind of change costs in a full graph: how many functions run, and what
// comes out changed.
func TestAmountOfWork(t *testing.T) {
	for _, c := range []struct {
		name                         string
		change                       func(m *model)
		runs                         int
		tables, clusters, assignment []string
	}{
		{"route changed", func(m *model) { m.setRoute(7, 20, 200, 2) },
			2, []string{"gw007"}, nil, nil}, // itself, its table
		{"route that uses pools in use comes", func(m *model) { m.setRoute(20_007, 20, 200, 1) },
			2, []string{"gw007"}, nil, nil}, // itself, its table; its pools' lists grow unseen
		{"pool changed", func(m *model) { m.pools.Set("pool007", pool{"pool007", 9000, "app007"}) },
			20 + 2 + 2, []string{"gw006", "gw007"}, []string{"pool007"}, nil}, // the routes that name it, their tables, its cluster and endpoints
		{"pod changed", func(m *model) { m.pods.Set("pod007-1", pod{App: "app007", Zone: "zone", IP: 9}) },
			1, nil, nil, []string{"pool007"}},
		{"pod comes", func(m *model) { m.pods.Set("pod007-9", pod{App: "app007", Zone: "zone", IP: 9}) },
			1, nil, nil, []string{"pool007"}},
		{"pod goes", func(m *model) { m.pods.Delete("pod007-1") },
			1, nil, nil, []string{"pool007"}},
		{"pod moves to another pool", func(m *model) { m.pods.Set("pod007-1", pod{App: "app008", Zone: "zone", IP: 9}) },
			2, nil, nil, []string{"pool007", "pool008"}},
		{"pod moves out of the list", func(m *model) { m.pods.Set("pod007-1", pod{App: "app007", Zone: "other", IP: 9}) },
			1, nil, nil, []string{"pool007"}},
		{"pod of nobody", func(m *model) { m.pods.Set("stray", pod{App: "app999", Zone: "zone"}) },
			0, nil, nil, nil},
		{"nothing", func(m *model) { m.setRoute(7, 20, 200, 1) }, 0, nil, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := build()
			m.fill(2000, 20, 200)
			m.g.Update(nil)
			m.g.Runs = 0
			c.change(m)
			m.g.Update(func() {
				for what, got := range map[string][2][]string{
					"tables": {m.tables.Changed(), c.tables}, "clusters": {m.clusters.Changed(), c.clusters}, "endpoints": {m.endpoints.Changed(), c.assignment},
				} {
					if !slices.Equal(got[0], got[1]) {
						t.Errorf("%s changed: %v, want %v", what, got[0], got[1])
					}
				}
			})
			if m.g.Runs != c.runs {
				t.Errorf("%d functions ran, want %d", m.g.Runs, c.runs)
			}
		})
	}
}

// A selection works only for queries that somebody still asks, and keeps an answer whose
// reader is computed again.
func TestSelectionForgetsItsReaders(t *testing.T) {
	g := New()
	in, ask := Input[string](g, equal[int]), Input[string](g, equal[string])
	sel := NewSelection(in, func(string, int) []string { return []string{"all"} }, func(q string) (string, func(string, int) bool) {
		return "all", func(_ string, v int) bool { return fmt.Sprint(v) == q }
	})
	out := Derive(ask, equal[string], func(r *Reads, _, q string) (string, bool) {
		return fmt.Sprint(sel.Keys(r, q)), true
	})
	expect := func(want string, queries ...string) {
		t.Helper()
		g.Update(nil)
		if got, _ := out.Get(nil, "reader"); got != want {
			t.Errorf("answer is %q, want %q", got, want)
		}
		if len(sel.answers) != len(queries) || len(sel.byList["all"]) != len(queries) {
			t.Errorf("%d answers are kept, want %v", len(sel.answers), queries)
		}
	}
	in.Set("a", 1)
	in.Set("b", 2)
	ask.Set("reader", "1")
	expect("[a]", "1")
	in.Set("b", 1)
	expect("[a b]", "1")
	ask.Set("reader", "2")
	expect("[]", "2")
	in.Set("a", 2)
	expect("[a]", "2")
	ask.Delete("reader")
	expect("")
	if got := sel.Keys(nil, "1"); !slices.Equal(got, []string{"b"}) || len(sel.answers) != 0 {
		t.Errorf("from outside: %v, %d answers kept; want [b], none", got, len(sel.answers))
	}
}

func bench(b *testing.B, routes, gateways int, change func(m *model, i int)) {
	m := build()
	m.fill(routes, gateways, 200)
	m.g.Update(nil)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		change(m, i)
		m.g.Update(nil)
	}
}

func BenchmarkOneRoute(b *testing.B) {
	for _, gateways := range []int{1, 20, 200} {
		b.Run(fmt.Sprintf("%dtables", gateways), func(b *testing.B) {
			bench(b, 10_000, gateways, func(m *model, i int) { m.setRoute(i%10_000, gateways, 200, i+2) })
		})
	}
}

func BenchmarkOnePool(b *testing.B) {
	bench(b, 10_000, 200, func(m *model, i int) {
		n := i % 200
		m.pools.Set(fmt.Sprintf("pool%03d", n), pool{fmt.Sprintf("pool%03d", n), i + 1, fmt.Sprintf("app%03d", n)})
	})
}

func BenchmarkOnePod(b *testing.B) {
	bench(b, 10_000, 200, func(m *model, i int) {
		n := i % 200
		m.pods.Set(fmt.Sprintf("pod%03d-0", n), pod{App: fmt.Sprintf("app%03d", n), Zone: "zone", IP: i + 9})
	})
}

func BenchmarkFromScratch(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		m := build()
		m.fill(10_000, 20, 200)
		m.g.Update(nil)
	}
}
