package server

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"signalbox.dev/xds"
)

// Before the first Publish streams stay open unanswered; after it even an Envoy that
// came early gets its state, and an empty one is an answer.
func TestNothingBeforeSynced(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h := newHarness(t)
		e := h.connect(delta, "", nil)
		e.subscribe(xds.Cluster)
		e.subscribe(xds.Listener)
		e.quiet(time.Hour)
		if h.Synced() {
			t.Error("synced before the first Publish")
		}
		h.Publish(nil)
		if !h.Synced() {
			t.Error("not synced after the first Publish")
		}
		e.quiet(time.Hour) // there is no Gateway at all: a first one may come
		h.Publish(put(cluster("a", "1")))
		m := e.take(xds.Cluster)
		e.holds(xds.Cluster, "a@1")
		e.takeAck(xds.Listener, "") // none, but Envoy must not wait for it for ever
		e.ack(m)
		e.quiet(time.Hour)
	})
}

// The first answer of a kind is whole: on state of the world a part would take away.
func TestFirstListenersWaitForAll(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h := newHarness(t)
		h.Publish(put(cluster("bb", "1"), listener("l", "1"), listener("m", "names bb")))
		e := h.connect(delta, string(gw), nil)
		e.subscribe(xds.Listener) // before clusters, as TestAdsReconnectRequests of Istio
		e.quiet(clusterWait - time.Second)
		e.subscribe(xds.Cluster)
		m := e.take(xds.Cluster)
		e.quiet(time.Second)
		e.ack(m)
		e.takeAck(xds.Listener, "l@1 m@names bb")
	})
}

// An Envoy that never asks for clusters has its own and gets listeners all the same.
func TestNoClustersAsked(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h := newHarness(t)
		h.Publish(put(listener("l", "1")))
		e := h.connect(delta, string(gw), nil)
		begin := time.Now()
		e.subscribe(xds.Listener)
		e.takeAck(xds.Listener, "l@1")
		if waited := time.Since(begin); waited != clusterWait {
			t.Errorf("waited %v, want %v", waited, clusterWait)
		}
	})
}

func TestUnknownNames(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		e.subscribe(xds.Endpoint, "nowhere")
		e.takeAck(xds.Endpoint, "a@1 nowhere@empty") // at once: a cluster warms on it
		e.subscribe(xds.Route, "late")
		e.quiet(stepWait - time.Second)
		h.Publish(put(table("late", "a")))
		e.takeAck(xds.Route, "late@a r@a") // not taken for missing
		e.subscribe(xds.Route, "never")
		e.quiet(stepWait - time.Second)
		e.takeAck(xds.Route, "late@a never@ r@a")
		h.Publish(put(table("never", "a")))
		e.takeAck(xds.Route, "late@a never@a r@a")

		e.subscribe(xds.Secret, "never")
		e.quiet(stepWait - time.Second)
		if delta { // ends the warming of what uses it
			if m := e.take(xds.Secret); m.String() != "-never" {
				t.Errorf("answer for a secret that is not there: %v", m)
			}
		} // state of the world cannot say it: Envoy waits for initial_fetch_timeout
		e.quiet(time.Hour)
	})
}

// A name asked for again is answered again, with the version that was sent before.
func TestAskedAgain(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		_, e := start(t, delta)
		e.unsubscribe(xds.Route, "r")
		e.quiet(time.Second)
		e.subscribe(xds.Route, "r")
		e.takeAck(xds.Route, "r@a")
		if delta {
			e.subscribe(xds.Endpoint, "a")
			e.takeAck(xds.Endpoint, "a@1")
		}
		e.quiet(time.Hour)
	})
}

func TestStaleNonce(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.Publish(put(cluster("b", "1"), table("r", "b")))
		m := e.take(xds.Cluster)
		old := m
		old.nonce = "1" // of the first response of all, answered long ago
		e.ack(old)
		e.quiet(clusterWait - time.Second)
		e.ack(m)
		e.takeAck(xds.Route, "r@b")
		e.ack(m) // twice
		e.quiet(time.Hour)
	})
}

