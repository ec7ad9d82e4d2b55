package server

import (
	"slices"
	"testing"
	"time"

	"signalbox.dev/xds"
)

// start publishes one listener, one table, one cluster "a" and boots an Envoy on it.
func start(t *testing.T, delta bool) (*harness, *envoy) {
	h := newHarness(t)
	h.Publish(put(cluster("a", "1"), cla("a", "1"), listener("l", "1"), table("r", "a")))
	e := h.connect(delta, string(gw), nil)
	e.boot("a")
	e.holds(xds.Cluster, "a@1")
	e.holds(xds.Endpoint, "a@1")
	e.holds(xds.Listener, "l@1")
	e.holds(xds.Route, "r@a")
	e.quiet(time.Hour)
	return h, e
}

// A whole change, every step and wait of the order table.
func TestMakeBeforeBreak(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(slices.Concat(put(cluster("b", "1"), cla("b", "1"), listener("l", "names b"), table("r", "b")), gone(xds.Cluster, "a"), gone(xds.Endpoint, "a")))

		m := e.take(xds.Cluster)
		e.holds(xds.Cluster, "a@1 b@1") // a still serves
		e.subscribe(xds.Endpoint, "b")
		e.takeAck(xds.Endpoint, "a@1 b@1")
		e.quiet(clusterWait - time.Second) // no route before the CDS ACK
		e.ack(m)

		m = e.take(xds.Listener)
		e.holds(xds.Listener, "l@names b")
		r := e.take(xds.Route)
		e.holds(xds.Route, "r@b")
		e.ack(m)
		e.quiet(time.Hour) // no removal before the route's ACK, however long
		e.ack(r)

		e.quiet(linger - time.Second)
		e.takeAck(xds.Cluster, "b@1")
		e.unsubscribe(xds.Endpoint, "a")
		e.quiet(time.Hour)
	})
}

// A cluster that never gets warm holds up others for ClusterWait, and no longer.
func TestStuckCluster(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		begin := time.Now()
		h.Publish(put(cluster("stuck", "1"), cla("stuck", "1"), table("r", "stuck")))
		e.take(xds.Cluster) // never answered
		e.subscribe(xds.Endpoint, "stuck")
		e.takeAck(xds.Endpoint, "a@1 stuck@1")
		e.takeAck(xds.Route, "r@stuck")
		if waited := time.Since(begin); waited != clusterWait {
			t.Errorf("the route came after %v, want %v", waited, clusterWait)
		}
		// The next cluster is sent although the stuck one was never answered.
		h.Publish(put(cluster("c", "1"), cla("c", "1"), table("r", "c")))
		m := e.take(xds.Cluster)
		e.holds(xds.Cluster, "a@1 c@1 stuck@1")
		e.quiet(time.Second)
		e.ack(m)
		e.takeAck(xds.Route, "r@c")
	})
}

// What names no new cluster does not wait for one.
func TestUnrelatedRouteDoesNotWait(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(put(cluster("stuck", "1"), cla("stuck", "1")))
		e.take(xds.Cluster)
		begin := time.Now()
		h.Publish(put(table("r", "a", "a")))
		e.takeAck(xds.Route, "r@a+a")
		h.Publish(put(cla("a", "2")))
		e.takeAck(xds.Endpoint, "a@2")
		h.Publish(put(listener("l", "2")))
		e.takeAck(xds.Listener, "l@2")
		if waited := time.Since(begin); waited != 0 {
			t.Errorf("waited %v", waited)
		}
	})
}

// Endpoints of a changed cluster are sent again: Envoy does not ask.
func TestChangedClusterGetsItsEndpoints(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(put(cluster("a", "2")))
		m := e.take(xds.Cluster)
		e.holds(xds.Cluster, "a@2")
		if got := e.take(xds.Endpoint).String(); got != "a@1" {
			t.Errorf("endpoints after the cluster: %q, want a@1", got)
		}
		e.ack(m)
	})
}

// While a response is on its way, newer targets become one response.
func TestNewestWins(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(put(cla("a", "2")))
		m := e.take(xds.Endpoint)
		for _, rev := range []string{"3", "4", "5"} {
			h.Publish(put(cla("a", rev)))
		}
		e.quiet(time.Second)
		e.ack(m)
		e.takeAck(xds.Endpoint, "a@5")
		e.quiet(time.Hour)
	})
}

