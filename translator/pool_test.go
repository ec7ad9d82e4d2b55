package translator

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"signalbox.dev/extproc/contract"
)

// none is the condition that is not there.
var none = metav1.Condition{}

func expectCondition(t *testing.T, c metav1.Condition, typ, status, reason, message string) {
	t.Helper()
	if c.Type != typ || string(c.Status) != status || c.Reason != reason || !strings.Contains(c.Message, message) || c.Message == "" {
		t.Errorf("condition %s=%s %s: %q; want %s=%s %s with %q in the message", c.Type, c.Status, c.Reason, c.Message, typ, status, reason, message)
	}
}

func expectWarnings(t *testing.T, got []string, parts ...string) {
	t.Helper()
	if len(got) != len(parts) {
		t.Errorf("%d warnings, want %d: %q", len(got), len(parts), got)
		return
	}
	for i, part := range parts {
		if !strings.Contains(got[i], part) {
			t.Errorf("warning %q, want %q in it", got[i], part)
		}
	}
}

// poolOf writes a pool; ref is its endpointPickerRef, annotations a YAML flow map.
func poolOf(ref, annotations string) string {
	if ref != "" {
		ref = ", endpointPickerRef: " + ref
	}
	return fmt.Sprintf("kind: InferencePool\nmetadata: {name: p, generation: 3, annotations: %s}\nspec: {selector: {matchLabels: {app: p}}, targetPorts: [{number: 8000}, {number: 8001}]%s}", annotations, ref)
}

const eppService = `
kind: Service
metadata: {name: epp}
spec:
  ports:
  - {name: grpc, port: 9002, targetPort: 19002, appProtocol: http2}
  - {name: plain, port: 9003, appProtocol: kubernetes.io/h2c}
  - {name: metrics, port: 9090, protocol: UDP}
---
kind: EndpointSlice
metadata: {name: epp-1, labels: {kubernetes.io/service-name: epp}}
addressType: IPv4
ports: [{name: metrics, port: 9090}, {name: grpc, port: 19002}, {name: plain, port: 19003}]
endpoints:
- {addresses: [10.0.0.2], conditions: {ready: true}}
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.3], conditions: {ready: false}}
---
kind: EndpointSlice
metadata: {name: epp-2, labels: {kubernetes.io/service-name: epp}}
addressType: IPv6
ports: [{name: grpc, port: 19002}]
endpoints: [{addresses: ["2001:db8::1"], conditions: {ready: true}}]
---
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: example.com}
---
kind: Service
metadata: {name: empty}
spec: {ports: [{port: 9002}]}`