func TestNACK(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.heard()
		h.Publish(slices.Concat(put(cluster("b", "1"), table("r", "b")), gone(xds.Cluster, "a"), gone(xds.Endpoint, "a")))
		e.ack(e.take(xds.Cluster))
		e.nack(e.take(xds.Route), "missing ]: [")
		// Nothing is sent again, and nothing that the old table names is taken away.
		e.quiet(time.Hour)
		e.holds(xds.Cluster, "a@1 b@1")
		want := []string{"prod/gw envoy-1 clusters b", "prod/gw envoy-1 routes r refused: missing ]: ["}
		if got := h.heard(); !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
		state := h.Clients()[0].Types["routes"]
		if !slices.Equal(state.Refused, []string{"r"}) || state.LastError != "missing ]: [" || state.LastNack == nil {
			t.Errorf("state of routes: %+v", state)
		}
		// A later good version goes out, and then the removal.
		h.Publish(put(table("r", "b", "b")))
		e.takeAck(xds.Route, "r@b+b")
		e.quiet(linger - time.Second)
		e.takeAck(xds.Cluster, "b@1")
	})
}

// Of a refused CDS response Envoy has applied the good ones, and its words name the
// bad one. State of the world sends that one no more, but what was good before.
func TestNACKOfOneCluster(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		h.heard()
		h.Publish(put(cluster("a", "bad"), cluster("b", "1"), cluster("c", "bad"), table("r", "b")))
		m := e.take(xds.Cluster)
		e.ack(e.take(xds.Endpoint))
		e.nack(m, "Error adding/updating cluster(s) a: no, c: never")
		e.takeAck(xds.Route, "r@b") // a NACK, too, says that the rest is warm
		want := []string{"endpoints a", "clusters a c refused: Error adding/updating cluster(s) a: no, c: never", "clusters b", "routes r"}
		for i, line := range h.heard() {
			if line != "prod/gw envoy-1 "+want[i] {
				t.Errorf("heard %q, want %q", line, want[i])
			}
		}
		h.Publish(put(cluster("d", "1")))
		m = e.take(xds.Cluster)
		if want := map[bool]string{true: "d@1", false: "a@1 b@1 d@1"}[delta]; m.String() != want {
			t.Errorf("next CDS response: %v, want %s", m, want)
		}
		e.ack(m)
		h.Publish(put(cluster("a", "2"), cluster("c", "2")))
		m = e.take(xds.Cluster)
		if want := map[bool]string{true: "a@2 c@2", false: "a@2 b@1 c@2 d@1"}[delta]; m.String() != want {
			t.Errorf("after the fix: %v, want %s", m, want)
		}
	})
}

// What was refused, went and comes back is sent again, at once.
func TestRefusedComesBack(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		bad := put(listener("m", "bad"))
		for range 2 {
			h.Publish(bad)
			m := e.take(xds.Listener)
			if want := map[bool]string{true: "m@bad", false: "l@1 m@bad"}[delta]; m.String() != want {
				t.Errorf("LDS response: %v, want %s", m, want)
			}
			e.nack(m, "Error adding/updating listener(s) m: cannot bind")
			e.quiet(time.Second) // and is not sent again by itself
			h.Publish(gone(xds.Listener, "m"))
			e.quiet(time.Second)
		}
	})
}

