package translator

import (
	"strings"
	"testing"

	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"signalbox.dev/extproc/contract"
	"signalbox.dev/source"
)

// world returns the tables of the objects in a YAML stream, which are taken as they are:
// some could not exist in a cluster, and the translator must stand them all the same.
func world(t *testing.T, opt Options, documents ...string) *tables {
	t.Helper()
	w := newTables(opt)
	for _, o := range objectsOf(t, documents...) {
		w.set(source.Change{Ref: source.RefOf(o), Object: o})
	}
	w.g.Update(nil)
	return w
}

func objectsOf(t *testing.T, documents ...string) []source.Object {
	t.Helper()
	var out []source.Object
	for _, document := range strings.Split(strings.Join(documents, "\n---\n"), "\n---\n") {
		var kind struct{ Kind source.Kind }
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		var o source.Object
		for _, k := range source.Kinds {
			if k.Kind == kind.Kind {
				o = k.New()
			}
		}
		if o == nil {
			t.Fatalf("kind %q in\n%s", kind.Kind, document)
		}
		if err := yaml.UnmarshalStrict([]byte(document), o); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if o.GetNamespace() == "" && kind.Kind != source.KindNamespace {
			o.SetNamespace("default")
		}
		out = append(out, o)
	}
	return out
}

// backendWorld is what the references of TestResolveBackend lead to, or not.
const backendWorld = `
kind: Service
metadata: {name: web}
spec:
  ports:
  - {name: http, port: 80}
  - {name: h2c, port: 81, appProtocol: kubernetes.io/h2c}
  - {name: named, port: 82, appProtocol: http}
  - {name: wss, port: 83, appProtocol: kubernetes.io/wss}
  - {name: udp, port: 84, protocol: UDP}
  - {name: dns-udp, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
---
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}
---
kind: Service
metadata: {name: granted, namespace: other}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {name: private, namespace: other}
spec: {ports: [{port: 80}]}
---
kind: InferencePool
metadata: {name: llama}
spec: {selector: {matchLabels: {app: llama}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: epp, port: {number: 9002}}}
---
kind: InferencePool
metadata: {name: plain}
spec: {selector: {matchLabels: {app: plain}}, targetPorts: [{number: 8000}]}
---
kind: InferencePool
metadata: {name: broken}
spec: {selector: {matchLabels: {app: broken}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: nobody, port: {number: 9002}}}
---
kind: InferencePool
metadata: {name: far, namespace: other}
spec: {selector: {matchLabels: {app: far}}, targetPorts: [{number: 8000}]}
---
kind: Service
metadata: {name: epp}
spec: {ports: [{port: 9002}]}
---
kind: ReferenceGrant
metadata: {name: one, namespace: other}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]
  to: [{group: "", kind: Service, name: granted}, {group: inference.networking.k8s.io, kind: InferencePool}]
`

