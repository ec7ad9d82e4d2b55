package translator

import (
	"fmt"
	"strings"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/google/go-cmp/cmp"

	"signalbox.dev/source"
	"signalbox.dev/xds"
)

// assignment returns the endpoints of a backend as "address:port", in order, and its
// warnings.
func assignment(t *testing.T, w *tables, backend key) (endpoints, warnings []string) {
	t.Helper()
	row, ok := w.clusterEndpoints(nil, inGroup("g/w", string(backend)))
	if !ok {
		t.Fatalf("%s has no assignment", backend)
	}
	m, err := row.Resource.Any.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	cla := m.(*endpointv3.ClusterLoadAssignment)
	if err := cla.ValidateAll(); err != nil {
		t.Error(err)
	}
	if cla.ClusterName != string(backend) || row.Resource.Name != string(backend) || row.Resource.Type != xds.Endpoint {
		t.Errorf("assignment of %s in %s %s", cla.ClusterName, row.Resource.Type.Short(), row.Resource.Name)
	}
	for _, locality := range cla.Endpoints {
		for _, e := range locality.LbEndpoints {
			a := e.GetEndpoint().Address.GetSocketAddress()
			endpoints = append(endpoints, fmt.Sprintf("%s:%d", a.Address, a.GetPortValue()))
		}
	}
	return endpoints, row.Warnings
}

// slice writes an EndpointSlice that the pool p selects.
func slice(name, rest string) string {
	return fmt.Sprintf("kind: EndpointSlice\nmetadata: {name: %s, labels: {app: p}}\naddressType: IPv4\n%s", name, rest)
}

// podOf writes a Pod that the pool p selects; rest goes into its metadata.
func podOf(name, rest, status string) string {
	return fmt.Sprintf("kind: Pod\nmetadata: {name: %s, labels: {app: p, more: labels}%s}\nstatus: %s", name, rest, status)
}

