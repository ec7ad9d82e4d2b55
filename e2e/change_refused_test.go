package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
)

// TestChangeRefused: a listener that the Envoy refuses although it is valid, because
// another process has its port, is said to be refused, in Envoy's words; everything else
// goes on and can be changed. Once its port is free, it is taken when it comes anew.
func TestChangeRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	x := newStanding(t)
	moving := newTarget("moving", "moving", "").expect(x.a, "pick-a")
	movingTo := func(pool string) string { return yamlRoute("moving", rule(toPool(pool), onModel("moving"))) }
	x.files["moving.yaml"] = movingTo("a")
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	c := runChanging(t, x.ledger, x.files, boxOptions{Args: []string{"--port", "81=" + port}})
	c.load = startLoad(t, c.URL, x.ledger, nil, x.toA, x.toB, x.toS, moving)
	c.load.hold(x.toA)
	c.before = c.envoy.stats(listenerStats)

	two := strings.Replace(yamlGateway, "protocol: HTTP}", "protocol: HTTP}, {name: other, port: 81, protocol: HTTP}", 1)
	refused := func() {
		t.Helper()
		waitFor(t, "the listener is said to be refused", func() bool {
			other := c.condition("Gateway", "default/gw", "listener other", "Programmed")
			return strings.HasPrefix(other, "False Invalid ") && strings.Contains(other, "in use")
		})
		if http := c.condition("Gateway", "default/gw", "listener http", "Programmed"); !strings.HasPrefix(http, "True ") {
			t.Errorf("the other listener is said to be %q", http)
		}
	}
	c.Write("gateway.yaml", two)
	refused()
	for i := range 6 { // routes and pools change as before
		to := []string{"b", "a"}[i%2]
		c.move(moving, map[string][]*pod{"a": x.a, "b": x.b}[to], []string{"pick-" + to}, func() { c.Write("moving.yaml", movingTo(to)) })
	}
	refused()
	taken.Close()
	c.Write("gateway.yaml", yamlGateway)
	waitFor(t, "the listener is gone", func() bool { return c.condition("Gateway", "default/gw", "listener other", "Programmed") == "" })
	c.Write("gateway.yaml", two)
	c.waitReady()
	if a := get(context.Background(), fmt.Sprintf("http://127.0.0.1:%s/plain", port)); a.Status != 200 {
		t.Errorf("the listener whose port was taken answers %d %v", a.Status, a.Err)
	}
	c.load.during(30)
	c.load.finish()
	added := 0
	for _, change := range c.envoy.changed(c.before) {
		switch {
		case strings.Contains(change, "listener_added"): // as the other tests would notice
			added++
		case !strings.Contains(change, ".lds.") && !strings.Contains(change, "create_failure"):
			t.Error(change)
		}
	}
	if added != 1 {
		t.Error("Envoy's counters do not tell that a listener was added")
	}
}