func TestResolveBackend(t *testing.T) {
	w := world(t, Options{}, backendWorld)
	for _, c := range []struct {
		ref     string
		cluster string // of a valid reference
		reason  string // of an invalid one
		message string // a part of the condition's or the warning
	}{
		{ref: "{name: web, port: 80}", cluster: "service/default/web/80"},
		{ref: "{group: '', kind: Service, name: web, namespace: default, port: 81}", cluster: "service/default/web/81"},
		{ref: "{name: web, port: 82}", cluster: "service/default/web/82"},
		{ref: "{name: web, port: 53}", cluster: "service/default/web/53"},
		{ref: "{name: web}", reason: "BackendNotFound", message: "needs a port"},
		{ref: "{name: web, port: 8080}", reason: "BackendNotFound", message: "has no port 8080"},
		{ref: "{name: web, port: 83}", reason: "UnsupportedProtocol", message: `"kubernetes.io/wss"`},
		{ref: "{name: web, port: 84}", reason: "UnsupportedProtocol", message: "not a TCP port"},
		{ref: "{name: gone, port: 80}", reason: "BackendNotFound", message: "default/gone: the Service does not exist"},
		{ref: "{name: outside, port: 80}", reason: "InvalidKind", message: "ExternalName"},
		{ref: "{kind: Deployment, name: web, port: 80}", reason: "InvalidKind", message: "Deployment"},
		{ref: "{group: apps, kind: Service, name: web, port: 80}", reason: "InvalidKind", message: `"apps"`},

		{ref: "{name: granted, namespace: other, port: 80}", cluster: "service/other/granted/80"},
		{ref: "{name: private, namespace: other, port: 80}", reason: "RefNotPermitted", message: "namespace other"},
		{ref: "{name: neither, namespace: other, port: 80}", reason: "RefNotPermitted", message: "namespace other"},
		{ref: "{name: web, namespace: third, port: 80}", reason: "RefNotPermitted", message: "namespace third"},

		{ref: "{group: inference.networking.k8s.io, kind: InferencePool, name: llama}", cluster: "pool/default/llama"},
		{ref: "{group: inference.networking.k8s.io, kind: InferencePool, name: llama, port: 8888}", cluster: "pool/default/llama"},
		{ref: "{group: inference.networking.k8s.io, kind: InferencePool, name: broken}", cluster: "pool/default/broken"},
		{ref: "{group: inference.networking.k8s.io, kind: InferencePool, name: plain}", cluster: "pool/default/plain/balanced"},
		{ref: "{group: inference.networking.k8s.io, kind: InferencePool, name: far, namespace: other}", cluster: "pool/other/far/balanced"},
		{ref: "{kind: InferencePool, name: llama}", cluster: "pool/default/llama", message: "group: inference.networking.k8s.io"},
		{ref: "{group: core, kind: InferencePool, name: llama}", cluster: "pool/default/llama", message: "group: inference.networking.k8s.io"},
		{ref: "{kind: InferencePool, name: far, namespace: other}", cluster: "pool/other/far/balanced", message: "group: inference.networking.k8s.io"},
		{ref: "{kind: InferencePool, name: gone}", reason: "BackendNotFound", message: "InferencePool does not exist"},
		{ref: "{kind: InferencePool, name: gone, namespace: third}", reason: "RefNotPermitted", message: "namespace third"},
		{ref: "{group: inference.networking.x-k8s.io, kind: InferencePool, name: llama}", reason: "InvalidKind", message: "the group inference.networking.k8s.io"},
	} {
		t.Run(c.ref, func(t *testing.T) {
			var ref gatewayv1.BackendObjectReference
			if err := yaml.UnmarshalStrict([]byte(c.ref), &ref); err != nil {
				t.Fatal(err)
			}
			b := w.resolveBackend(nil, source.KindHTTPRoute, "default", ref)
			if b.Cluster != c.cluster || string(b.Key) != c.cluster {
				t.Errorf("cluster %q, key %q, want %q", b.Cluster, b.Key, c.cluster)
			}
			switch {
			case c.reason == "" && b.Failure != nil:
				t.Errorf("refused: %v", b.Failure)
			case c.reason == "" && (b.Warning == "" != (c.message == "") || !strings.Contains(b.Warning, c.message)):
				t.Errorf("warning %q, want %q in it", b.Warning, c.message)
			case c.reason != "":
				expectCondition(t, ptr.Deref(b.Failure, none), "ResolvedRefs", "False", c.reason, c.message)
			}
		})
	}
}

// A reference that is not permitted must not tell whether its target exists.
func TestNotPermittedHidesExistence(t *testing.T) {
	w := world(t, Options{}, backendWorld)
	message := func(name string) string {
		b := w.resolveBackend(nil, source.KindHTTPRoute, "default", gatewayv1.BackendObjectReference{
			Name: gatewayv1.ObjectName(name), Namespace: ptr.To(gatewayv1.Namespace("other")), Port: ptr.To[gatewayv1.PortNumber](80)})
		return strings.ReplaceAll(b.Failure.Message, name, "NAME")
	}
	if there, absent := message("private"), message("neither"); there != absent {
		t.Errorf("a Service that exists: %q; one that does not: %q", there, absent)
	}
}