// A delta Envoy that reconnects is sent only what is different, and loses what is not
// wanted any more only after what replaces it.
func TestReconnectDelta(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, e := start(t, true)
		e.cancel()
		<-e.err
		h.heard()
		e = h.connect(true, string(gw), e)
		e.subscribe(xds.Cluster)
		e.subscribe(xds.Endpoint, "a")
		e.subscribe(xds.Listener)
		e.subscribe(xds.Route, "r")
		e.quiet(time.Hour)
		// Nothing is sent, so nothing will be answered: what it holds counts as taken.
		want := []string{"clusters a", "endpoints a", "listeners l", "routes r"}
		for i, line := range h.heard() {
			if line != "prod/gw envoy-1 "+want[i] {
				t.Errorf("heard %q, want %q", line, want[i])
			}
		}
		e.cancel()
		<-e.err
		synctest.Wait()

		h.Publish(slices.Concat(put(cluster("b", "1"), cla("b", "1"), table("r", "b")), gone(xds.Cluster, "a"), gone(xds.Endpoint, "a")))
		e = h.connect(true, string(gw), e)
		e.subscribe(xds.Endpoint, "a")
		e.subscribe(xds.Route, "r")
		e.quiet(time.Second)
		e.subscribe(xds.Listener)
		e.subscribe(xds.Cluster)
		m := e.take(xds.Cluster)
		if m.String() != "b@1" {
			t.Errorf("CDS after the reconnect: %v", m)
		}
		e.quiet(time.Second)
		e.ack(m)
		e.takeAck(xds.Route, "r@b")
		e.quiet(linger - time.Second)
		if m := e.take(xds.Cluster); m.String() != "-a" {
			t.Errorf("removal after the reconnect: %v", m)
		}
	})
}

// A state-of-the-world Envoy that reconnects keeps the endpoints of a cluster that is
// about to go: an empty assignment would fail requests of its old routes.
func TestReconnectWorld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, e := start(t, false)
		e.cancel()
		<-e.err
		h.Publish(slices.Concat(put(cluster("b", "1"), cla("b", "1"), table("r", "b")), gone(xds.Cluster, "a"), gone(xds.Endpoint, "a")))
		e = h.connect(false, string(gw), e)
		e.subscribe(xds.Endpoint, "a")
		e.quiet(time.Hour)
	})
}

func TestGroups(t *testing.T) {
	tests := map[string]struct {
		groups  []xds.Group
		cluster string
		want    string // the cluster resource it gets, or "", or an error
	}{
		"named":              {[]xds.Group{"a/x", "b/y"}, "b/y", "b/y"},
		"only one, none":     {[]xds.Group{"a/x"}, "", "a/x"},
		"only one, another":  {[]xds.Group{"a/x"}, "my-envoy", "a/x"},
		"several, none":      {[]xds.Group{"a/x", "b/y"}, "", "set node.cluster (envoy --service-cluster) to the Gateway whose Envoy this is, one of: a/x, b/y"},
		"several, unknown":   {[]xds.Group{"a/x", "b/y"}, "c/z", `node.cluster "c/z" is no Gateway; set it (envoy --service-cluster) to one of: a/x, b/y`},
		"no Gateway at all":  {nil, "c/z", ""},
		"several, no '/'":    {[]xds.Group{"a/x", "b/y"}, "x", `node.cluster "x" is no Gateway; set it (envoy --service-cluster) to one of: a/x, b/y`},
		"named, case counts": {[]xds.Group{"a/x", "b/y"}, "B/y", `node.cluster "B/y" is no Gateway; set it (envoy --service-cluster) to one of: a/x, b/y`},
	}
	for name, tc := range tests {
		for _, early := range []bool{false, true} { // connects before the first Publish
			both(t, func(t *testing.T, delta bool) {
				h := newHarness(t)
				publish := func() {
					h.Publish(nil)
					var all []xds.Change
					for _, g := range tc.groups {
						all = append(all, putTo(g, cluster(string(g), "1"))...)
					}
					h.Publish(all)
				}
				if !early {
					publish()
				}
				e := h.connect(delta, tc.cluster, nil)
				e.subscribe(xds.Cluster)
				if early {
					e.quiet(time.Second)
					publish()
				}
				switch {
				case tc.want == "":
					e.quiet(time.Hour)
				case strings.Contains(tc.want, "node.cluster"):
					if err := <-e.err; status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != tc.want {
						t.Errorf("%s: got %v, want %s", name, err, tc.want)
					}
				default:
					e.takeAck(xds.Cluster, tc.want+"@1")
				}
			})
		}
	}
}

