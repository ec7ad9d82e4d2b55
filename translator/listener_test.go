package translator

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/xds"
)

// reason returns the reason of the condition of a type, or "".
func reason(conditions []metav1.Condition, typ string) string {
	for _, c := range conditions {
		if c.Type == typ {
			return c.Reason
		}
	}
	return ""
}

// gatewayStatus returns the status of the only Gateway.
func gatewayStatus(t *testing.T, out Output) *gatewayv1.GatewayStatus {
	t.Helper()
	for _, s := range out.Statuses {
		if s.Gateway != nil {
			return s.Gateway
		}
	}
	t.Fatal("no Gateway has a status")
	return nil
}

// resource returns a resource of an output, unmarshalled.
func resource[M proto.Message](t *testing.T, out Output, typ xds.Type, name string, into M) M {
	t.Helper()
	for _, c := range out.Resources {
		if c.Type == typ && c.Name == name && c.Resource != nil {
			if err := c.Resource.Any.UnmarshalTo(into); err != nil {
				t.Fatal(err)
			}
			return into
		}
	}
	t.Fatalf("no resource %s %s", typ.Short(), name)
	return into
}

// connectionManagers returns the HCMs of an output, by filter chain.
func connectionManagers(t *testing.T, out Output) map[string]*hcmv3.HttpConnectionManager {
	t.Helper()
	managers := map[string]*hcmv3.HttpConnectionManager{}
	for _, name := range listenersOf(out) {
		for _, chain := range resource(t, out, xds.Listener, name, &listenerv3.Listener{}).FilterChains {
			hcm := &hcmv3.HttpConnectionManager{}
			if err := chain.Filters[0].GetTypedConfig().UnmarshalTo(hcm); err != nil {
				t.Fatal(err)
			}
			managers[chain.Name] = hcm
		}
	}
	return managers
}

const (
	testHTTP  = `{name: http, port: 80, protocol: HTTP}`
	testTLS   = `{name: tls, port: 443, protocol: HTTPS, hostname: a.org, tls: {certificateRefs: [{name: cert}]}}`
	testRoute = `
kind: HTTPRoute
metadata: {namespace: ns, name: r, generation: 1}
spec:
  parentRefs: [{name: gw}]
  rules:
  - backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}]
    matches: [{headers: [{name: x-gateway-model-name, value: m}]}]
`
	testPool = `
kind: InferencePool
metadata: {namespace: ns, name: p, generation: 1}
spec:
  selector: {matchLabels: {app: p}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: epp, port: {number: 9002}}
`
)

func TestListenersOnlyChangeWithTheGateway(t *testing.T) {
	first, second := newPair(t, "a.org"), newPair(t, "a.org")
	tr := New(Options{ExtProc: "127.0.0.1:9004"})
	apply := func(documents ...string) Output { return tr.Apply(changesOf(decode(t, documents...)), nil) }
	all := apply(testClass, gatewayOf(testHTTP, testTLS), first.secret("cert"))
	if got := listenersOf(all); len(got) != 2 {
		t.Fatalf("Envoy listeners %q, want two", got)
	}
	broken := strings.Replace(second.secret("cert"), "tls.key", "tls.other", 1)
	for _, step := range []struct {
		name      string
		documents []string
	}{
		{"a route to a pool that does not exist", []string{testRoute}},
		{"its pool", []string{testPool}},
		{"the pool's picker changes", []string{strings.Replace(testPool, "9002", "9003", 1)}},
		{"the route changes", []string{strings.Replace(testRoute, "value: m", "value: n", 1)}},
		{"the certificate is rotated", []string{second.secret("cert")}},
		{"the certificate breaks", []string{broken}},
	} {
		out := apply(step.documents...)
		for _, c := range out.Resources {
			if c.Type == xds.Listener || c.Type == xds.Cluster && c.Name == ExtProcCluster {
				t.Errorf("%s: %s %s changed", step.name, c.Type.Short(), c.Name)
			}
		}
	}
	gone := source.Ref{Kind: source.KindSecret, Namespace: "ns", Name: "cert"}
	out := tr.Apply([]source.Change{{Ref: gone}}, nil)
	if got := changedListeners(out); len(got) > 0 {
		t.Errorf("the certificate goes: %q changed", got)
	}
	// The control: what is of the Gateway itself does change its listener.
	out = apply(gatewayOf(testHTTP, testTLS, `{name: more, port: 443, protocol: HTTPS, hostname: b.org, tls: {certificateRefs: [{name: cert}]}}`))
	if diff := cmp.Diff([]string{"0.0.0.0:443"}, changedListeners(out)); diff != "" {
		t.Errorf("a listener is added (-want +got):\n%s", diff)
	}
}

func changedListeners(out Output) (names []string) {
	for _, c := range out.Resources {
		if c.Type == xds.Listener {
			names = append(names, c.Name)
		}
	}
	return names
}

func changesOf(objects []source.Object) []source.Change {
	out := make([]source.Change, len(objects))
	for i, o := range objects {
		out[i] = source.Change{Ref: source.RefOf(o), Object: o}
	}
	return out
}