func TestPoolEndpoints(t *testing.T) {
	both := func(address string) []string { return []string{address + ":8000", address + ":8001"} }
	for _, c := range []struct {
		name     string
		objects  []string
		want     []string
		warnings []string
	}{
		{name: "none"},
		{"a ready Pod", []string{podOf("a", "", "{podIP: 10.0.0.1, phase: Running, conditions: [{type: Ready, status: 'True'}]}")}, both("10.0.0.1"), nil},
		{"a Pod written by hand", []string{podOf("a", "", "{podIP: 10.0.0.1}")}, both("10.0.0.1"), nil},
		{"IPv6", []string{podOf("a", "", "{podIP: '2001:db8::1'}")}, both("2001:db8::1"), nil},
		{"not ready", []string{podOf("a", "", "{podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False'}]}")}, nil, nil},
		{"ready unknown", []string{podOf("a", "", "{podIP: 10.0.0.1, conditions: [{type: Ready, status: Unknown}]}")}, nil, nil},
		{"being deleted", []string{podOf("a", ", deletionTimestamp: '2026-01-01T00:00:00Z'", "{podIP: 10.0.0.1}")}, nil, nil},
		{"no address", []string{podOf("a", "", "{phase: Pending}")}, nil, nil},
		{"failed", []string{podOf("a", "", "{podIP: 10.0.0.1, phase: Failed}")}, nil, nil},
		{"done", []string{podOf("a", "", "{podIP: 10.0.0.1, phase: Succeeded}")}, nil, nil},
		{"another label", []string{strings.Replace(podOf("a", "", "{podIP: 10.0.0.1}"), "app: p", "app: q", 1)}, nil, nil},
		{"another namespace", []string{podOf("a", ", namespace: other", "{podIP: 10.0.0.1}")}, nil, nil},
		{"active ports", []string{podOf("a", ", annotations: {inference.networking.k8s.io/active-ports: '8001'}", "{podIP: 10.0.0.1}")}, []string{"10.0.0.1:8001"}, nil},
		{"active ports, the newer name first", []string{podOf("a", ", annotations: {llm-d.ai/active-ports: ' 8000 ', inference.networking.k8s.io/active-ports: '8001'}", "{podIP: 10.0.0.1}")}, []string{"10.0.0.1:8000"}, nil},
		{"no active port", []string{podOf("a", ", annotations: {inference.networking.k8s.io/active-ports: ''}", "{podIP: 10.0.0.1}")}, nil, nil},
		{"active ports that are none", []string{podOf("a", ", annotations: {inference.networking.k8s.io/active-ports: '8001,9000,x'}", "{podIP: 10.0.0.1}")}, []string{"10.0.0.1:8001"}, []string{`Pod default/a: annotation inference.networking.k8s.io/active-ports: "9000"`, `"x"`}},

		{"a slice without ports", []string{slice("s", "endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}]")}, append(both("10.0.0.1"), both("10.0.0.2")...), nil},
		{"a slice with a targetPort", []string{slice("s", "ports: [{port: 8001}]\nendpoints: [{addresses: [10.0.0.1]}]")}, []string{"10.0.0.1:8001"}, nil},
		{"one address, servers on ports of their own", []string{
			slice("s", "ports: [{port: 7002}]\nendpoints: [{addresses: [127.0.0.1]}]"),
			slice("r", "ports: [{port: 7001}]\nendpoints: [{addresses: [127.0.0.1]}]"),
		}, []string{"127.0.0.1:7001", "127.0.0.1:7002"}, nil},
		{"a slice with more ports", []string{slice("s", "ports: [{name: a, port: 8000}, {name: b, port: 9090}, {name: c, port: 53, protocol: UDP}]\nendpoints: [{addresses: [10.0.0.1]}]")}, []string{"10.0.0.1:8000"}, nil},
		{"a slice with other ports", []string{slice("s", "ports: [{name: a, port: 9000}, {name: b, port: 9090}]\nendpoints: [{addresses: [10.0.0.1]}]")}, nil, []string{"EndpointSlice default/s: none of its ports"}},
		{"ready, not ready, terminating", []string{slice("s", "endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}, {addresses: [10.0.0.2], conditions: {ready: false}}, {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}, {addresses: []}]")}, both("10.0.0.1"), nil},
		{"of a Service by hand too", []string{strings.Replace(slice("s", "endpoints: [{addresses: [10.0.0.1]}]"), "app: p", "app: p, kubernetes.io/service-name: p", 1)}, both("10.0.0.1"), nil},
		{"of a Service's controller", []string{strings.Replace(slice("s", "endpoints: [{addresses: [10.0.0.1]}]"), "app: p", "app: p, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io", 1)}, nil, nil},
		{"of somebody else's controller", []string{strings.Replace(slice("s", "endpoints: [{addresses: [10.0.0.1]}]"), "app: p", "app: p, endpointslice.kubernetes.io/managed-by: cluster-admins", 1)}, both("10.0.0.1"), nil},
		{"the same twice", []string{podOf("a", "", "{podIP: 10.0.0.1}"), slice("s", "endpoints: [{addresses: [10.0.0.1]}, {addresses: ['::ffff:10.0.0.1']}]")}, both("10.0.0.1"), nil},
		{"no addresses of endpoints", []string{slice("s", "ports: [{port: 8000}]\nendpoints: [{addresses: [model.example]}, {addresses: [0.0.0.0]}, {addresses: [224.0.0.1]}]")}, nil, []string{"224.0.0.1", "0.0.0.0 is not", `"model.example" is not an IP`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world(t, Options{}, append([]string{poolOf("", "{}")}, c.objects...)...)
			got, warnings := assignment(t, w, "pool/default/p/balanced")
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("endpoints (- want, + got):\n%s", diff)
			}
			seen := map[string]bool{}
			for _, warning := range warnings {
				for _, part := range c.warnings {
					seen[part] = seen[part] || strings.Contains(warning, part)
				}
			}
			if len(warnings) != len(c.warnings) || len(seen) < len(c.warnings) {
				t.Errorf("warnings %q, want %q", warnings, c.warnings)
			}
			for part, found := range seen {
				if !found {
					t.Errorf("warnings %q, want %q among them", warnings, part)
				}
			}
		})
	}
}