// An Envoy that got the only Gateway without naming it is sent away when that Gateway
// makes room for another, so that it comes again for that one.
func TestGroupReplaced(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h := newHarness(t)
		h.Publish(put(cluster("a", "1")))
		e, named := h.connect(delta, "my-envoy", nil), h.connect(delta, string(gw), nil)
		for _, e := range []*envoy{e, named} {
			e.subscribe(xds.Cluster)
			e.takeAck(xds.Cluster, "a@1")
		}
		h.Publish(append(gone(xds.Cluster, "a"), putTo("prod/other", cluster("o", "1"))...))
		if err := <-e.err; status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
		e = h.connect(delta, "my-envoy", e)
		e.subscribe(xds.Cluster)
		e.take(xds.Cluster)
		named.takeAck(xds.Cluster, "")
	})
}

func TestNodeChange(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		_, e := start(t, delta)
		e.node = &corev3.Node{Id: "envoy-1", Cluster: string(gw)} // said again: allowed
		e.subscribe(xds.Secret, "x")
		e.quiet(time.Second)
		e.node = &corev3.Node{Id: "envoy-1", Cluster: "other/gw"}
		e.subscribe(xds.Secret, "y")
		if err := <-e.err; status.Code(err) != codes.PermissionDenied {
			t.Errorf("got %v", err)
		}
	})
}

// A slow Envoy delays itself alone, and gets the newest when it reads again.
func TestSlowEnvoy(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, fast := start(t, delta)
		slow := h.connect(delta, string(gw), nil)
		slow.boot("a")
		for i := range 100 {
			rev := strings.Repeat("x", i+1)
			h.Publish(put(cla("a", rev)))
			fast.takeAck(xds.Endpoint, "a@"+rev)
		}
		slow.ack(slow.take(xds.Endpoint))
		slow.takeAck(xds.Endpoint, "a@"+strings.Repeat("x", 100))
	})
}

func TestGoneIsTold(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, old := start(t, delta)
		e := h.connect(delta, string(gw), nil) // the same Envoy again, its old stream not yet found dead
		e.boot("a")
		h.heard()
		old.cancel()
		<-old.err
		if got := h.heard(); len(got) > 0 {
			t.Errorf("heard %q although the Envoy is there", got)
		}
		e.cancel()
		<-e.err
		if got, want := h.heard(), []string{"prod/gw envoy-1 gone"}; !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
		if got := h.Clients(); len(got) != 0 {
			t.Errorf("still known: %+v", got)
		}
	})
}

// A type that is not served gets no answer, and harms nothing.
func TestForeignType(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h, e := start(t, delta)
		e.subscribe("type.googleapis.com/envoy.service.runtime.v3.Runtime", "rtds")
		e.quiet(time.Second)
		h.Publish(put(cla("a", "2")))
		e.takeAck(xds.Endpoint, "a@2")
	})
}

// A state-of-the-world Envoy may answer only the last of several responses. What was
// in the earlier ones is sent again, as nobody knows what became of it.
func TestSkippedResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, e := start(t, false)
		h.Publish(put(cluster("b", "1"), cla("b", "1")))
		e.ack(e.take(xds.Cluster))
		e.subscribe(xds.Endpoint, "b")
		e.takeAck(xds.Endpoint, "a@1 b@1")
		h.Publish(put(cla("a", "2")))
		e.take(xds.Endpoint)
		e.quiet(stepWait)
		h.Publish(put(cla("b", "2")))
		e.takeAck(xds.Endpoint, "a@2 b@2")
		if m := e.take(xds.Endpoint); m.String() != "a@2" {
			t.Errorf("after the skipped response: %v", m)
		}
	})
}
