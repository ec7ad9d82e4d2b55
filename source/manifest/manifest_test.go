package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

// parse fails the test on any problem.
func parse(t testing.TB, text string) Result {
	t.Helper()
	r := Parse("f.yaml", []byte(text))
	if len(r.Problems) > 0 {
		t.Fatalf("problems: %v", r.Problems)
	}
	return r
}

func one[T source.Object](t *testing.T, text string) T {
	t.Helper()
	r := parse(t, text)
	if len(r.Objects) != 1 {
		t.Fatalf("%d objects, want one", len(r.Objects))
	}
	return r.Objects[0].Object.(T)
}

// TestDocuments: any mix of documents, lists, comments and other kinds.
func TestDocuments(t *testing.T) {
	r := parse(t, `# a comment
%YAML 1.1
---
apiVersion: v1
kind: Namespace
metadata: {name: ns}
--- # another
---

apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Secret
  metadata: {name: s, namespace: ns}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: d, namespace: ns}
- apiVersion: gateway.networking.k8s.io/v1
  kind: HTTPRouteList
  items:
  - metadata: {name: r}
    spec: {}
...
--- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}
---
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "svc"}, "spec": {"clusterIP": "None"}}
---
replicas: 3
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: not-ours}
`)
	var got []string
	for _, o := range r.Objects {
		got = append(got, o.Where+" "+o.Ref.String())
	}
	for _, i := range r.Ignored {
		got = append(got, i.String())
	}
	want := []string{
		"f.yaml:4:1 Namespace/ns",
		"f.yaml:13:3 Secret/ns/s",
		"f.yaml:22:5 HTTPRoute/default/r",
		"f.yaml:25:5 ConfigMap/default/c",
		"f.yaml:27:1 Service/default/svc",
		"f.yaml:16:3: Deployment ns/d of apps/v1",
		"f.yaml:29:1: no apiVersion and no kind: not a Kubernetes object",
		"f.yaml:31:1: Gateway not-ours of networking.istio.io/v1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestJSON(t *testing.T) {
	got := one[*corev1.ConfigMap](t, "{\n\t\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\",\n\t\"metadata\": {\"name\": \"c\"}, \"data\": {\"a\": \"\\ud83d\\ude00 \\/\"}}\n")
	if got.Data["a"] != "😀 /" {
		t.Errorf("data is %q", got.Data["a"])
	}
}

func TestNothing(t *testing.T) {
	for _, text := range []string{"", "\n", "---\n", "# nothing\n", "---\n---\n...\n", "\ufeff", "null\n", "---\r\n---\r\n"} {
		if r := Parse("f", []byte(text)); len(r.Objects)+len(r.Problems)+len(r.Ignored) > 0 {
			t.Errorf("%q holds %+v", text, r)
		}
	}
}

// TestMetadata: what only a server sets is dropped, but the time that decides ties.
func TestMetadata(t *testing.T) {
	got := one[*gatewayv1.HTTPRoute](t, `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: r
  creationTimestamp: "2026-01-02T03:04:05Z"
  generation: 7
  uid: x
  resourceVersion: "8"
  labels: {a: b}
  managedFields: [{manager: kubectl, operation: Apply, fieldsType: FieldsV1, fieldsV1: {"f:spec": {}}}]
spec: {}
status: {parents: [{nonsense: true}]}
`)
	if got.Namespace != "default" || got.Generation != 1 || got.UID != "" || got.ResourceVersion != "" || got.ManagedFields != nil ||
		got.CreationTimestamp.UTC().Format(time.RFC3339) != "2026-01-02T03:04:05Z" || got.Labels["a"] != "b" || got.Status.Parents != nil {
		t.Errorf("metadata is %+v, status %+v", got.ObjectMeta, got.Status)
	}
}

func TestVersions(t *testing.T) {
	got := one[*gatewayv1.Gateway](t, `apiVersion: gateway.networking.k8s.io/v1beta1
kind: Gateway
metadata: {name: g}
spec: {gatewayClassName: c, listeners: [{name: a, port: 80, protocol: HTTP}]}
`)
	if got.APIVersion != "gateway.networking.k8s.io/v1" || *got.Spec.Listeners[0].AllowedRoutes.Namespaces.From != gatewayv1.NamespacesFromSame {
		t.Errorf("the gateway is %+v", got)
	}
}

func TestCoreDefaults(t *testing.T) {
	service := one[*corev1.Service](t, "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\nstatus: {loadBalancer: {ingress: [{ip: 1.2.3.4}]}}\n")
	wantPort := corev1.ServicePort{Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(80)}
	if d := cmp.Diff(wantPort, service.Spec.Ports[0]); d != "" || service.Spec.Type != corev1.ServiceTypeClusterIP || service.Status.LoadBalancer.Ingress != nil {
		t.Errorf("Service %+v (-want +got):\n%s", service, d)
	}
	slice := one[*discoveryv1.EndpointSlice](t, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv6\nports: [{port: 80}]\nendpoints: [{addresses: ['::1']}]\n")
	if *slice.Ports[0].Protocol != corev1.ProtocolTCP || *slice.Ports[0].Name != "" || slice.Endpoints[0].Conditions.Ready != nil {
		t.Errorf("EndpointSlice %+v", slice)
	}
	namespace := one[*corev1.Namespace](t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns, namespace: ignored, labels: {a: b}}\n")
	if d := cmp.Diff(map[string]string{"a": "b", "kubernetes.io/metadata.name": "ns"}, namespace.Labels); d != "" || namespace.Namespace != "" {
		t.Errorf("Namespace in %q (-want +got):\n%s", namespace.Namespace, d)
	}
	secret := one[*corev1.Secret](t, "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: YQ==, b: Yg==}\nstringData: {b: plain, c: text}\n")
	if d := cmp.Diff(map[string][]byte{"a": []byte("a"), "b": []byte("plain"), "c": []byte("text")}, secret.Data); d != "" || secret.Type != corev1.SecretTypeOpaque || secret.StringData != nil {
		t.Errorf("Secret of type %s (-want +got):\n%s", secret.Type, d)
	}
	pod := one[*corev1.Pod](t, "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, ports: [{containerPort: 8000}]}]}\nstatus: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}\n")
	if pod.Status.PodIP != "10.0.0.1" || len(pod.Status.Conditions) != 1 || pod.Spec.Containers[0].Ports[0].Protocol != corev1.ProtocolTCP {
		t.Errorf("Pod %+v", pod)
	}
}

// TestCRDs: every version that a CRD serves compiles, by several goroutines at once.
func TestCRDs(t *testing.T) {
	var group sync.WaitGroup
	for _, info := range source.Kinds {
		if crd := crds[info.Kind]; crd != nil {
			for _, version := range []string{"v1", "v1beta1", info.GVK.Version} {
				group.Go(func() { crd.version(version) })
			}
			if crd.version(info.GVK.Version) == nil {
				t.Errorf("the CRD of %s does not serve %s", info.Kind, info.GVK.Version)
			}
		}
	}
	group.Wait()
	if len(crds) != 6 {
		t.Errorf("%d CRDs, want one for each kind that is not core", len(crds))
	}
}

// TestCRDsAreOfTheModules: crds/ is what scripts/crds copies.
func TestCRDsAreOfTheModules(t *testing.T) {
	for name, pattern := range map[string]string{
		"sigs.k8s.io/gateway-api":                     "config/crd/standard/gateway.networking.k8s.io_%s.yaml",
		"sigs.k8s.io/gateway-api-inference-extension": "config/crd/bases/inference.networking.k8s.io_%s.yaml",
	} {
		for _, info := range source.Kinds {
			if crds[info.Kind] == nil || strings.Contains(pattern, "inference") != (info.Kind == source.KindInferencePool) {
				continue
			}
			want, err := os.ReadFile(filepath.Join(module(t, name), fmt.Sprintf(pattern, info.Resource)))
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := crdFiles.ReadFile(crds[info.Kind].file); !bytes.Equal(got, want) {
				t.Errorf("the CRD of %s is not the module's: run make crds", info.Kind)
			}
		}
	}
}

// module returns the directory of a Go module.
func module(t *testing.T, name string) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", name).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.TrimSpace(string(dir))
}

// TestExamples: Gateway API's own examples are good, and each of those that it has
// for what must be refused is.
func TestExamples(t *testing.T) {
	gateway := module(t, "sigs.k8s.io/gateway-api")
	for pattern, good := range map[string]bool{
		"examples/standard/*.yaml":                true,
		"examples/standard/*/*.yaml":              true,
		"hack/invalid-examples/standard/*/*.yaml": false,
	} {
		files, err := filepath.Glob(filepath.Join(gateway, pattern))
		if err != nil || len(files) < 15 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r := Parse(strings.TrimPrefix(file, gateway+"/"), text)
			if good && len(r.Problems) > 0 {
				t.Errorf("%v", r.Problems)
			}
			for _, o := range r.Objects {
				if !good && o.Object != nil {
					t.Errorf("%s: admitted, must be refused", o.Where)
				}
			}
		}
	}
}

