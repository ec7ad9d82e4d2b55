package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// TestPickerEndpointsGo: when no endpoint of the picker is ready any more, that is known:
// new requests do not ask it, and are answered at once. What it has under way goes on.
func TestPickerEndpointsGo(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	open.Do(script{Endpoint: h.Open[0].Address})
	closed.Do(script{Endpoint: h.Close[0].Address})
	pools := []string{"open", "close"}
	var all sync.WaitGroup
	var streams []*sseStream
	for _, pool := range pools {
		s := h.stream(t.Context(), pool, 60, 50*time.Millisecond)
		streams = append(streams, s)
		<-s.Running
		all.Go(func() { h.checkPicked(t, h.send(t.Context(), pool, 100<<10, headerThink, "3s")) })
	}
	waitFor(t, "all are under way", func() bool { return open.asked.Load()+closed.asked.Load() == 4 })
	for _, pool := range pools {
		h.Write("picker-"+pool+".yaml", `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: `+pool+`-epp-0, namespace: default, labels: {kubernetes.io/service-name: `+pool+`-epp}}
addressType: IPv4
ports: [{name: http, port: 1}]
endpoints: []
`)
	}
	waitFor(t, "the pickers are known to be gone", func() bool {
		return h.send(t.Context(), "close", 300).Status == 503 && h.send(t.Context(), "open", 300).decode(t).header(headerPicker) == ""
	})
	asked := open.asked.Load() + closed.asked.Load()
	atClose := watchPods(h.Close...)
	for range 3 {
		for _, r := range h.sendAll(t.Context(), pools) {
			if r.Size <= 300 && r.Took > soon {
				t.Errorf("%v: want it at once", r)
			}
			if r.Pool == "open" {
				r.unpicked(t, h.Open)
			} else {
				r.refused(t)
			}
		}
	}
	if n := open.asked.Load() + closed.asked.Load() - asked; n != 0 {
		t.Errorf("pickers without ready endpoints were asked %d times", n)
	}
	all.Wait()
	for _, s := range streams {
		s.whole(t, 60, soon)
	}
	atClose(t, "close", 1) // which waited for its pick
	h.Write("picker-open.yaml", hookupPool{Name: "open", Pickers: []string{open.Address}}.pickersYAML())
	h.Write("picker-close.yaml", hookupPool{Name: "close", Pickers: []string{closed.Address}}.pickersYAML())
	waitFor(t, "the pickers are back", func() bool {
		return h.send(t.Context(), "close", 300).Status == 200 && h.send(t.Context(), "open", 300).decode(t).header(headerPicker) != ""
	})
	for _, r := range h.sendAll(t.Context(), pools) {
		h.checkPicked(t, r)
	}
}

// TestPoolWithoutPicker: Envoy balances it, over all its pods.
func TestPoolWithoutPicker(t *testing.T) {
	t.Parallel()
	h := newHookup(t)
	h.run(t, hookupPool{Name: "open", FailOpen: true, NoPicker: true})
	served := map[string]int{}
	for range 10 {
		for _, r := range h.sendAll(t.Context(), []string{"open"}) {
			r.unpicked(t, h.Open)
			served[r.decode(t).Pod]++
		}
	}
	if served["open-0"] < 5 || served["open-1"] < 5 {
		t.Errorf("pods served %v", served)
	}
}

// TestSubsetHint: a hint that a filter of the user's own puts into the metadata reaches the
// picker. The Envoy is one started by hand, with the listener that signalbox makes and one
// filter more.
func TestSubsetHint(t *testing.T) {
	t.Parallel()
	h := newHookup(t)
	p := startFaulty(t, "epp", false)
	p.Do(script{Endpoint: h.Close[0].Address})
	b := startBare(t, hookupFiles(h.Open, h.Close, []hookupPool{{Name: "close", Pickers: []string{p.Address}}}))
	hint := fmt.Sprintf("%s,%s", h.Close[0].Address, h.Close[1].Address)
	port := freePort(t)
	path := b.bootstrap("default/gw", "by-hand")
	addListener(t, path, b.dir, port, map[string]any{
		"name": "set-metadata",
		"typedConfig": map[string]any{"@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
			"metadata": []any{map[string]any{"metadataNamespace": "envoy.lb.subset_hint", "value": map[string]any{
				"x-gateway-destination-endpoint-subset": hint}}}},
	})
	startEnvoy(t, path)
	h.box = &box{t: t, URL: fmt.Sprintf("http://127.0.0.1:%d", port)}
	waitFor(t, "the Envoy serves", func() bool { return h.send(t.Context(), "close", noBody).Status == 200 })
	before := len(p.Subset())
	for _, r := range h.sendAll(t.Context(), []string{"close"}) {
		r.picked(t, "epp", h.Close[0])
	}
	if got := p.Subset()[before:]; len(got) != len(hookupSizes) || slices.ContainsFunc(got, func(s string) bool { return s != hint }) {
		t.Errorf("the picker was given the hints %q; want %q with each of %d requests", got, hint, len(hookupSizes))
	}
}

// addListener adds the listener that signalbox makes of the folder to a bootstrap, on
// another port, with one filter more before the picker's.
func addListener(t testing.TB, bootstrap, dir string, port int, filter map[string]any) {
	t.Helper()
	out, err := exec.Command(binary(t, "SIGNALBOX"), "translate", dir, "--only", "listeners", "-o", "json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var made struct {
		Envoy map[string]struct{ Listeners []map[string]any }
	}
	if err := json.Unmarshal(out, &made); err != nil || len(made.Envoy["default/gw"].Listeners) != 1 {
		t.Fatalf("no listener of default/gw: %v\n%s", err, out)
	}
	listener := made.Envoy["default/gw"].Listeners[0]
	listener["name"] = "by-hand"
	listener["address"] = map[string]any{"socketAddress": map[string]any{"address": "127.0.0.1", "portValue": port}}
	found := false
	for _, chain := range append(anyList(listener["filterChains"]), listener["defaultFilterChain"]) {
		c, _ := chain.(map[string]any)
		for _, f := range anyList(c["filters"]) {
			hcm, _ := f.(map[string]any)["typedConfig"].(map[string]any)
			filters := anyList(hcm["httpFilters"])
			i := slices.IndexFunc(filters, func(f any) bool { return f.(map[string]any)["name"] == "signalbox.picker" })
			if i >= 0 {
				hcm["httpFilters"], found = slices.Insert(filters, i, any(filter)), true
			}
		}
	}
	if !found {
		t.Fatalf("the listener has no filter signalbox.picker:\n%s", out)
	}
	text, err := os.ReadFile(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	static := all["static_resources"].(map[string]any)
	static["listeners"] = append(anyList(static["listeners"]), any(listener))
	if text, err = yaml.Marshal(all); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bootstrap, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func anyList(x any) []any {
	list, _ := x.([]any)
	return list
}
