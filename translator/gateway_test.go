package translator

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"signalbox.dev/source"
	"signalbox.dev/xds"
)

const testClass = `
kind: GatewayClass
metadata: {name: signalbox, generation: 3}
spec:
  controllerName: signalbox.dev/gateway-controller
`

// decode returns the objects of YAML documents, without defaults and validation.
func decode(t *testing.T, documents ...string) []source.Object {
	t.Helper()
	var out []source.Object
	for _, doc := range strings.Split(strings.Join(documents, "\n---\n"), "\n---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		var head struct {
			Kind source.Kind `json:"kind"`
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		var o source.Object
		for _, k := range source.Kinds {
			if k.Kind == head.Kind {
				o = k.New()
			}
		}
		if o == nil {
			t.Fatalf("no kind %q", head.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		out = append(out, o)
	}
	return out
}

// gatewayOf returns a Gateway of our class with the listeners, one flow mapping a line.
func gatewayOf(listeners ...string) string {
	return "kind: Gateway\nmetadata: {namespace: ns, name: gw, generation: 7}\nspec:\n  gatewayClassName: signalbox\n  listeners:\n  - " + strings.Join(listeners, "\n  - ")
}

// said returns each condition of the status of one kind as "where Type=Status/Reason".
func said(out Output, kind source.Kind) []string {
	var lines []string
	for _, s := range out.Statuses {
		if s.Ref.Kind == kind {
			s.EachCondition(func(where string, c *metav1.Condition) {
				lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s=%s/%s", where, c.Type, c.Status, c.Reason)))
			})
		}
	}
	return lines
}

// messages returns all messages of the statuses of one kind.
func messages(out Output, kind source.Kind) string {
	var all []string
	for _, s := range out.Statuses {
		if s.Ref.Kind == kind {
			s.EachCondition(func(_ string, c *metav1.Condition) { all = append(all, c.Message) })
			all = append(all, s.Warnings...)
		}
	}
	return strings.Join(all, "\n")
}

// listenersOf returns the Envoy listeners' names of an output.
func listenersOf(out Output) []string {
	var names []string
	for _, c := range out.Resources {
		if c.Type == xds.Listener && c.Resource != nil {
			names = append(names, c.Name)
		}
	}
	return names
}

func TestGatewayConditions(t *testing.T) {
	const bound = "0.0.0.0:80"
	http := `{name: http, port: 80, protocol: HTTP}`
	valid := "listener http Accepted=True/Accepted"
	for _, test := range []struct {
		name    string
		objects []string
		opt     Options
		want    []string // conditions that must be among those said
		message string   // must be among the messages
		serves  []string // Envoy listeners
	}{
		{
			name: "accepted", objects: []string{testClass, gatewayOf(http)},
			want: []string{"Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs", "Programmed=False/Pending", valid,
				"listener http Conflicted=False/NoConflicts", "listener http ResolvedRefs=True/ResolvedRefs", "listener http Programmed=False/Pending"},
			serves: []string{bound},
		},
		{name: "class of another controller", objects: []string{strings.Replace(testClass, "signalbox.dev/", "example.com/", 1), gatewayOf(http)}},
		{name: "class does not exist", objects: []string{gatewayOf(http)}},
		{
			name: "class with parameters", objects: []string{testClass + "  parametersRef: {group: example.com, kind: P, name: p}\n", gatewayOf(http)},
			want:    nil,
			message: "The GatewayClass signalbox has a spec.parametersRef",
		},
		{
			name: "parameters", objects: []string{testClass, gatewayOf(http) + "\n  infrastructure: {parametersRef: {group: example.com, kind: P, name: p}}"},
			want: []string{"Accepted=False/InvalidParameters", "Programmed=False/Invalid", valid, "listener http Programmed=False/Invalid"},
		},
		{
			name: "address of an unsupported type", objects: []string{testClass, gatewayOf(http) + "\n  addresses: [{type: Hostname, value: x.org}]"},
			want: []string{"Accepted=False/UnsupportedAddress", "Programmed=False/Invalid"}, message: "spec.addresses[0]: the type Hostname",
		},
		{
			name: "address of another family", objects: []string{testClass, gatewayOf(http) + "\n  addresses: [{value: '::1'}]"},
			want: []string{"Accepted=True/Accepted", "Programmed=False/AddressNotUsable"}, serves: []string{bound},
		},
		{
			name: "address that is not bound", objects: []string{testClass, gatewayOf(http) + "\n  addresses: [{type: IPAddress, value: 10.0.0.1}]"},
			opt: Options{BindAddress: "127.0.0.1"}, want: []string{"Programmed=False/AddressNotUsable"},
			message: "10.0.0.1 is not an address that the listeners are bound to, which is 127.0.0.1", serves: []string{"127.0.0.1:80"},
		},
		{
			name: "address that is none", objects: []string{testClass, gatewayOf(http) + "\n  addresses: [{value: x}]"},
			want: []string{"Programmed=False/AddressNotUsable"}, message: `"x" is not an IP address`, serves: []string{bound},
		},
		{
			name: "address to be chosen", objects: []string{testClass, gatewayOf(http) + "\n  addresses: [{type: IPAddress}]"},
			want: []string{"Programmed=False/AddressNotAssigned"}, serves: []string{bound},
		},
		{
			name: "IPv6 takes IPv4", objects: []string{testClass, gatewayOf(http) + "\n  addresses: [{value: 10.0.0.1}]"},
			opt: Options{BindAddress: "::"}, want: []string{"Programmed=False/Pending"}, serves: []string{":::80"},
		},
		{
			name: "unsupported protocols", objects: []string{testClass, gatewayOf(`{name: tcp, port: 1, protocol: TCP}`)},
			want: []string{"Accepted=False/ListenersNotValid", "Programmed=False/Invalid", "listener tcp Accepted=False/UnsupportedProtocol",
				"listener tcp Conflicted=False/NoConflicts", "listener tcp ResolvedRefs=True/ResolvedRefs", "listener tcp Programmed=False/Invalid"},
		},
		{
			name: "an unsupported protocol beside HTTP", objects: []string{testClass, gatewayOf(http, `{name: tcp, port: 80, protocol: TCP}`)},
			want: []string{"Accepted=True/ListenersNotValid", valid, "listener tcp Accepted=False/UnsupportedProtocol"}, message: "Valid: http. Not valid, see their conditions: tcp.",
			serves: []string{bound},
		},
		{
			name: "client certificates towards backends", objects: []string{testClass, gatewayOf(http) + "\n  tls: {backend: {clientCertificateRef: {name: c}}}"},
			want: []string{"Accepted=True/Accepted", "ResolvedRefs=False/InvalidClientCertificateRef"}, serves: []string{bound},
		},
		{
			name: "kinds that are not supported", objects: []string{testClass, gatewayOf(`{name: http, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}, {kind: HTTPRoute}]}}`)},
			want: []string{"ResolvedRefs=False/ListenersNotResolved", valid, "listener http ResolvedRefs=False/InvalidRouteKinds"}, serves: []string{bound},
		},
		{
			name: "selector that is none", objects: []string{testClass, gatewayOf(`{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: Near}]}}}}`)},
			want: []string{"listener http Accepted=False/UnsupportedValue"}, message: "allowedRoutes.namespaces.selector",
		},
		{
			name: "filters of listeners", objects: []string{testClass, gatewayOf(`{name: http, port: 80, protocol: HTTP, filters: {requests: [{type: ExtensionRef}]}}`)},
			want: []string{"listener http Accepted=False/UnsupportedValue"}, message: "filters.requests[0]",
		},
		{
			name: "hostname that Envoy refuses", objects: []string{testClass, gatewayOf(`{name: http, port: 80, protocol: HTTP, hostname: a.*.org}`)},
			want: []string{"listener http Accepted=False/UnsupportedValue"}, message: `hostname: "a.*.org"`,
		},
		{
			name: "ports are mapped onto one another", objects: []string{testClass, gatewayOf(http, `{name: other, port: 8080, protocol: HTTP}`, `{name: third, port: 81, protocol: HTTP}`)},
			opt:  Options{Ports: map[int32]int32{80: 8080}},
			want: []string{"Accepted=True/ListenersNotValid", "listener http Accepted=False/PortUnavailable", "listener other Accepted=False/PortUnavailable", "listener third Accepted=True/Accepted"}, serves: []string{"0.0.0.0:81"},
		},
		{
			name: "port is mapped", objects: []string{testClass, gatewayOf(http)}, opt: Options{Ports: map[int32]int32{80: 8080}},
			want: []string{valid}, serves: []string{"0.0.0.0:8080"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := Translate(decode(t, test.objects...), test.opt)
			got := said(out, source.KindGateway)
			for _, want := range test.want {
				if !slices.Contains(got, want) {
					t.Errorf("%s is not said; said is:\n%s", want, strings.Join(got, "\n"))
				}
			}
			if m := messages(out, source.KindGateway); !strings.Contains(m, test.message) {
				t.Errorf("no message holds %q:\n%s", test.message, m)
			}
			if diff := cmp.Diff(test.serves, listenersOf(out)); diff != "" {
				t.Errorf("Envoy listeners (-want +got):\n%s", diff)
			}
			if len(test.want) == 0 && test.message == "" && len(got) > 0 {
				t.Errorf("a Gateway that is not ours has a status: %q", got)
			}
		})
	}
}

func TestConflicts(t *testing.T) {
	for _, test := range []struct {
		name      string
		listeners []string
		want      map[string]string // listener → reason of Accepted and of Conflicted
		serves    []string
	}{
		{
			name: "distinct by hostname and port",
			listeners: []string{`{name: a, port: 80, protocol: HTTP}`, `{name: b, port: 80, protocol: HTTP, hostname: x.org}`,
				`{name: c, port: 80, protocol: HTTP, hostname: '*.x.org'}`, `{name: d, port: 81, protocol: HTTP, hostname: x.org}`},
			want:   map[string]string{"a": "Accepted NoConflicts", "b": "Accepted NoConflicts", "c": "Accepted NoConflicts", "d": "Accepted NoConflicts"},
			serves: []string{"0.0.0.0:80", "0.0.0.0:81"},
		},
		{
			name:      "same hostname, in another case",
			listeners: []string{`{name: a, port: 80, protocol: HTTP, hostname: x.org}`, `{name: b, port: 80, protocol: HTTP, hostname: X.org}`, `{name: c, port: 80, protocol: HTTP}`},
			want:      map[string]string{"a": "HostnameConflict HostnameConflict", "b": "HostnameConflict HostnameConflict", "c": "Accepted NoConflicts"},
			serves:    []string{"0.0.0.0:80"},
		},
		{
			name:      "no hostname twice",
			listeners: []string{`{name: a, port: 80, protocol: HTTP}`, `{name: b, port: 80, protocol: HTTP}`},
			want:      map[string]string{"a": "HostnameConflict HostnameConflict", "b": "HostnameConflict HostnameConflict"},
		},
		{
			name: "protocols on one port",
			listeners: []string{`{name: a, port: 80, protocol: HTTP, hostname: a.org}`, `{name: b, port: 80, protocol: HTTPS, hostname: b.org, tls: {certificateRefs: [{name: c}]}}`,
				`{name: c, port: 80, protocol: HTTP, hostname: c.org}`, `{name: d, port: 81, protocol: HTTP}`},
			want: map[string]string{"a": "ProtocolConflict ProtocolConflict", "b": "ProtocolConflict ProtocolConflict",
				"c": "ProtocolConflict ProtocolConflict", "d": "Accepted NoConflicts"},
			serves: []string{"0.0.0.0:81"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := Translate(decode(t, testClass, gatewayOf(test.listeners...)), Options{})
			got := map[string]string{}
			for _, l := range gatewayStatus(t, out).Listeners {
				got[string(l.Name)] = reason(l.Conditions, "Accepted") + " " + reason(l.Conditions, "Conflicted")
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.serves, listenersOf(out)); diff != "" {
				t.Errorf("Envoy listeners (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOverlappingTLSConfig(t *testing.T) {
	tls := `, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}`
	out := Translate(decode(t, testClass, gatewayOf(
		`{name: a, hostname: foo.example.com`+tls+`}`, `{name: b, hostname: foo.example.org`+tls+`}`, `{name: c, hostname: '*.example.com'`+tls+`}`,
		`{name: d, port: 444, hostname: foo.example.com, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}`)), Options{})
	var got []string
	for _, l := range gatewayStatus(t, out).Listeners {
		if r := reason(l.Conditions, "OverlappingTLSConfig"); r != "" {
			got = append(got, string(l.Name)+" "+r)
		}
	}
	if diff := cmp.Diff([]string{"a OverlappingHostnames", "c OverlappingHostnames"}, got); diff != "" {
		t.Errorf("OverlappingTLSConfig (-want +got):\n%s", diff)
	}
}

func TestEveryConditionHasTheGeneration(t *testing.T) {
	out := Translate(decode(t, testClass, gatewayOf(`{name: http, port: 80, protocol: HTTP}`, `{name: tcp, port: 81, protocol: TCP}`)), Options{})
	want := map[source.Kind]int64{source.KindGatewayClass: 3, source.KindGateway: 7}
	for _, s := range out.Statuses {
		if s.Generation != want[s.Ref.Kind] {
			t.Errorf("%s: generation %d, want %d", s.Ref, s.Generation, want[s.Ref.Kind])
		}
		s.EachCondition(func(where string, c *metav1.Condition) {
			if c.ObservedGeneration != want[s.Ref.Kind] {
				t.Errorf("%s %s: %s has observedGeneration %d, want %d", s.Ref, where, c.Type, c.ObservedGeneration, want[s.Ref.Kind])
			}
		})
	}
}

func TestIdleTimeoutAnnotation(t *testing.T) {
	gw := gatewayOf(`{name: http, port: 80, protocol: HTTP}`)
	for value, want := range map[string]string{"90s": "", "-1s": "not a positive duration", "ten": "not a positive duration", "0": "not a positive duration"} {
		annotated := strings.Replace(gw, "generation: 7", `generation: 7, annotations: {signalbox.dev/idle-timeout: "`+value+`"}`, 1)
		out := Translate(decode(t, testClass, annotated), Options{})
		if m := messages(out, source.KindGateway); !strings.Contains(m, want) || want == "" && strings.Contains(m, annotationIdleTimeout) {
			t.Errorf("%q: want a warning %q; said is:\n%s", value, want, m)
		}
		idle := connectionManagers(t, out)["http/80"].GetStreamIdleTimeout().AsDuration()
		if wantIdle := map[bool]string{true: "1m30s", false: "10m0s"}[value == "90s"]; idle.String() != wantIdle {
			t.Errorf("%q: stream_idle_timeout %s, want %s", value, idle, wantIdle)
		}
	}
}

func TestGatewayClassStatus(t *testing.T) {
	out := Translate(decode(t, testClass), Options{})
	if diff := cmp.Diff([]string{"Accepted=True/Accepted"}, said(out, source.KindGatewayClass)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, provision := range []bool{false, true} {
		features := Translate(decode(t, testClass), Options{Provision: provision}).Statuses[0].GatewayClass.SupportedFeatures
		for i := 1; i < len(features); i++ {
			if features[i-1].Name >= features[i].Name {
				t.Errorf("supportedFeatures are not sorted: %s before %s", features[i-1].Name, features[i].Name)
			}
		}
		// Of what a cluster gives a Gateway nothing is claimed where nothing is run for it.
		if slices.Contains(features, gatewayv1.SupportedFeature{Name: "GatewayStaticAddresses"}) != provision {
			t.Errorf("with Provision=%t the features are %v", provision, features)
		}
	}
	out = Translate(decode(t, testClass+"  parametersRef: {group: g, kind: k, name: n}\n"), Options{})
	if diff := cmp.Diff([]string{"Accepted=False/InvalidParameters"}, said(out, source.KindGatewayClass)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
