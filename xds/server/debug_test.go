package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"signalbox.dev/xds"
)

// What /debug/xds says of an Envoy on its way through the steps.
func TestClients(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h := newHarness(t)
		e := h.connect(delta, string(gw), nil)
		e.node.UserAgentVersionType = &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 40}}}
		e.subscribe(xds.Cluster)
		at := func(step string) ClientState {
			t.Helper()
			synctest.Wait()
			c := h.Clients()
			if len(c) != 1 || !strings.HasPrefix(c[0].Step, step) {
				t.Fatalf("%+v, want one in step %s", c, step)
			}
			return c[0]
		}
		at("0")
		h.Publish(put(cluster("bb", "1"), cla("bb", "1"), listener("l", "1"), table("r", "bb")))
		m := e.take(xds.Cluster)
		if s := at("1").Types["clusters"]; s.Subscribed != "all" || s.Wanted != 1 || s.Sent != 1 || s.Acked != 0 || s.Unanswered != 1 || s.WantedVersion != s.SentVersion {
			t.Errorf("clusters before the ACK: %+v", s)
		}
		e.ack(m)
		e.subscribe(xds.Listener)
		m = e.take(xds.Listener)
		at("2")
		e.ack(m)
		e.subscribe(xds.Route, "r")
		e.ack(e.take(xds.Route))
		c := at("in sync")
		if s := c.Types["clusters"]; s.Acked != 1 || s.AckedVersion != s.WantedVersion || s.LastAck == nil {
			t.Errorf("clusters after the ACK: %+v", s)
		}
		if c.Node != "envoy-1" || c.Cluster != string(gw) || c.Group != gw || c.Version != "1.40.0" {
			t.Errorf("%+v", c)
		}
		h.Publish(put(table("r")))
		e.ack(e.take(xds.Route))
		h.Publish(append(gone(xds.Cluster, "bb"), gone(xds.Endpoint, "bb")...))
		at("3")
		if _, err := json.Marshal(h.Clients()); err != nil {
			t.Error(err)
		}
	})
}

func TestConfigHidesSecrets(t *testing.T) {
	s := New(Options{})
	s.Publish(put(secret("tls", "very private"), cluster("a", "1"), cluster("b", "1")))
	var names []string
	for _, r := range s.Config()[gw] {
		m, err := r.Any.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		if j := protojson.Format(m); strings.Contains(j, "private") {
			t.Errorf("the secret's content is shown: %s", j)
		}
		names = append(names, r.Type.Short()+"/"+r.Name)
		if r.Name == "tls" && r.Version != secret("tls", "very private").Version {
			t.Error("the secret's version is another one")
		}
	}
	if got := fmt.Sprint(names); got != "[secrets/tls clusters/a clusters/b]" {
		t.Errorf("got %s", got)
	}
}

func TestMetrics(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		h := newHarness(t)
		reg := prometheus.NewRegistry()
		h.metrics = newMetrics(reg)
		h.Publish(put(cluster("a", "1")))
		e := h.connect(delta, string(gw), nil)
		e.subscribe(xds.Cluster)
		e.takeAck(xds.Cluster, "a@1")
		e.quiet(time.Second)
		h.Publish(put(cluster("a", "2")))
		m := e.take(xds.Cluster)
		e.quiet(time.Second)
		e.nack(m, "no")
		synctest.Wait()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetHistogram().GetSampleSum()
			}
		}
		for name, want := range map[string]float64{
			"signalbox_xds_connected_clients": 1, "signalbox_xds_pushes_total clusters": 2,
			"signalbox_xds_ack_total clusters": 1, "signalbox_xds_nack_total clusters": 1, "signalbox_xds_nack_total routes": 0,
			"signalbox_xds_convergence_seconds":                  1,
			"signalbox_xds_last_nack_timestamp_seconds clusters": float64(time.Now().Unix()),
		} {
			if v, ok := got[name]; !ok || v != want {
				t.Errorf("%s = %v (%v), want %v", name, v, ok, want)
			}
		}
	})
}

// One of many endpoint assignments changes: response, message, answer, for one stream.
// The cost must not depend on how many there are.
func BenchmarkOneOfMany(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := newPlan(waits{time.Second, time.Second, time.Second}, false)
			now := time.Now()
			var names []string
			target := map[xds.Type]map[string]*xds.Resource{xds.Cluster: {}, xds.Endpoint: {}}
			for i := range n {
				name := fmt.Sprintf("pool/ns/%d", i)
				names = append(names, name)
				target[xds.Cluster][name], target[xds.Endpoint][name] = cluster(name, "1"), cla(name, "1")
			}
			for _, k := range p.kinds {
				k.open = true
			}
			p.begin(target, now)
			p.subscribe(p.kinds[xds.Cluster], subscription{wildcard: true}, now)
			p.subscribe(p.kinds[xds.Endpoint], subscription{add: names}, now)
			drain := func() (responses int) {
				for r := p.next(now); r != nil; r = p.next(now) {
					p.took(r, "1", now)
					p.answer(r.kind, "1", "", now)
					p.news = news{}
					responses++
				}
				return responses
			}
			drain()
			changes := [][]xds.Change{put(cla(names[7], "2")), put(cla(names[7], "3"))}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.change(changes[i%2], now)
				if drain() != 1 {
					b.Fatal("not one response")
				}
			}
		})
	}
}