// A grant is for one kind of object.
func TestGrantIsForItsKind(t *testing.T) {
	w := world(t, Options{}, backendWorld)
	ref := gatewayv1.BackendObjectReference{Name: "granted", Namespace: ptr.To(gatewayv1.Namespace("other")), Port: ptr.To[gatewayv1.PortNumber](80)}
	if b := w.resolveBackend(nil, source.KindHTTPRoute, "default", ref); b.Failure != nil {
		t.Errorf("an HTTPRoute is refused: %v", b.Failure)
	}
	b := w.resolveBackend(nil, source.KindGateway, "default", ref)
	expectCondition(t, ptr.Deref(b.Failure, none), "ResolvedRefs", "False", "RefNotPermitted", "allows Gateways of the namespace default")
}

func TestPoolBackendCarriesItsPicker(t *testing.T) {
	w := world(t, Options{}, backendWorld)
	resolve := func(name string) backend {
		return w.resolveBackend(nil, source.KindHTTPRoute, "default", gatewayv1.BackendObjectReference{
			Kind: ptr.To[gatewayv1.Kind]("InferencePool"), Name: gatewayv1.ObjectName(name)})
	}
	if b := resolve("llama"); b.Pool != "default/llama" || b.Picker == nil || b.Picker.TLS != contract.TLSInsecure {
		t.Errorf("pool with a picker: %+v", b)
	}
	for _, name := range []string{"plain", "broken"} {
		if b := resolve(name); b.Pool != key("default/"+name) || b.Picker != nil {
			t.Errorf("pool %s without a picker to ask: %+v", name, b)
		}
	}
}

func TestGranted(t *testing.T) {
	grant := func(from, to string) string {
		return "kind: ReferenceGrant\nmetadata: {name: g, namespace: target}\nspec: {from: [" + from + "], to: [" + to + "]}"
	}
	const route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}"
	for _, c := range []struct {
		name, grant string
		want        bool
	}{
		{"all of the kind", grant(route, "{group: '', kind: Secret}"), true},
		{"this one", grant(route, "{group: '', kind: Secret, name: s}"), true},
		{"an empty name is none", grant(route, "{group: '', kind: Secret, name: ''}"), true},
		{"second of both", grant("{group: g, kind: k, namespace: n}, "+route, "{group: g, kind: k}, {group: '', kind: Secret}"), true},
		{"another name", grant(route, "{group: '', kind: Secret, name: other}"), false},
		{"another kind", grant(route, "{group: '', kind: ConfigMap}"), false},
		{"another group", grant(route, "{group: g, kind: Secret}"), false},
		{"from another namespace", grant("{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: n}", "{group: '', kind: Secret}"), false},
		{"from another kind", grant("{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}", "{group: '', kind: Secret}"), false},
		{"from another group", grant("{group: '', kind: HTTPRoute, namespace: default}", "{group: '', kind: Secret}"), false},
		{"halves of two grants", grant(route, "{group: '', kind: ConfigMap}") + "\n---\n" +
			strings.Replace(grant("{group: g, kind: k, namespace: n}", "{group: '', kind: Secret}"), "name: g", "name: h", 1), false},
		{"in another namespace", strings.Replace(grant(route, "{group: '', kind: Secret}"), "namespace: target", "namespace: third", 1), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world(t, Options{}, c.grant)
			if got := w.granted(nil, source.KindHTTPRoute, "default", "", "Secret", "target", "s"); got != c.want {
				t.Errorf("granted: %v, want %v", got, c.want)
			}
			if !w.granted(nil, source.KindHTTPRoute, "target", "", "Secret", "target", "s") {
				t.Error("not granted within the namespace")
			}
		})
	}
}