func TestSecrets(t *testing.T) {
	pair := newPair(t, "a.org")
	name := secretName("ns/cert")
	tr := New(Options{})
	tr.Apply(changesOf(decode(t, testClass, gatewayOf(testTLS))), nil)
	out := tr.Apply(changesOf(decode(t, pair.secret("cert"))), nil)
	got := resource(t, out, xds.Secret, name, &tlsv3.Secret{})
	if got.Name != name || !bytes.Equal(got.GetTlsCertificate().GetCertificateChain().GetInlineBytes(), pair.cert) {
		t.Errorf("SDS secret %v", got)
	}
	out = tr.Apply(changesOf(decode(t, strings.Replace(pair.secret("cert"), "kubernetes.io/tls", "Opaque", 1))), nil)
	if len(out.Resources) != 1 || out.Resources[0].Name != name || out.Resources[0].Resource != nil {
		t.Errorf("an unusable Secret is not taken back: %v", out.Resources)
	}
	if m := messages(out, source.KindGateway); !strings.Contains(m, "there is no Secret ns/cert of the type kubernetes.io/tls") {
		t.Errorf("said is:\n%s", m)
	}
}

func TestFilterChains(t *testing.T) {
	tls := `port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}, {name: other}]}`
	out := Translate(decode(t, testClass, gatewayOf(testHTTP, `{name: http-b, port: 80, protocol: HTTP, hostname: b.org}`,
		`{name: w, hostname: '*.a.org', `+tls+`}`, `{name: e, hostname: x.A.org, `+tls+`}`, `{name: all, `+tls+`}`)), Options{HoldLimit: 1 << 20})
	got := map[string][]string{}
	for _, name := range listenersOf(out) {
		l := resource(t, out, xds.Listener, name, &listenerv3.Listener{})
		if l.GetPerConnectionBufferLimitBytes().GetValue() != 1<<20 {
			t.Errorf("%s: per_connection_buffer_limit_bytes %v", name, l.PerConnectionBufferLimitBytes)
		}
		if inspects := len(l.ListenerFilters) == 1; inspects != (name == "0.0.0.0:443") {
			t.Errorf("%s: tls_inspector: %v", name, inspects)
		}
		for _, c := range l.FilterChains {
			got[name] = append(got[name], strings.TrimSpace(c.Name+" "+strings.Join(c.GetFilterChainMatch().GetServerNames(), " ")))
		}
	}
	want := map[string][]string{
		"0.0.0.0:80":  {"http/80"},
		"0.0.0.0:443": {"https/443/all", "https/443/e x.a.org", "https/443/w *.a.org"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("filter chains (-want +got):\n%s", diff)
	}
	if w := connectionManagers(t, out)["http/80"].GetHttp2ProtocolOptions().GetInitialStreamWindowSize().GetValue(); w != 1<<20 {
		t.Errorf("initial_stream_window_size %d", w)
	}
}

func TestHoldLimitsThatEnvoyWouldRefuseAsWindows(t *testing.T) {
	for _, limit := range []uint32{1, 1 << 20, 1<<32 - 1} {
		out := Translate(decode(t, testClass, gatewayOf(testHTTP)), Options{HoldLimit: limit})
		validateAll(t, out)
	}
}

// validateAll fails for every message, also those in an Any, that breaks a rule of its
// proto definition.
func validateAll(t *testing.T, out Output) {
	t.Helper()
	for _, c := range out.Resources {
		if c.Resource == nil {
			continue
		}
		m, err := c.Resource.Any.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		validate(t, c.Name, m)
	}
}

func validate(t *testing.T, where string, m proto.Message) {
	t.Helper()
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			t.Errorf("%s: %v", where, err)
		}
	}
	if a, ok := m.(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			t.Errorf("%s: %v", where, err)
			return
		}
		validate(t, where+" "+string(inner.ProtoReflect().Descriptor().Name()), inner)
		return
	}
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
				validate(t, where, x.Message().Interface())
				return true
			})
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				validate(t, where, v.List().Get(i).Message().Interface())
			}
		case !f.IsMap() && f.Message() != nil:
			validate(t, where, v.Message().Interface())
		}
		return true
	})
}

func TestGatewayMessagesAreValid(t *testing.T) {
	out := Translate(decode(t, testClass, gatewayOf(testHTTP, testTLS), newPair(t, "a.org").secret("cert")), Options{ExtProc: "unix:/run/extproc.sock"})
	if len(out.Resources) < 5 {
		t.Fatalf("only %d resources", len(out.Resources))
	}
	validateAll(t, out)
}

func TestExtProcAddress(t *testing.T) {
	for _, test := range []struct{ in, want, err string }{
		{in: "127.0.0.1:9004", want: "STATIC 127.0.0.1 9004"},
		{in: "[::1]:9004", want: "STATIC ::1 9004"},
		{in: "extproc.ns.svc:9004", want: "STRICT_DNS extproc.ns.svc 9004"},
		{in: "unix:/run/x.sock", want: "STATIC /run/x.sock"},
		{in: "unix:", err: "path of a Unix socket"},
		{in: "unix:/" + strings.Repeat("x", 107), err: "path of a Unix socket"},
		{in: "9004", err: "neither HOST:PORT nor unix:PATH"},
		{in: "127.0.0.1:0", err: "port must be"},
		{in: "127.0.0.1:70000", err: "port must be"},
		{in: "*.x:1", err: "neither an IP address nor a DNS name"},
	} {
		err := CheckExtProc(test.in)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: error %v, want %q", test.in, err, test.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.in, err)
			continue
		}
		out := Translate(decode(t, testClass, gatewayOf(testHTTP)), Options{ExtProc: test.in})
		c := resource(t, out, xds.Cluster, ExtProcCluster, &clusterv3.Cluster{})
		a := c.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address
		got := fmt.Sprintf("%s %s", c.GetType(), a.GetPipe().GetPath())
		if s := a.GetSocketAddress(); s != nil {
			got = fmt.Sprintf("%s %s %d", c.GetType(), s.Address, s.GetPortValue())
		}
		if got != test.want {
			t.Errorf("%q: %s, want %s", test.in, got, test.want)
		}
	}
}