func TestServiceEndpoints(t *testing.T) {
	const service = `
kind: Service
metadata: {name: s}
spec: {ports: [{name: a, port: 80}, {name: b, port: 81}]}`
	of := func(name, rest string) string {
		return fmt.Sprintf("kind: EndpointSlice\nmetadata: {name: %s, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\n%s", name, rest)
	}
	for _, c := range []struct {
		name     string
		slices   []string
		want     []string
		warnings []string
	}{
		{name: "no slice"},
		{"the port of the name", []string{of("x", "ports: [{name: b, port: 1}, {name: a, port: 2}]\nendpoints: [{addresses: [10.0.0.1]}]")}, []string{"10.0.0.1:2"}, nil},
		{"several slices", []string{
			of("x", "ports: [{name: a, port: 2}]\nendpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}]"),
			of("y", "ports: [{name: a, port: 3}]\nendpoints: [{addresses: [10.0.0.1]}]"),
		}, []string{"10.0.0.1:2", "10.0.0.1:3", "10.0.0.2:2"}, nil},
		{"ready before terminating", []string{of("x", "ports: [{name: a, port: 2}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}]")}, []string{"10.0.0.1:2"}, nil},
		{"only terminating", []string{of("x", "ports: [{name: a, port: 2}]\nendpoints: [{addresses: [10.0.0.1], conditions: {ready: false}}, {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.0.0.3], conditions: {ready: false, serving: false, terminating: true}}]")}, []string{"10.0.0.2:2"}, nil},
		{"no port of the name", []string{of("x", "ports: [{port: 2}]\nendpoints: [{addresses: [10.0.0.1]}]")}, nil, []string{`EndpointSlice default/x: no port is named "a"`}},
		{"no Pods: neither endpoints nor ports", []string{of("x", "ports: []\nendpoints: []"), of("y", "")}, nil, nil},
		{"another Service's", []string{strings.Replace(of("x", "ports: [{name: a, port: 2}]\nendpoints: [{addresses: [10.0.0.1]}]"), "service-name: s", "service-name: t", 1)}, nil, nil},
		{"another namespace's", []string{strings.Replace(of("x", "ports: [{name: a, port: 2}]\nendpoints: [{addresses: [10.0.0.1]}]"), "name: x", "name: x, namespace: other", 1)}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world(t, Options{}, append([]string{service}, c.slices...)...)
			got, warnings := assignment(t, w, "service/default/s/80")
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("endpoints (- want, + got):\n%s", diff)
			}
			expectWarnings(t, warnings, c.warnings...)
		})
	}
}

func TestGuardAddresses(t *testing.T) {
	objects := []string{
		poolOf("{name: epp, port: {number: 9002}}", "{}"),
		slice("s", "endpoints: [{addresses: [127.0.0.1]}, {addresses: [169.254.169.254]}, {addresses: ['::1']}, {addresses: ['fe80::1']}, {addresses: ['::ffff:127.0.0.2']}, {addresses: [10.0.0.1]}]"),
		"kind: Service\nmetadata: {name: epp}\nspec: {ports: [{port: 9002}]}",
		"kind: EndpointSlice\nmetadata: {name: epp, labels: {kubernetes.io/service-name: epp}}\naddressType: IPv4\nports: [{port: 9002}]\nendpoints: [{addresses: [127.0.0.1]}]",
	}
	for _, guard := range []bool{false, true} {
		t.Run(fmt.Sprint(guard), func(t *testing.T) {
			w := world(t, Options{GuardAddresses: guard}, objects...)
			got, warnings := assignment(t, w, thePool)
			row, _ := w.poolRows.Get(nil, "default/p")
			if !guard {
				if len(got) != 12 || len(warnings) != 0 || len(row.Picker.Endpoints) != 1 {
					t.Errorf("endpoints %v, warnings %q, picker's %v; want all", got, warnings, row.Picker.Endpoints)
				}
				return
			}
			if diff := cmp.Diff([]string{"10.0.0.1:8000", "10.0.0.1:8001"}, got); diff != "" {
				t.Errorf("endpoints (- want, + got):\n%s", diff)
			}
			expectWarnings(t, warnings, "127.0.0.1 is refused", "169.254.169.254 is refused", "::1 is refused", "::ffff:127.0.0.2 is refused", "fe80::1 is refused")
			if len(row.Picker.Endpoints) != 0 {
				t.Errorf("picker at %v, on the gateway's own machine", row.Picker.Endpoints)
			}
			expectWarnings(t, row.Warnings, "EndpointSlice default/epp: 127.0.0.1 is refused")

			attach(w, "r", "infra/one", true, thePool)
			status, _ := w.poolStatus.Get(nil, "default/p")
			if len(status.Warnings) != 6 {
				t.Errorf("the pool's status warns of %q, want the 5 endpoints and the picker's", status.Warnings)
			}
		})
	}
}

