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
	replaced, young, next := x.replacedPool(t)
	changed, c1, c2 := x.changedPool(t)
	weighted := newTarget("weighted", "weighted", "").expect(slices.Concat(x.a, x.b), "pick-a", "pick-b")
	x.files["weighted.yaml"] = yamlWeighted("weighted", 70, 30)
	c := runChanging(t, x.ledger, x.files, boxOptions{})
	c.begin(x.toA, replaced, x.toB, changed, x.toS, changed, weighted)
	for _, target := range []*loadTarget{x.toA, replaced, changed, weighted} {
		c.load.hold(target)
	}
	c.move(replaced, young, []string{"pick-new"}, func() { c.Write("replaced.yaml", next) })
	since, gone := time.Now(), "pool/default/old"
	if !c.envoy.clusters()[gone] {
		t.Errorf("the Envoy has no cluster %s any more, whose requests are still under way", gone)
	}
	c.changeItself(changed, c1, c2)
	c.changeWeights(x, weighted)

	// What is not needed any more goes after a while; what it still streams is not cut.
	for c.envoy.clusters()[gone] {
		if time.Since(since) > 2*time.Minute {
			t.Fatal("the Envoy still has the cluster of the pool that is gone")
		}
		c.load.during(50)
	}
	t.Logf("the cluster of the deleted pool went after %v", time.Since(since).Round(time.Second))
	c.load.during(100)
	c.end()
}

func (x *standing) twoPods(t testing.TB, name string) []*pod {
	return []*pod{x.ledger.startPod(t, name+"-0"), x.ledger.startPod(t, name+"-1")}
}

// replacedPool is a pool "old" with its route, and what replaces all of it in one stroke.
func (x *standing) replacedPool(t testing.TB) (target *loadTarget, young []*pod, next string) {
	old := x.twoPods(t, "old")
	young = x.twoPods(t, "new")
	pickOld, pickNew := startSteered(t, "pick-old", false, old...), startSteered(t, "pick-new", true, young...)
	x.files["replaced.yaml"] = changePool{name: "old", picker: "epp-old"}.yaml() + yamlEPP("epp-old", pickOld.Address) + yamlApp("old", old...) +
		yamlRoute("replaced", rule(toPool("old"), onModel("replaced")))
	next = changePool{name: "new", picker: "epp-new", annotations: "signalbox.dev/picker-tls: plaintext"}.yaml() +
		yamlEPP("epp-new", pickNew.Address) + yamlApp("new", young...) + yamlRoute("replaced", rule(toPool("new"), onModel("replaced")))
	return newTarget("replaced", "replaced", "").expect(old, "pick-old"), young, next
}

// changedPool is a pool "c", which changes itself: it has the pods c1 or c2, and the
// picker pick-c, pick-d (plaintext), or none.
func (x *standing) changedPool(t testing.TB) (target *loadTarget, c1, c2 []*pod) {
	c1, c2 = x.twoPods(t, "c1"), x.twoPods(t, "c2")
	pickC, pickD := startSteered(t, "pick-c", false, c1...), startSteered(t, "pick-d", true, c1...)
	x.files["c.yaml"] = changePool{name: "c", app: "c1", picker: "epp-c"}.yaml()
	x.files["c-rest.yaml"] = yamlEPP("epp-c", pickC.Address) + yamlEPP("epp-d", pickD.Address) + yamlApp("c1", c1...) + yamlApp("c2", c2...) +
		yamlRoute("c", rule(toPool("c"), onModel("changed")))
	return newTarget("changed", "changed", "").expect(c1, "pick-c"), c1, c2
}

// changeItself changes each field of pool "c".
func (c *changing) changeItself(changed *loadTarget, c1, c2 []*pod) {
	c.box.t.Helper()
	pool := changePool{name: "c", app: "c1", picker: "epp-c"}
	step := func(pods []*pod, by string, edit func()) {
		c.box.t.Helper()
		edit()
		c.move(changed, pods, []string{by}, func() { c.Write("c.yaml", pool.yaml()) })
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
}

// changeWeights changes how a route is shared out between pools a and b.
func (c *changing) changeWeights(x *standing, weighted *loadTarget) {
	c.box.t.Helper()
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
