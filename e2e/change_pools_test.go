package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestChangePools: pools and the weights between them change in every way that they can,
// under load on the pools themselves.
func TestChangePools(t *testing.T) {
	x := newStanding(t)
	newPods := func(name string) []*pod {
		return []*pod{x.ledger.startPod(t, name+"-0"), x.ledger.startPod(t, name+"-1")}
	}

	// "old" is replaced by "new", in one stroke, and everything of it deleted.
	old, young := newPods("old"), newPods("new")
	pickOld, pickNew := startSteered(t, "pick-old", false, old...), startSteered(t, "pick-new", true, young...)
	replaced := newTarget("replaced", "replaced", "").expect(old, "pick-old")
	x.files["replaced.yaml"] = changePool{name: "old", picker: "epp-old"}.yaml() + yamlEPP("epp-old", pickOld.Address) + yamlApp("old", old...) +
		yamlRoute("replaced", rule(toPool("old"), onModel("replaced")))

	// "c" is what changes itself.
	c1, c2 := newPods("c1"), newPods("c2")
	pickC, pickD := startSteered(t, "pick-c", false, c1...), startSteered(t, "pick-d", true, c1...)
	changed := newTarget("changed", "changed", "").expect(c1, "pick-c")
	pool := changePool{name: "c", app: "c1", picker: "epp-c"}
	x.files["c.yaml"] = pool.yaml()
	x.files["c-rest.yaml"] = yamlEPP("epp-c", pickC.Address) + yamlEPP("epp-d", pickD.Address) + yamlApp("c1", c1...) + yamlApp("c2", c2...) +
		yamlRoute("c", rule(toPool("c"), onModel("changed")))

	// "w" is shared out between a and b.
	weighted := newTarget("weighted", "weighted", "").expect(slices.Concat(x.a, x.b), "pick-a", "pick-b")
	x.files["weighted.yaml"] = yamlWeighted("weighted", 70, 30)

	c := runChanging(t, x.ledger, x.files, boxOptions{})
	c.begin(x.toA, replaced, x.toB, changed, x.toS, changed, weighted)
	for _, target := range []*loadTarget{x.toA, replaced, changed, weighted} {
		c.load.hold(target)
	}
	c.move(replaced, young, []string{"pick-new"}, func() {
		c.Write("replaced.yaml", changePool{name: "new", picker: "epp-new", annotations: "signalbox.dev/picker-tls: plaintext"}.yaml()+
			yamlEPP("epp-new", pickNew.Address)+yamlApp("new", young...)+yamlRoute("replaced", rule(toPool("new"), onModel("replaced"))))
	})
	since := time.Now()

	set := func(p changePool) func() { return func() { c.Write("c.yaml", p.yaml()) } }
	step := func(pods []*pod, by string, edit func()) {
		t.Helper()
		edit()
		c.move(changed, pods, []string{by}, set(pool))
	}
	for range 2 {
		step(c1, "pick-c", func() { pool.failOpen = true })
		step(c1, "pick-c", func() { pool.failOpen = false })
	}
	step(c1, "", func() { pool.picker = "" })
	step(c2, "", func() { pool.app = "c2" })
	step(c1, "", func() { pool.app = "c1" })
	step(c1, "pick-d", func() { pool.picker, pool.annotations = "epp-d", "signalbox.dev/picker-tls: plaintext" })
	step(c1, "pick-c", func() { pool.picker, pool.annotations = "epp-c", "" })
	step(c1, "pick-c", func() { pool.h2c = true })
	step(c1, "pick-c", func() { pool.h2c = false })
	step(c1, "", func() { pool.annotations = `signalbox.dev/picker-response: "None"` }) // which then names itself nowhere
	step(c1, "pick-c", func() { pool.annotations = "signalbox.dev/picker-response: Headers" })
	step(c1, "pick-c", func() { pool.annotations = "signalbox.dev/pick-timeout: 50s" })

	for _, w := range [][2]int{{30, 70}, {1, 1}, {0, 1}, {1, 0}, {1, 999}, {70, 30}} {
		to, by := slices.Concat(x.a, x.b), []string{"pick-a", "pick-b"}
		switch {
		case w[0] == 0:
			to, by = x.b, by[1:]
		case w[1] == 0:
			to, by = x.a, by[:1]
		}
		c.move(weighted, to, by, func() { c.Write("weighted.yaml", yamlWeighted("weighted", w[0], w[1])) })
	}

	// What is not needed any more goes after a while; what it still streams is not cut.
	for c.envoy.clusters()["pool/default/old"] {
		if time.Since(since) > 2*time.Minute {
			t.Fatal("the Envoy still has the cluster of the pool that is gone")
		}
		c.load.during(50)
	}
	t.Logf("the cluster of the deleted pool went after %v", time.Since(since).Round(time.Second))
	c.load.during(100)
	c.end()
}

// TestChangeBackends: a route's backend is replaced by a new one and deleted, again and
// again, while all of the load goes there: there is no moment at which the route leads to
// what the Envoy does not have yet, or not any more.
func TestChangeBackends(t *testing.T) {
	x := newStanding(t)
	replaced := newTarget("replaced", "replaced", "").expect(x.a, "pick-a", "")
	backend := func(i int) string {
		name := fmt.Sprintf("backend-%d", i)
		switch i % 3 {
		case 0:
			return changePool{name: name, app: "a"}.yaml() + yamlRoute("replaced", rule(toPool(name), onModel("replaced")))
		case 1:
			return yamlService(name, x.a...) + yamlRoute("replaced", rule(toService(name), onModel("replaced")))
		}
		return changePool{name: name, app: "a", picker: "epp-a"}.yaml() + yamlRoute("replaced", rule(toPool(name), onModel("replaced")))
	}
	x.files["replaced.yaml"] = backend(0)
	c := runChanging(t, x.ledger, x.files, boxOptions{})
	c.begin(replaced)
	c.load.hold(replaced)
	for i := range 90 {
		c.change(func() { c.Write("replaced.yaml", backend(i+1)+"#"+strings.Repeat(".", 4096-len(backend(i+1))+i)+"\n") }) // never shorter
		c.load.during(5)
	}
	c.load.during(50)
	c.end()
}

// yamlWeighted is a route of a model of the same name, shared out between pools a and b.
func yamlWeighted(model string, a, b int) string {
	const to = "{group: inference.networking.k8s.io, kind: InferencePool, name: %s, weight: %d}"
	return yamlRoute(model, rule(fmt.Sprintf("backendRefs: ["+to+", "+to+"]", "a", a, "b", b), onModel(model)))
}
