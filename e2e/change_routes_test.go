package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestChangeRoutes: routes come, change, move and go; nothing that they do not concern
// notices, and what they concern is served before, during and after.
func TestChangeRoutes(t *testing.T) {
	x := newStanding(t)
	movingTo := func(route, pool string) string { return yamlRoute(route, rule(toPool(pool), onModel("moving"))) }
	x.files["moving.yaml"] = movingTo("moving", "a")
	moving := newTarget("moving", "moving", "").expect(x.a, "pick-a")
	c := runChanging(t, x.ledger, x.files, boxOptions{})
	c.begin(x.toA, moving, x.toB, moving, x.toS)
	c.load.hold(x.toA)
	c.load.hold(moving)

	pools := map[string][]*pod{"a": x.a, "b": x.b}
	for i := range 6 { // from a to b and back, and not a request to the old one afterwards
		to := []string{"b", "a"}[i%2]
		c.move(moving, pools[to], []string{"pick-" + to}, func() { c.Write("moving.yaml", movingTo("moving", to)) })
	}
	moving.expect(slices.Concat(x.a, x.b), "pick-a", "pick-b")
	for i := range 40 { // as fast as the Envoy takes it
		c.change(func() { c.Write("moving.yaml", movingTo("moving", []string{"b", "a"}[i%2])) })
	}
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for i := range 50 { // faster than it is read
		c.Write("moving.yaml", movingTo("moving", []string{"b", "a"}[i%2]))
		<-tick.C
	}
	// Another object is the same route from now on.
	c.change(func() { c.Write("moving.yaml", movingTo("moved", "b")) })
	c.load.settle()
	moving.expect(x.b, "pick-b")

	c.comeAndGo()
	c.end()
}

// comeAndGo has routes of others come, change and go.
func (c *changing) comeAndGo() {
	c.box.t.Helper()
	status := func(model string, want int) func() bool {
		return func() bool {
			return post(context.Background(), c.URL+"/v1/chat/completions", "application/json", chat(model)).Status == want
		}
	}
	one := func(filters string, matches ...string) string {
		return yamlRoute("one", rule(filters+toPool("a"), matches...))
	}
	modifier := "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-a, value: b}]}}], "
	c.change(func() { c.Write("one.yaml", one("", onModel("one"))) })
	waitFor(c.box.t, "a new route answers", status("one", 200))
	for _, text := range []string{
		one(modifier, onModel("one")),
		one("", onModel("one"), onModel("another")),
		one("", onModel("one"), onPath("/of/its/own")),
		yamlRoute("one", rule(toService("s"), onModel("one"))),
		yamlRoute("one", rule(toPool("nobody"), onModel("one"))),
		one("timeouts: {request: 50s}, ", onModel("one")),
	} {
		c.change(func() { c.Write("one.yaml", text) })
		c.load.during(20)
	}
	c.change(func() { c.Remove("one.yaml") })
	waitFor(c.box.t, "a removed route answers no more", status("one", 404))

	many := ""
	for i := range 60 {
		many += yamlRoute(fmt.Sprintf("many-%d", i), rule(toPool("b"), onModel(fmt.Sprintf("many-%d", i))))
	}
	c.change(func() { c.Write("many.yaml", many) })
	waitFor(c.box.t, "the last of many routes answers", status("many-59", 200))
	c.change(func() { c.Remove("many.yaml") })
	waitFor(c.box.t, "the last of many routes is gone", status("many-59", 404))
	c.load.during(20)
}