func routes(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r%d}
spec:
  parentRefs: [{name: gateway}]
  hostnames: [h%d.example.com]
  rules:
  - matches: [{path: {value: /v1}, headers: [{name: X-Gateway-Model-Name, value: m%d}]}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}]
---
`, i, i, i)
	}
	return b.Bytes()
}

// TestCost: a thousand routes must load in a second or two. Time depends on the
// machine, so what is held is the work: allocations for a route, and that they grow
// with the number of routes and no faster.
func TestCost(t *testing.T) {
	allocs := func(n int) float64 {
		text := routes(n)
		return testing.AllocsPerRun(3, func() { Parse("f.yaml", text) })
	}
	one, hundred := allocs(1), allocs(100)
	if one > 5000 || hundred > 110*one {
		t.Errorf("%.0f allocations for a route, %.0f for a hundred", one, hundred)
	}
}

func BenchmarkRoute(b *testing.B) {
	text := routes(1)
	parse(b, string(text)) // the CRD is compiled once
	for b.Loop() {
		Parse("f.yaml", text)
	}
}

// BenchmarkEndpointSlice is a slice as large as Kubernetes makes them.
func BenchmarkEndpointSlice(b *testing.B) {
	text := "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv4\nports: [{port: 8000}]\nendpoints:\n"
	for i := range 100 {
		text += fmt.Sprintf("- {addresses: [10.0.0.%d], conditions: {ready: true}, targetRef: {kind: Pod, name: p%d}}\n", i, i)
	}
	for b.Loop() {
		parse(b, text)
	}
}

// BenchmarkCRDs is what the first object of each kind costs together.
func BenchmarkCRDs(b *testing.B) {
	for b.Loop() {
		for _, c := range crds {
			(&crd{file: c.file, versions: map[string]*version{}}).version("v1")
		}
	}
}

// toJSON writes objects as documents.
func toJSON(t testing.TB, objects []Located) []byte {
	var b bytes.Buffer
	for _, o := range objects {
		if o.Object == nil {
			continue
		}
		text, err := json.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("---\n")
		b.Write(text)
		b.WriteString("\n")
	}
	return b.Bytes()
}
