package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// head is an HTTPRoute up to its spec's fields, 4 lines.
const head = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
`

// TestProblems has every shape of message that Parse can give; "…" in what is
// wanted stands for any text.
func TestProblems(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string // "line:column object: message"
	}{
		{"not YAML: flow never closed", "a: 1\nb: {\nc: 2\n", []string{"2:1 : not YAML: did not find expected ',' or '}': correct it here or just above"}},
		{"not YAML: indentation", "a:\n  b: 1\n   c: 2\n", []string{"3:4 : not YAML: mapping values are not allowed in this context: …"}},
		{"not YAML: tab", "a:\n\tb: 1\n", []string{"2:2 : not YAML: found character that cannot start any token: …"}},
		{"not YAML: behind a long flow mapping", "a: {\n b: 1,\n c: 2\n}\nd: [\n", []string{"5:1 : not YAML: …"}},
		{"not YAML: second of three documents", "a: 1\n---\nb: [\n---\nc: 1\n", []string{"3:1 : not YAML: …"}},
		{"not YAML: anchor", "a: *nothing\n", []string{"1:1 : not YAML: unknown anchor 'nothing' referenced: …"}},
		{"not YAML: a mapping as a key", "a: 1\n? {b: c}\n: d\n", []string{"1:1 : not YAML: …"}},
		{"not YAML: merge conflict", head + "<<<<<<< HEAD\n  hostnames: [a]\n=======\n  hostnames: [b]\n>>>>>>> x\n", []string{"5:1 : not YAML: could not find expected ':': …"}},
		{"not an object", "- a\n- b\n", []string{"1:1 : not an object: a document is a mapping with apiVersion, kind and metadata"}},
		{"text in front", "hello\n", []string{"1:1 : not an object: …"}},

		{"no kind", "apiVersion: v1\nmetadata: {name: a}\n", []string{"1:1 : kind: name the kind of the object, for example HTTPRoute"}},
		{"no apiVersion", "kind: HTTPRoute\nmetadata: {name: a}\n", []string{`1:1 : apiVersion: HTTPRoute of "" is not read: write apiVersion: gateway.networking.k8s.io/v1`}},
		{"odd apiVersion", "apiVersion: a/b/c\nkind: HTTPRoute\n", []string{"1:1 : apiVersion: unexpected GroupVersion string: a/b/c: write GROUP/VERSION"}},
		{"old version", "kind: HTTPRoute\napiVersion: gateway.networking.k8s.io/v1alpha2\n", []string{`2:1 : apiVersion: HTTPRoute of "gateway.networking.k8s.io/v1alpha2" is not read: write apiVersion: gateway.networking.k8s.io/v1`}},
		{"old group of InferencePool", "kind: InferencePool\napiVersion: inference.networking.x-k8s.io/v1alpha2\n", []string{`2:1 : apiVersion: InferencePool of "inference.networking.x-k8s.io/v1alpha2" is not read: write apiVersion: inference.networking.k8s.io/v1`}},

		{"no metadata", "apiVersion: v1\nkind: Service\n", []string{"1:1 : metadata: an object needs metadata with a name"}},
		{"no name", "apiVersion: v1\nkind: Service\nmetadata: {labels: {a: b}}\n", []string{"3:1 : metadata.name: give the object a name"}},
		{"name", "apiVersion: v1\nkind: Secret\nmetadata:\n  name: My_Secret\n", []string{`4:3 Secret/default/My_Secret: metadata.name: Invalid value: "My_Secret": a lowercase RFC 1123 subdomain must consist of …`}},
		{"name of a Service", "apiVersion: v1\nkind: Service\nmetadata: {name: a.b}\nspec: {ports: [{port: 1}]}\n", []string{`3:12 Service/default/a.b: metadata.name: Invalid value: "a.b": …`}},
		{"namespace", "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: B}\n", []string{`3:21 Secret/B/a: metadata.namespace: Invalid value: "B": …`}},
		{"label", "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\n  labels:\n    app.example.com/x: ä\n", []string{`5:3 Secret/default/a: metadata.labels: Invalid value: "ä": …`}},
		{"metadata field", "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\n  anotations: {}\n", []string{"5:3 Secret/default/a: metadata.anotations: unknown field: check its spelling, its place and its indentation, or remove it"}},
		{"annotation type", head[:strings.Index(head, "name")] + "name: r, annotations: {example.com/a.b: 1}}\n", []string{"3:35 HTTPRoute/default/r: metadata.annotations[example.com/a.b]: must be a string (quote it), is a number"}},

		{"unknown field", head + "  hostname: a\n", []string{"5:3 HTTPRoute/default/r: spec.hostname: unknown field: …"}},
		{"unknown field, deep", head + "  rules:\n  - matches:\n    - path:\n        typ: Exact\n", []string{"8:9 HTTPRoute/default/r: spec.rules[0].matches[0].path.typ: unknown field: …"}},
		{"duplicate field", head + "  hostnames: [a]\n  hostnames: [b]\n", []string{"6:3 HTTPRoute/default/r: spec.hostnames: the field stands twice, first at f.yaml:5:3: keep one"}},
		{"wrong type", head + "  hostnames: a\n", []string{`5:3 HTTPRoute/default/r: spec.hostnames: Invalid value: "string": must be of type array: "string"`}},
		{"pattern", head + "  hostnames:\n  - a\n  - -b\n", []string{`7:5 HTTPRoute/default/r: spec.hostnames[1]: Invalid value: "-b": should match '…`}},
		{"enum", head + "  rules: [{matches: [{path: {type: Prefix, value: /}}]}]\n", []string{`5:30 HTTPRoute/default/r: spec.rules[0].matches[0].path.type: Unsupported value: "Prefix": supported values: "Exact", "PathPrefix", "RegularExpression"`}},
		{"required", "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  listeners: [{name: a, port: 80, protocol: HTTP}]\n", []string{"4:1 Gateway/default/g: spec.gatewayClassName: Required value"}},
		{"range", "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: p}\nspec:\n  selector: {matchLabels: {a: b}}\n  targetPorts:\n  - number: 0\n", []string{"7:5 InferencePool/default/p: spec.targetPorts[0].number: Invalid value: 0: should be greater than or equal to 1"}},
		{"CEL", head + "  rules: [{matches: [{path: {type: PathPrefix, value: a}}]}]\n", []string{`5:23 HTTPRoute/default/r: spec.rules[0].matches[0].path: Invalid value: value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']`}},
		{"any of", "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  gatewayClassName: c\n  listeners: [{name: a, port: 80, protocol: HTTP}]\n  addresses:\n  - {value: 1.2.3}\n", []string{
			"8:5 Gateway/default/g: spec.addresses[0]: must validate one and only one schema (oneOf). Found none valid",
			`8:6 Gateway/default/g: spec.addresses[0].value: Invalid value: "1.2.3": must be of type ipv4: "1.2.3"`,
			"8:6 Gateway/default/g: spec.addresses[0].value: must validate at least one schema (anyOf)"}},
		{"list map", "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  gatewayClassName: c\n  listeners:\n  - {name: a, port: 80, protocol: HTTP}\n  - {name: a, port: 81, protocol: HTTP}\n", []string{`8:5 Gateway/default/g: spec.listeners[1]: Duplicate value: {"name":"a"}`}},
		{"older version is validated", strings.Replace(head, "/v1", "/v1beta1", 1) + "  hostnames: [-a]\n", []string{"5:15 HTTPRoute/default/r: spec.hostnames[0]: Invalid value: …"}},
		{"YAML 1.1 bool where a string is due", head + "  rules: [{matches: [{headers: [{name: a, value: yes}]}]}]\n", []string{`5:43 HTTPRoute/default/r: spec.rules[0].matches[0].headers[0].value: Invalid value: "boolean": must be of type string: "boolean"`}},

		{"Service", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  type: Cluster\n  ports:\n  - {port: 0, name: a}\n  - {port: 80, protocol: HTTP, name: a}\n  - {port: 80, targetPort: bad_name}\n", []string{
			`5:3 Service/default/s: spec.type: Unsupported value: "Cluster": …`,
			"7:6 Service/default/s: spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
			`8:16 Service/default/s: spec.ports[1].protocol: Unsupported value: "HTTP": supported values: …`,
			`8:32 Service/default/s: spec.ports[1].name: Duplicate value: "a"`,
			"9:5 Service/default/s: spec.ports[2].name: Required value: a port of a Service with several needs a name",
			`9:16 Service/default/s: spec.ports[2].targetPort: Invalid value: "bad_name": …`}},
		{"Service: port twice", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 1, name: a}, {port: 1, name: b}]}\n", []string{"4:37 Service/default/s: spec.ports[1].port: Duplicate value: 1"}},
		{"Service: no ports", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {}\n", []string{"4:1 Service/default/s: spec.ports: Required value: …"}},
		{"Service: external name", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: ExternalName}\n", []string{"4:1 Service/default/s: spec.externalName: Required value: …"}},
		{"wrong types", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: \"80\"\n    appProtocol: {}\n  - 7\n  selector: [a]\n", []string{
			"6:5 Service/default/s: spec.ports[0].port: must be a 32-bit integer, is a string",
			"7:5 Service/default/s: spec.ports[0].appProtocol: must be a string (quote it), is an object",
			"8:5 Service/default/s: spec.ports[1]: must be an object, is a number",
			"9:3 Service/default/s: spec.selector: must be an object, is a list"}},
		{"EndpointSlice", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv4\nports: [{port: 70000, protocol: X}, {name: Ä}]\nendpoints:\n- addresses: [1.2.3]\n- addresses: ['::1']\n- addresses: []\n", []string{
			"5:10 EndpointSlice/default/e: ports[0].port: Invalid value: 70000: …",
			`5:23 EndpointSlice/default/e: ports[0].protocol: Unsupported value: "X": …`,
			`5:38 EndpointSlice/default/e: ports[1].name: Invalid value: "Ä": …`,
			`7:15 EndpointSlice/default/e: endpoints[0].addresses[0]: Invalid value: "1.2.3": must be a valid IP address, …`,
			`8:15 EndpointSlice/default/e: endpoints[1].addresses[0]: Invalid value: "::1": must be of the slice's addressType, IPv4`,
			"9:3 EndpointSlice/default/e: endpoints[2].addresses: Required value: an endpoint needs an address"}},
		{"EndpointSlice: no type", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\nendpoints: []\n", []string{"1:1 EndpointSlice/default/e: addressType: Required value: one of [IPv4 IPv6 FQDN]"}},
		{"EndpointSlice: name", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: FQDN\nendpoints: [{addresses: [local]}]\n", []string{`5:26 EndpointSlice/default/e: endpoints[0].addresses[0]: Invalid value: "local": …`}},
		{"Pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, ports: [{containerPort: 0}]}]}\nstatus: {podIP: x, podIPs: [{ip: z}], conditions: [{type: Ready, status: 'True', lastTransitionTime: never}]}\n", []string{
			"5:82 Pod/default/p: status.conditions[0].lastTransitionTime: must be a Time, is a string"}},
		{"Pod values", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, ports: [{containerPort: 0}]}]}\nstatus: {podIP: x, podIPs: [{ip: z}]}\n", []string{
			"4:40 Pod/default/p: spec.containers[0].ports[0].containerPort: Invalid value: 0: …",
			`5:10 Pod/default/p: status.podIP: Invalid value: "x": …`,
			`5:30 Pod/default/p: status.podIPs[0].ip: Invalid value: "z": …`}},
		{"Secret", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/tls\ndata:\n  tls.crt: \"not base64!\"\nstringData: {tls.key: 98765}\n", []string{
			"6:3 Secret/default/s: data[tls.crt]: is not base64: encode it (base64 -w0), or write it under stringData as it is",
			"7:14 Secret/default/s: stringData[tls.key]: must be a string (quote it), is a number"}},
		{"Secret: keys", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/tls\ndata: {a b: YQ==, tls.crt: YQ==}\n", []string{
			"5:1 Secret/default/s: data[tls.key]: Required value: a Secret of type kubernetes.io/tls needs it",
			`5:8 Secret/default/s: data[a b]: Invalid value: "a b": …`}},
		{"ConfigMap", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b, ..: c}\nbinaryData: {a: YQ==, d/e: YQ==}\n", []string{
			`4:14 ConfigMap/default/c: data[..]: Invalid value: "..": …`,
			"5:14 ConfigMap/default/c: binaryData[a]: Forbidden: the key stands under data too: keep one",
			`5:23 ConfigMap/default/c: binaryData[d/e]: Invalid value: "d/e": …`}},
		{"ConfigMap: too large", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: " + strings.Repeat("x", 1<<20+1) + "}\n", []string{"4:1 ConfigMap/default/c: data: Too long: may not be more than 1048576 bytes"}},
		{"List", "apiVersion: v1\nkind: List\nitems:\n- 7\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: A}\n", []string{"4:3 : items[0]: must be an object", `7:14 Secret/default/A: metadata.name: Invalid value: "A": …`}},
		{"through an alias and a merge", "x: &x {hostnames: [-a]}\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  <<: *x\n", []string{
			"1:1 HTTPRoute/default/r: x: unknown field: …",
			"1:20 HTTPRoute/default/r: spec.hostnames[0]: Invalid value: …"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, p := range Parse("f.yaml", []byte(test.text)).Problems {
				got = append(got, strings.TrimPrefix(p.Where, "f.yaml:")+" "+p.Object+": "+p.Message)
			}
			if d := cmp.Diff(test.want, elide(got, test.want)); d != "" {
				t.Errorf("problems (-want +got):\n%s", d)
			}
			for _, problem := range got {
				if strings.Contains(problem, "not base64!") || strings.Contains(problem, "98765") {
					t.Errorf("a secret's value is in the message: %s", problem)
				}
			}
		})
	}
}

// elide puts "…" into got where want has it, if everything around it fits.
func elide(got, want []string) []string {
	out := append([]string(nil), got...)
	for i := range min(len(got), len(want)) {
		before, after, ok := strings.Cut(want[i], "…")
		if ok && len(got[i]) > len(before)+len(after) && strings.HasPrefix(got[i], before) && strings.HasSuffix(got[i], after) {
			out[i] = want[i]
		}
	}
	return out
}
