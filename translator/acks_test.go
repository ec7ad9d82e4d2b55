package translator

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"signalbox.dev/source"
	"signalbox.dev/xds"
)

// versionsOf returns the versions of the Envoy listeners of an output.
func versionsOf(out Output) map[string]string {
	versions := map[string]string{}
	for _, c := range out.Resources {
		if c.Type == xds.Listener && c.Resource != nil {
			versions[c.Name] = c.Resource.Version
		}
	}
	return versions
}

func TestProgrammedFollowsEnvoy(t *testing.T) {
	const port80, port81 = "0.0.0.0:80", "0.0.0.0:81"
	tr := New(Options{})
	current := versionsOf(tr.Apply(changesOf(decode(t, testClass, gatewayOf(testHTTP, `{name: b, port: 81, protocol: HTTP}`))), nil))
	only := func(names ...string) map[string]string {
		out := map[string]string{}
		for _, n := range names {
			out[n] = current[n]
		}
		return out
	}
	ack := func(node, err string, versions map[string]string) xds.Ack {
		return xds.Ack{Group: "ns/gw", Node: node, Type: xds.Listener, Versions: versions, Error: err}
	}
	pending := []string{"http Pending", "b Pending", "Gateway Pending"}
	for _, step := range []struct {
		name    string
		acks    []xds.Ack
		want    []string
		message string
	}{
		{name: "of another type", acks: []xds.Ack{{Group: "ns/gw", Node: "1", Type: xds.Route, Versions: only(port80, port81)}}, want: pending},
		{name: "of another group", acks: []xds.Ack{{Group: "ns/other", Node: "1", Type: xds.Listener, Versions: only(port80, port81)}}, want: pending},
		{name: "of an old version", acks: []xds.Ack{ack("1", "", map[string]string{port80: "old", port81: "old"})}, want: pending},
		{name: "of one listener", acks: []xds.Ack{ack("1", "", only(port80))}, want: []string{"http Programmed", "b Pending", "Gateway Pending"}},
		{name: "of both", acks: []xds.Ack{ack("1", "", only(port81))}, want: []string{"http Programmed", "b Programmed", "Gateway Programmed"}},
		{
			name: "another node refuses one", acks: []xds.Ack{ack("2", "Error adding/updating listener(s) 0.0.0.0:81: cannot bind '0.0.0.0:81':\tAddress already in use\n", only(port80, port81))},
			want: []string{"http Programmed", "b Invalid", "Gateway Invalid"}, message: "Envoy 2 refused 0.0.0.0:81: cannot bind '0.0.0.0:81': Address already in use",
		},
		{name: "that node is gone", acks: []xds.Ack{{Group: "ns/gw", Node: "2", Gone: true}}, want: []string{"http Programmed", "b Programmed", "Gateway Programmed"}},
		{name: "refused without a name", acks: []xds.Ack{ack("1", "no", only(port80, port81))}, want: []string{"http Invalid", "b Invalid", "Gateway Invalid"}, message: "Envoy 1 refused 0.0.0.0:80: no"},
		{name: "nobody is left", acks: []xds.Ack{{Group: "ns/gw", Node: "1", Gone: true}}, want: pending},
		{name: "back, in one batch", acks: []xds.Ack{ack("1", "no", only(port80)), {Group: "ns/gw", Node: "1", Gone: true}, ack("1", "", only(port80, port81))}, want: []string{"http Programmed", "b Programmed", "Gateway Programmed"}},
	} {
		out := tr.Apply(nil, step.acks)
		st, ok := tr.t.gatewayStatus.Get(nil, "ns/gw")
		if !ok {
			t.Fatalf("%s: no status", step.name)
		}
		var got []string
		for _, l := range st.Gateway.Listeners {
			got = append(got, string(l.Name)+" "+reason(l.Conditions, "Programmed"))
		}
		got = append(got, "Gateway "+reason(st.Gateway.Conditions, "Programmed"))
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if m := messages(Output{Statuses: []Status{st}}, source.KindGateway); !strings.Contains(m, step.message) {
			t.Errorf("%s: no message holds %q:\n%s", step.name, step.message, m)
		}
		if len(out.Resources) > 0 {
			t.Errorf("%s: an answer changed resources: %v", step.name, out.Resources)
		}
	}
	out := tr.Apply(changesOf(decode(t, gatewayOf(testHTTP, `{name: b, port: 81, protocol: HTTP}`, `{name: c, port: 81, protocol: HTTP, hostname: c.org}`))), nil)
	if got := changedListeners(out); len(got) > 0 {
		t.Fatalf("an HTTP listener more on a port changed %q", got)
	}
	out = tr.Apply(changesOf(decode(t, strings.Replace(gatewayOf(testHTTP), "generation: 7", `generation: 8, annotations: {signalbox.dev/idle-timeout: 1m}`, 1))), nil)
	if got := reason(gatewayStatus(t, out).Conditions, "Programmed"); got != "Pending" {
		t.Errorf("after a change of the listener: %s, want Pending until it is taken", got)
	}
}

func TestRefusedListenersByName(t *testing.T) {
	versions := map[string]string{"0.0.0.0:80": "1", "0.0.0.0:8080": "1"}
	for _, test := range []struct {
		words string
		want  map[string]string
	}{
		{"", nil},
		{"Error adding/updating listener(s) 0.0.0.0:8080: bad\n", map[string]string{"0.0.0.0:8080": "bad"}},
		{"Error adding/updating listener(s) 0.0.0.0:8080: bad\n0.0.0.0:80: worse: x\n", map[string]string{"0.0.0.0:8080": "bad", "0.0.0.0:80": "worse: x"}},
		{"duplicate listener 0.0.0.0:80 found", map[string]string{"0.0.0.0:80": "duplicate listener 0.0.0.0:80 found", "0.0.0.0:8080": "duplicate listener 0.0.0.0:80 found"}},
	} {
		if diff := cmp.Diff(test.want, refusedListeners(xds.Ack{Versions: versions, Error: test.words})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", test.words, diff)
		}
	}
}

func TestEnvoysWordsAreBounded(t *testing.T) {
	got := quoteEnvoy(strings.Repeat("ä ", 4000) + "\xff\n")
	if len(got) > maxWords+len("…") || !strings.HasSuffix(got, "…") {
		t.Errorf("%d bytes, ends in %q", len(got), got[len(got)-8:])
	}
	if got := quoteEnvoy("a\n\tb\xff"); got != "a b�" {
		t.Errorf("%q", got)
	}
}