// What a change of an object that names endpoints costs: one assignment for each group
// that uses the backend, and nothing else.
func TestEndpointsAmountOfWork(t *testing.T) {
	objects := []string{
		poolOf("{name: epp, port: {number: 9002}}", "{}"), eppService,
		strings.NewReplacer("name: p", "name: q", "app: p", "app: p, model: q").Replace(poolOf("", "{}")),
		podOf("a", "", "{podIP: 10.0.0.1}"), slice("s", "endpoints: [{addresses: [10.0.0.2]}]"),
		strings.Replace(podOf("other", "", "{podIP: 10.0.1.1}"), "app: p", "app: other", 1),
	}
	for _, c := range []struct {
		name   string
		object string // comes, or replaces what has its name
		remove string
		runs   int
		names  string // of the assignments that change
	}{
		{name: "Pod becomes unready", object: podOf("a", "", "{podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False'}]}"), runs: 1, names: "pool/default/p"},
		{name: "Pod comes", object: podOf("b", "", "{podIP: 10.0.0.9}"), runs: 1, names: "pool/default/p"},
		{name: "Pod goes", object: podOf("a", "", "{}"), remove: "a", runs: 1, names: "pool/default/p"},
		{name: "Pod of both pools comes", object: strings.Replace(podOf("b", "", "{podIP: 10.0.0.9}"), "more: labels", "model: q", 1), runs: 2, names: "pool/default/p pool/default/q/balanced"},
		{name: "Pod joins the other pool too", object: strings.Replace(podOf("a", "", "{podIP: 10.0.0.1}"), "more: labels", "model: q", 1), runs: 2, names: "pool/default/q/balanced"},
		{name: "slice changes", object: slice("s", "endpoints: [{addresses: [10.0.0.3]}]"), runs: 1, names: "pool/default/p"},
		{name: "slice comes", object: slice("t", "endpoints: [{addresses: [10.0.0.3]}]"), runs: 1, names: "pool/default/p"},
		{name: "Pod of nobody", object: strings.Replace(podOf("other", "", "{podIP: 10.0.1.2}"), "app: p", "app: other", 1)},
		{name: "Pod changes what does not matter", object: podOf("a", ", annotations: {a: b}", "{podIP: 10.0.0.1}"), runs: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world(t, Options{}, objects...)
			attach(w, "r", "g/w", true, thePool)
			attach(w, "r", "g/w", true, "pool/default/q/balanced")
			change := source.Change{}
			for _, o := range objectsOf(t, c.object) {
				change = source.Change{Ref: source.RefOf(o), Object: o}
			}
			if c.remove != "" {
				change.Object = nil
			}
			w.set(change)
			before := w.g.Runs
			var out Output
			w.g.Update(func() { out = w.collect() })
			if runs := w.g.Runs - before; runs != c.runs {
				t.Errorf("%d functions ran, want %d", runs, c.runs)
			}
			var names []string
			for _, r := range out.Resources {
				names = append(names, r.Name)
				if r.Type != xds.Endpoint || r.Group != "g/w" {
					t.Errorf("changed: %+v", r)
				}
			}
			if got := strings.Join(names, " "); got != c.names || len(out.Statuses) != 0 {
				t.Errorf("changed %q and the statuses %+v, want %q and none", got, out.Statuses, c.names)
			}
		})
	}
}
