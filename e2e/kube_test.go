//go:build cluster

package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// The leader of two replicas is killed: the other one serves Envoys as if nothing had
// happened, and writes statuses within 20 s, those that differ.
func TestKubeLeaderKilled(t *testing.T) {
	c := newCluster(t, "admin")
	c.apply(redirect("before"))
	leader := c.start()
	leader.waitOutput(t, leads)
	standby := c.start()
	c.envoy(standby)
	waitFor(t, "the route is served and accepted", func() bool { return c.answers("before") && c.accepted("before") })
	waitFor(t, "the Gateway counts it", func() bool { return c.attached() == 1 })
	before := c.writes()
	stop := c.hammer("before")

	began := time.Now()
	kill(t, leader.program)
	c.apply(redirect("after"))
	waitFor(t, "the new route is served", func() bool { return c.answers("after") })
	since(t, "leader killed to a new route served by the standby", began)
	if strings.Contains(standby.output.String(), leads) {
		t.Log("the standby led by then")
	}
	waitFor(t, "the new route is accepted", func() bool { return c.accepted("after") })
	if took := since(t, "leader killed to statuses written", began); took > 20*time.Second {
		t.Errorf("statuses were written %s after the leader was killed, want 20 s at most", took)
	}
	waitFor(t, "the Gateway counts it", func() bool { return c.attached() == 2 })
	if failed, sent := stop(); failed > 0 {
		t.Errorf("%d of %d requests failed", failed, sent)
	}
	for object, n := range c.writes() {
		allowed := map[string]int{"httproutes/after": 1, "gateways/gw": 2}[object]
		if n -= before[object]; n > allowed {
			t.Errorf("%s was written %d times after the change, want %d at most", object, n, allowed)
		}
	}
}

// A leader that ends in order hands over at once.
func TestKubeLeaderEnds(t *testing.T) {
	c := newCluster(t, "admin")
	leader := c.start()
	leader.waitOutput(t, leads)
	standby := c.start()
	began := time.Now()
	leader.stop(t)
	standby.waitOutput(t, leads)
	if took := since(t, "leader ended to the next one", began); took > 5*time.Second {
		t.Errorf("the next leader came after %s", took)
	}
}

// 1,000 routes at once are one write each, and few on their Gateway; a control plane that
// starts anew writes nothing.
func TestKubeThousandRoutes(t *testing.T) {
	const routes, clients = 1000, 8
	c := newCluster(t, "signalbox")
	c.apply(everything)
	r := c.start()
	r.waitOutput(t, leads)
	c.envoy(r)
	waitFor(t, "the Gateway has a status", func() bool { return c.writes()["gateways/gw"] > 0 })

	began := time.Now()
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			for n := i; n < routes; n += clients {
				c.apply(redirect(fmt.Sprintf("r%04d", n)))
			}
		})
	}
	group.Wait()
	since(t, "1,000 routes applied", began)
	waitFor(t, "the Gateway counts all", func() bool { return c.attached() == routes })
	since(t, "the Gateway counts them all", began)
	r.wrote(t, "written", routes)
	since(t, "all have a status", began)
	waitFor(t, "the last is served", func() bool { return c.answers("r0999") })
	onRoutes, onGateway := c.count()
	t.Logf("writes: %d on routes, %d on the Gateway", onRoutes, onGateway)
	if onRoutes != routes || onGateway > 20 {
		t.Errorf("%d writes on %d routes and %d on the Gateway; want one each and 20 at most", onRoutes, routes, onGateway)
	}

	began = time.Now()
	kill(t, r.program)
	r = c.start()
	r.waitOutput(t, leads)
	since(t, "killed to the next leader", began)
	r.wrote(t, "same", routes)
	since(t, "killed to all looked at", began)
	if again, gateway := c.count(); again != onRoutes || gateway > onGateway+2 { // Programmed goes and comes with the Envoy
		t.Errorf("the new leader wrote %d routes and the Gateway %d times, which were as they should be", again-onRoutes, gateway-onGateway)
	}
}

// wrote waits until the replica has dealt with the statuses of so many routes.
func (r *replica) wrote(t *testing.T, result string, routes int) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%d statuses of routes are %s", routes, result), func() bool {
		body := get(t.Context(), "http://"+r.admin+"/metrics").Body
		return strings.Contains(body, fmt.Sprintf("signalbox_status_writes_total{kind=\"HTTPRoute\",result=%q} %d\n", result, routes))
	})
}

// count returns how many statuses of routes, and of the Gateway, have been written.
func (c *cluster) count() (routes, gateway int) {
	for object, n := range c.writes() {
		if strings.HasPrefix(object, "httproutes/") {
			routes += n
		} else if object == "gateways/gw" {
			gateway = n
		}
	}
	return routes, gateway
}

// everything lets the control plane do what it likes.
const everything = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signalbox}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: signalbox}]
`

// The API server hangs, dies, and loses its etcd: requests are answered all the while, and
// what changes afterwards is served within seconds.
func TestKubeOutages(t *testing.T) {
	c := newCluster(t, "admin")
	c.apply(redirect("before"))
	r := c.start()
	c.envoy(r)
	waitFor(t, "the route is served", func() bool { return c.answers("before") })
	for _, test := range []struct {
		name       string
		begin, end func()
	}{
		{"API server hangs", func() { c.server.Hang(t) }, func() { c.server.Continue(t) }},
		{"API server dies", c.server.KillAPI, func() { c.server.StartAPI(t) }},
		{"etcd dies", c.server.KillEtcd, func() { c.server.StartEtcd(t) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			stop := c.hammer("before")
			test.begin()
			<-time.After(*outageTime)
			test.end()
			name := strings.ToLower(strings.ReplaceAll(test.name, " ", "-"))
			waitFor(t, "the API server takes a route", func() bool { return c.try(redirect(name)) })
			began := time.Now()
			waitFor(t, "the new route is served", func() bool { return c.answers(name) })
			if took := since(t, "stored to served", began); took > 5*time.Second {
				t.Errorf("what was stored after the outage is served after %s, want 5 s at most", took)
			}
			waitFor(t, "its status is written", func() bool { return c.accepted(name) })
			since(t, "stored to accepted", began)
			if failed, sent := stop(); failed > 0 {
				t.Errorf("%d of %d requests failed", failed, sent)
			}
		})
	}
}