func TestPicker(t *testing.T) {
	usual := contract.Picker{
		Pool: "default/p", TLS: contract.TLSInsecure, Response: contract.ResponseFull,
		Endpoints: []string{"10.0.0.1:19002", "10.0.0.2:19002", "[2001:db8::1]:19002"},
	}
	with := func(change func(p *contract.Picker)) *contract.Picker {
		p := usual
		p.Endpoints = slices.Clone(usual.Endpoints)
		change(&p)
		return &p
	}
	const ref = "{name: epp, port: {number: 9002}}"
	for _, c := range []struct {
		name, ref, annotations string
		want                   *contract.Picker
		broken                 string // a part of the message
		warnings               []string
	}{
		{name: "no picker"},
		{name: "usual", ref: ref, want: &usual},
		{name: "kind and group written out", ref: "{group: '', kind: Service, name: epp, port: {number: 9002}}", want: &usual},
		{name: "FailOpen", ref: "{name: epp, port: {number: 9002}, failureMode: FailOpen}", want: with(func(p *contract.Picker) { p.FailOpen = true })},
		{name: "FailClose", ref: "{name: epp, port: {number: 9002}, failureMode: FailClose}", want: &usual},
		{name: "h2c", ref: "{name: epp, port: {number: 9003}}", want: with(func(p *contract.Picker) {
			p.TLS, p.Endpoints = contract.TLSPlaintext, []string{"10.0.0.1:19003", "10.0.0.2:19003"}
		}), warnings: []string{`epp-2: no port is named "plain"`}},
		{name: "no endpoints", ref: "{name: empty, port: {number: 9002}}", want: with(func(p *contract.Picker) { p.Endpoints = nil })},

		{name: "plaintext by annotation", ref: ref, annotations: "signalbox.dev/picker-tls: plaintext", want: with(func(p *contract.Picker) { p.TLS = contract.TLSPlaintext })},
		{name: "TLS by annotation", ref: "{name: epp, port: {number: 9003}}", annotations: "signalbox.dev/picker-tls: insecure", want: with(func(p *contract.Picker) {
			p.Endpoints = []string{"10.0.0.1:19003", "10.0.0.2:19003"}
		}), warnings: []string{`epp-2: no port is named "plain"`}},
		{name: "bad annotation", ref: ref, annotations: "signalbox.dev/picker-tls: verify", want: &usual, warnings: []string{"signalbox.dev/picker-tls"}},
		{name: "Headers", ref: ref, annotations: "signalbox.dev/picker-response: Headers", want: with(func(p *contract.Picker) { p.Response = contract.ResponseHeaders })},
		{name: "None", ref: ref, annotations: "signalbox.dev/picker-response: None", want: with(func(p *contract.Picker) { p.Response = contract.ResponseNone })},
		{name: "Full", ref: ref, annotations: "signalbox.dev/picker-response: Full", want: &usual},
		{name: "bad response", ref: ref, annotations: "signalbox.dev/picker-response: none", want: &usual, warnings: []string{`"none" is not Full, Headers or None`}},
		{name: "timeout", ref: ref, annotations: "signalbox.dev/pick-timeout: 1m30s", want: with(func(p *contract.Picker) { p.PickTimeout = 90 * time.Second })},
		{name: "no bound", ref: ref, annotations: "signalbox.dev/pick-timeout: 0s", want: &usual},
		{name: "bad timeout", ref: ref, annotations: "signalbox.dev/pick-timeout: '30'", want: &usual, warnings: []string{`"30" is not a duration`}},
		{name: "negative timeout", ref: ref, annotations: "signalbox.dev/pick-timeout: -1s", want: &usual, warnings: []string{`"-1s" is not a duration`}},

		{name: "another kind", ref: "{kind: Deployment, name: epp, port: {number: 9002}}", broken: "kind Deployment"},
		{name: "another group", ref: "{group: example.com, kind: Service, name: epp, port: {number: 9002}}", broken: `"example.com"`},
		{name: "no port", ref: "{name: epp}", broken: "needs a port"},
		{name: "missing Service", ref: "{name: nobody, port: {number: 9002}}", broken: "default/nobody does not exist"},
		{name: "ExternalName", ref: "{name: outside, port: {number: 9002}}", broken: "ExternalName"},
		{name: "targetPort for port", ref: "{name: epp, port: {number: 19002}}", broken: "no TCP port 19002"},
		{name: "UDP port", ref: "{name: epp, port: {number: 9090}}", broken: "no TCP port 9090"},
	} {
		t.Run(c.name, func(t *testing.T) {
			row, _ := world(t, Options{}, eppService, poolOf(c.ref, "{"+c.annotations+"}")).poolRows.Get(nil, "default/p")
			if diff := cmp.Diff(c.want, row.Picker); diff != "" {
				t.Errorf("picker (- want, + got):\n%s", diff)
			}
			if row.Broken != (c.broken != "") {
				t.Errorf("broken: %v", row.Broken)
			}
			if c.broken != "" {
				expectCondition(t, row.ResolvedRefs, "ResolvedRefs", "False", "InvalidExtensionRef", c.broken)
			} else {
				expectCondition(t, row.ResolvedRefs, "ResolvedRefs", "True", "ResolvedRefs", "")
			}
			expectWarnings(t, row.Warnings, c.warnings...)
			if c.want != nil {
				expectParsedBack(t, *c.want)
			}
		})
	}
}

// expectParsedBack makes sure that the process beside Envoy reads what is meant.
func expectParsedBack(t *testing.T, p contract.Picker) {
	t.Helper()
	metadata := map[string]string{}
	for _, kv := range p.Metadata() {
		metadata[kv[0]] = kv[1]
	}
	got, err := contract.ParsePicker(func(k string) string { return metadata[k] })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Errorf("parsed back (- meant, + read):\n%s", diff)
	}
}