// A response that is never answered holds back the next of its type for StepWait.
func TestUnansweredResponse(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		begin := time.Now()
		h.Publish(put(cla("a", "2")))
		e.take(xds.Endpoint)
		h.Publish(put(cla("a", "3")))
		e.takeAck(xds.Endpoint, "a@3")
		if waited := time.Since(begin); waited != stepWait {
			t.Errorf("waited %v, want %v", waited, stepWait)
		}
	})
}

// A steady stream of new clusters, each slow to warm, does not starve the one table
// that names them all.
func TestNoStarvation(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(put(cluster("b", "1"), table("r", "a", "b")))
		first := e.take(xds.Cluster)
		h.Publish(put(cluster("c", "1"), table("r", "a", "b", "c")))
		e.quiet(time.Second) // c is not sent, so the newer table must wait
		e.ack(first)
		second := e.take(xds.Cluster) // and the older one goes
		e.takeAck(xds.Route, "r@a+b")
		h.Publish(put(cluster("d", "1"), table("r", "a", "b", "c", "d")))
		e.ack(second)
		third := e.take(xds.Cluster)
		e.takeAck(xds.Route, "r@a+b+c")
		e.ack(third)
		e.takeAck(xds.Route, "r@a+b+c+d")
	})
}

func TestLingerCancelled(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(slices.Concat(put(cluster("b", "1"), cla("b", "1"), table("r", "b")), gone(xds.Cluster, "a"), gone(xds.Endpoint, "a")))
		e.ack(e.take(xds.Cluster))
		e.takeAck(xds.Route, "r@b")
		e.quiet(linger - time.Second)
		h.Publish(put(cluster("a", "1"), cla("a", "1"), table("r", "a", "b")))
		e.takeAck(xds.Route, "r@a+b") // at once: a is still there
		e.quiet(time.Hour)
		e.holds(xds.Cluster, "a@1 b@1")
	})
}

// The linger of a removal is not moved by later changes.
func TestLingersApart(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(put(cluster("b", "1"), cluster("c", "1"), table("r", "c")))
		e.ack(e.take(xds.Cluster))
		e.takeAck(xds.Route, "r@c")
		h.Publish(gone(xds.Cluster, "a"))
		e.quiet(linger / 2)
		h.Publish(slices.Concat(put(table("r", "c", "c")), gone(xds.Cluster, "b")))
		e.takeAck(xds.Route, "r@c+c")
		e.quiet(linger/2 - time.Second)
		e.takeAck(xds.Cluster, "b@1 c@1")
		e.quiet(linger/2 - time.Second)
		e.takeAck(xds.Cluster, "c@1")
	})
}

// Listeners go before the clusters that they and their tables use.
func TestRemovalOrder(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(slices.Concat(gone(xds.Cluster, "a"), gone(xds.Endpoint, "a"), gone(xds.Listener, "l"), gone(xds.Route, "r")))
		e.quiet(linger - time.Second)
		m := e.take(xds.Listener)
		e.holds(xds.Listener, "")
		e.quiet(time.Second)
		e.ack(m)
		e.takeAck(xds.Cluster, "")
		e.quiet(time.Hour)
	})
}

// A new listener's table is given as soon as it is asked for.
func TestNewListener(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(put(cluster("b", "1"), cla("b", "1"), listener("m", "1"), table("s", "b"), secret("x", "1")))
		m := e.take(xds.Cluster)
		e.ack(m)
		e.takeAck(xds.Listener, "l@1 m@1")
		e.subscribe(xds.Secret, "x")
		e.takeAck(xds.Secret, "x@1")
		e.subscribe(xds.Route, "s")
		e.takeAck(xds.Route, "r@a s@b")
		h.Publish(put(secret("x", "2")))
		e.takeAck(xds.Secret, "x@2")
	})
}

// Route tables go one a response, in turn, so a NACK says which one.
func TestOneTableAResponse(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(put(listener("m", "1"), table("s", "a")))
		e.takeAck(xds.Listener, "l@1 m@1")
		e.subscribe(xds.Route, "s")
		e.takeAck(xds.Route, "r@a s@a")
		h.Publish(put(table("r", "a", "a"), table("s", "a", "a")))
		m := e.take(xds.Route)
		if len(m.resources) != 1 {
			t.Fatalf("%d tables in a response: %v", len(m.resources), m)
		}
		h.Publish(put(table("r", "a", "a", "a"))) // must not overtake s
		e.ack(m)
		e.takeAck(xds.Route, "r@a+a s@a+a")
		e.takeAck(xds.Route, "r@a+a+a s@a+a")
	})
}