// attach makes a route row that reaches the pool or Service from the Gateway: the tables
// below the routes do not care what made it.
func attach(w *tables, route string, gateway key, accepted bool, backend key) {
	row := routeRow{}
	if accepted {
		row.Uses = []use{{Group: "g/w", Backend: backend}}
	}
	if _, object, port, _ := parseBackend(backend); port == 0 {
		row.Pools = []poolParent{{Pool: object, Gateway: gateway, Accepted: accepted}}
	}
	old, _ := w.routeRows.Get(nil, key(route))
	row.Uses, row.Pools = append(old.Uses, row.Uses...), append(old.Pools, row.Pools...)
	w.routeRows.Set(key(route), row)
	w.g.Update(nil)
}

func TestPoolStatus(t *testing.T) {
	for _, c := range []struct {
		name    string
		ref     string
		attach  func(w *tables)
		parents []string // namespace/name: Accepted's and ResolvedRefs' reasons
	}{
		{"no route", "", func(*tables) {}, nil},
		{"one route", "{name: epp, port: {number: 9002}}", func(w *tables) {
			attach(w, "r", "infra/one", true, thePool)
		}, []string{"infra/one: True Accepted, True ResolvedRefs"}},
		{"two Gateways, two routes each", "", func(w *tables) {
			attach(w, "r", "infra/two", true, thePool)
			attach(w, "s", "infra/two", true, thePool)
			attach(w, "r", "default/one", true, thePool)
			attach(w, "s", "default/one", false, thePool)
		}, []string{"default/one: True Accepted, True ResolvedRefs", "infra/two: True Accepted, True ResolvedRefs"}},
		{"route refused", "", func(w *tables) {
			attach(w, "r", "infra/one", false, thePool)
		}, []string{"infra/one: False HTTPRouteNotAccepted, True ResolvedRefs"}},
		{"picker missing", "{name: nobody, port: {number: 9002}}", func(w *tables) {
			attach(w, "r", "infra/one", true, thePool)
		}, []string{"infra/one: True Accepted, False InvalidExtensionRef"}},
		{"another pool's route", "", func(w *tables) {
			attach(w, "r", "infra/one", true, "pool/default/other")
		}, nil},
		{"route goes", "", func(w *tables) {
			attach(w, "r", "infra/one", true, thePool)
			w.routeRows.Delete("r")
			w.g.Update(nil)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world(t, Options{}, eppService, poolOf(c.ref, "{}"))
			c.attach(w)
			status, ok := w.poolStatus.Get(nil, "default/p")
			if !ok || status.Pool == nil || status.Generation != 3 || status.Ref.String() != "InferencePool/default/p" {
				t.Fatalf("status %+v", status)
			}
			var got []string
			for _, p := range status.Pool.Parents {
				if string(p.ControllerName) != ControllerName || p.ParentRef.Kind != "Gateway" || *p.ParentRef.Group != "gateway.networking.k8s.io" || len(p.Conditions) != 2 {
					t.Errorf("parent %+v", p)
				}
				line := fmt.Sprintf("%s/%s:", p.ParentRef.Namespace, p.ParentRef.Name)
				for _, condition := range p.Conditions {
					line += fmt.Sprintf(" %s %s,", condition.Status, condition.Reason)
					if condition.ObservedGeneration != 3 || condition.Message == "" {
						t.Errorf("condition %+v", condition)
					}
				}
				got = append(got, strings.TrimSuffix(line, ","))
			}
			if diff := cmp.Diff(c.parents, got); diff != "" {
				t.Errorf("parents (- want, + got):\n%s", diff)
			}
		})
	}
}

// thePool is the backend that the tests attach routes to.
const thePool = key("pool/default/p")

func TestPoolStatusHasRoom(t *testing.T) {
	w := world(t, Options{}, poolOf("", "{}"))
	for i := range 40 {
		attach(w, "r", key(fmt.Sprintf("infra/gw%02d", i)), true, thePool)
	}
	status, _ := w.poolStatus.Get(nil, "default/p")
	if n := len(status.Pool.Parents); n != 32 {
		t.Errorf("%d parents; the API allows 32", n)
	}
	expectWarnings(t, status.Warnings, "40 Gateways")
}
