package demo

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"signalbox.dev/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// decode reads YAML documents into the typed objects that a source delivers.
func decode(t testing.TB, text string) (objects []source.Object) {
	t.Helper()
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
			t.Fatal(err)
		}
		for _, k := range source.Kinds {
			if string(k.Kind) == meta.Kind {
				o := k.New()
				if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
					t.Fatal(err)
				}
				if k.Namespaced && o.GetNamespace() == "" {
					o.SetNamespace("default")
				}
				objects = append(objects, o)
			}
		}
	}
	return objects
}

func readFiles(t testing.TB, pattern string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no file matches %s: %v", pattern, err)
	}
	out := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out[f] = string(b)
	}
	return out
}

// The HTTPRoutes beside a guide are the guide's own text, to the byte.
func TestGuidesAreVerbatim(t *testing.T) {
	routes := regexp.MustCompile(`(?m)^---\s*\n`)
	for guide, folders := range map[string][]string{
		"../testdata/guides/multiple-models":           {"../testdata/guides/multiple-models"},
		"../testdata/guides/multiple-models-and-loras": {"../testdata/guides/multiple-models-and-loras", "../testdata/guides-steps/multiple-models-and-loras"},
	} {
		text := readFiles(t, guide+"/guide.md")[guide+"/guide.md"]
		for _, folder := range folders {
			for file, yaml := range readFiles(t, folder+"/*.yaml") {
				if filepath.Base(file) == "0-llm-route.yaml" {
					continue // of the guide before this one
				}
				for _, doc := range routes.Split(yaml, -1) {
					if !strings.Contains(text, doc) {
						t.Errorf("%s: not the guide's text:\n%s", file, doc)
					}
				}
			}
		}
		all := strings.Join(slices.Collect(maps.Values(readFiles(t, guide+"/*.yaml"))), "\n")
		for _, m := range regexp.MustCompile(`(?m)^  name: (\S+)`).FindAllStringSubmatch(text, -1) {
			if m[1] != "bbr" && !strings.Contains(all, "  name: "+m[1]+"\n") && !strings.Contains(all, "  name: "+m[1]+" #") {
				t.Errorf("%s: the guide's route %s is not there", guide, m[1])
			}
		}
	}
}

// What the guides presuppose is declared: each pool has pods, and a picker that knows them.
func TestFindInGuides(t *testing.T) {
	var objects []source.Object
	for _, text := range readFiles(t, "../testdata/guides/base/*.yaml") {
		objects = append(objects, decode(t, text)...)
	}
	servers, pickers, problems := Find(objects)
	if len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	got := map[string]string{}
	for _, m := range servers {
		got[m.Pod] = fmt.Sprint(m.Listen, " ", strings.Join(m.Models, " "))
	}
	for _, p := range pickers {
		got[p.Pool] = fmt.Sprint(p.Listen, " ", p.Endpoints, " ", p.Plaintext)
	}
	want := map[string]string{
		"vllm-llama3-8b-instruct-0":       "[127.0.1.1:8000] meta-llama/Llama-3.1-8B-Instruct food-review-1",
		"vllm-llama3-8b-instruct-1":       "[127.0.1.2:8000] meta-llama/Llama-3.1-8B-Instruct food-review-1",
		"vllm-llama3-8b-instruct-2":       "[127.0.1.3:8000] meta-llama/Llama-3.1-8B-Instruct food-review-1",
		"vllm-phi4-mini-instruct-0":       "[127.0.2.1:8000] microsoft/Phi-4-mini-instruct",
		"vllm-phi4-mini-instruct-1":       "[127.0.2.2:8000] microsoft/Phi-4-mini-instruct",
		"vllm-deepseek-r1-0":              "[127.0.3.1:8000] deepseek/vllm-deepseek-r1 food-review movie-critique ski-resorts",
		"vllm-deepseek-r1-1":              "[127.0.3.2:8000] deepseek/vllm-deepseek-r1 food-review movie-critique ski-resorts",
		"gemma3-0":                        "[127.0.4.1:8000] google/gemma-3-1b-it chatbot",
		"gemma3-1":                        "[127.0.4.2:8000] google/gemma-3-1b-it chatbot",
		"deepseek-r1-0":                   "[127.0.5.1:8000] deepseek-ai/DeepSeek-R1 recommender",
		"deepseek-r1-1":                   "[127.0.5.2:8000] deepseek-ai/DeepSeek-R1 recommender",
		"default/vllm-llama3-8b-instruct": "127.0.1.200:9002 [127.0.1.1:8000 127.0.1.2:8000 127.0.1.3:8000] false",
		"default/vllm-phi4-mini-instruct": "127.0.2.200:9002 [127.0.2.1:8000 127.0.2.2:8000] false",
		"default/vllm-deepseek-r1":        "127.0.3.200:9002 [127.0.3.1:8000 127.0.3.2:8000] false",
		"default/gemma3":                  "127.0.4.200:9002 [127.0.4.1:8000 127.0.4.2:8000] false",
		"default/deepseek-r1":             "127.0.5.200:9002 [127.0.5.1:8000 127.0.5.2:8000] false",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A pool, its picker's Service and slice, and two more slices: the pieces of the tests.
const (
	pool = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool}
spec:
  selector: {matchLabels: {app: a}}
  targetPorts: [{number: 8000}, {number: 8001}]
  endpointPickerRef: {name: epp, port: {number: 9002}}`
	service = `
apiVersion: v1
kind: Service
metadata: {name: epp, annotations: {signalbox.dev/demo: picker}}
spec:
  ports: [{name: metrics, port: 9090}, {name: grpc, port: 9002, appProtocol: http2}]`
	pickerSlice = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: epp-1, labels: {kubernetes.io/service-name: epp}}
addressType: IPv4
ports: [{name: metrics, port: 19090}, {name: grpc, port: 19002}]
endpoints: [{addresses: [127.0.9.9]}]`
	podSlice = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pods, labels: {app: a}, annotations: {signalbox.dev/demo: model-server, signalbox.dev/demo-models: "base, lora"}}
addressType: IPv4
ports: [{port: 8000}, {port: 8001, protocol: TCP}, {port: 53, protocol: UDP}]
endpoints:
- addresses: [127.0.9.1, 127.0.9.77]
- addresses: [127.0.9.2]
  hostname: two
  conditions: {ready: false}`
)

func addresses(list ...string) (out []netip.AddrPort) {
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func slice(name string) source.Ref {
	return source.Ref{Kind: source.KindEndpointSlice, Namespace: "default", Name: name}
}

func TestFind(t *testing.T) {
	servers := []ModelServer{
		{slice("pods"), "pods-0", []string{"base", "lora"}, addresses("127.0.9.1:8000", "127.0.9.1:8001")},
		{slice("pods"), "two", []string{"base", "lora"}, addresses("127.0.9.2:8000", "127.0.9.2:8001")},
	}
	ready := addresses("127.0.9.1:8000", "127.0.9.1:8001")
	onPod := func(more string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: a, other: b}" + more
	}
	for _, tt := range []struct {
		name    string
		objects []string
		servers []ModelServer
		pickers []Picker
	}{
		{"nothing asked for", []string{pool, strings.Replace(podSlice, "signalbox.dev/demo:", "x:", 1)}, nil, nil},
		{"model servers", []string{podSlice}, servers, nil},
		{"picker by its Service", []string{pickerSlice, service, pool, podSlice}, servers, []Picker{{slice("epp-1"), "default/pool", netip.MustParseAddrPort("127.0.9.9:19002"), false, ready}}},
		{"picker by its slice", []string{
			strings.Replace(pickerSlice, "name: epp-1,", "name: epp-1, annotations: {signalbox.dev/demo: picker},", 1),
			strings.Replace(service, "signalbox.dev/demo", "x", 1), pool,
		}, nil, []Picker{{slice("epp-1"), "default/pool", netip.MustParseAddrPort("127.0.9.9:19002"), false, nil}}},
		{"plaintext by appProtocol", []string{pickerSlice, strings.Replace(service, "http2", "kubernetes.io/h2c", 1), pool},
			nil, []Picker{{slice("epp-1"), "default/pool", netip.MustParseAddrPort("127.0.9.9:19002"), true, nil}}},
		{"plaintext by the pool", []string{pickerSlice, service, strings.Replace(pool, "name: pool}", "name: pool, annotations: {signalbox.dev/picker-tls: plaintext}}", 1)},
			nil, []Picker{{slice("epp-1"), "default/pool", netip.MustParseAddrPort("127.0.9.9:19002"), true, nil}}},
		{"TLS by the pool", []string{pickerSlice, strings.Replace(service, "http2", "kubernetes.io/h2c", 1), strings.Replace(pool, "name: pool}", "name: pool, annotations: {signalbox.dev/picker-tls: insecure}}", 1)},
			nil, []Picker{{slice("epp-1"), "default/pool", netip.MustParseAddrPort("127.0.9.9:19002"), false, nil}}},
		{"a pool's Pods", []string{pickerSlice, service, pool,
			onPod("}\nstatus: {podIP: 10.0.0.1}"),
			strings.Replace(onPod(", annotations: {inference.networking.k8s.io/active-ports: \"8001, 9\"}}\nstatus: {podIP: 10.0.0.2, conditions: [{type: Ready, status: \"True\"}]}"), "name: p", "name: q", 1),
			strings.Replace(onPod("}\nstatus: {podIP: 10.0.0.3, conditions: [{type: Ready, status: \"False\"}]}"), "name: p", "name: r", 1),
			strings.Replace(onPod("}\nstatus: {podIP: 10.0.0.4, phase: Failed}"), "name: p", "name: s", 1),
			strings.Replace(onPod("}\nstatus: {podIP: 10.0.0.5}"), "app: a", "app: b", 1),
			strings.Replace(onPod("}\nstatus: {podIP: 10.0.0.6}"), "name: p", "namespace: other, name: p", 1),
		}, nil, []Picker{{slice("epp-1"), "default/pool", netip.MustParseAddrPort("127.0.9.9:19002"), false, addresses("10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:8001")}}},
		{"a pool's slices by their ports", []string{pickerSlice, service, pool,
			`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: none, labels: {app: a}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}`,
			`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: one, labels: {app: a}}, addressType: IPv4, ports: [{port: 7}], endpoints: [{addresses: [10.0.0.2]}]}`,
			`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: two, labels: {app: a}}, addressType: IPv4, ports: [{port: 7}, {port: 8001}], endpoints: [{addresses: [10.0.0.3]}]}`,
			`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: k8s, labels: {app: a, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.4]}]}`,
		}, nil, []Picker{{slice("epp-1"), "default/pool", netip.MustParseAddrPort("127.0.9.9:19002"), false, addresses("10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:7", "10.0.0.3:8001")}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := decode(t, strings.Join(tt.objects, "\n---\n"))
			for range 2 { // the order of the objects plays no part
				gotServers, gotPickers, problems := Find(objects)
				if len(problems) > 0 {
					t.Errorf("problems: %v", problems)
				}
				opts := []cmp.Option{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty()}
				if diff := cmp.Diff(tt.servers, gotServers, opts...); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(tt.pickers, gotPickers, opts...); diff != "" {
					t.Error(diff)
				}
				slices.Reverse(objects)
			}
		})
	}
}

// A declaration that cannot be followed says so, names its object, and costs no other.
func TestProblems(t *testing.T) {
	edit := func(text string, replace ...string) string {
		for i := 0; i < len(replace); i += 2 {
			if !strings.Contains(text, replace[i]) {
				t.Fatalf("%q is not in %s", replace[i], text)
			}
		}
		return strings.NewReplacer(replace...).Replace(text)
	}
	other := edit(podSlice, "name: pods", "name: healthy", "127.0.9.1", "127.0.8.1", "127.0.9.2", "127.0.8.2")
	pickerParts := []string{pool, service, pickerSlice}
	for _, tt := range []struct {
		name    string
		objects []string
		object  string
		message string
	}{
		{"unknown value", []string{edit(podSlice, "model-server", "server")}, "EndpointSlice/default/pods", `annotation signalbox.dev/demo is "server"; want model-server or picker`},
		{"unknown value on a Service", []string{edit(service, "picker", "model-server")}, "Service/default/epp", `annotation signalbox.dev/demo is "model-server"; want picker`},
		{"wrong kind", []string{edit(pool, "name: pool", "name: pool, annotations: {signalbox.dev/demo: picker}")}, "InferencePool/default/pool", "no effect here"},
		{"no models", []string{edit(podSlice, "base, lora", "")}, "EndpointSlice/default/pods", `signalbox.dev/demo-models is ""`},
		{"an empty model", []string{edit(podSlice, "base, lora", "base,,lora")}, "EndpointSlice/default/pods", `signalbox.dev/demo-models is "base,,lora"`},
		{"no port", []string{edit(podSlice, "{port: 8000}, {port: 8001, protocol: TCP}, ", "")}, "EndpointSlice/default/pods", "lists no TCP port"},
		{"not loopback", []string{edit(podSlice, "127.0.9.2", "10.0.0.1", ", {port: 8001, protocol: TCP}", "")}, "EndpointSlice/default/pods", "10.0.0.1 is not a loopback address"},
		{"every address", []string{edit(podSlice, "127.0.9.2", "0.0.0.0", ", {port: 8001, protocol: TCP}", "")}, "EndpointSlice/default/pods", "0.0.0.0 is not a loopback address"},
		{"no address", []string{edit(podSlice, "127.0.9.2", "", ", {port: 8001, protocol: TCP}", "")}, "EndpointSlice/default/pods", `"" is not an IP address`},
		{"a name", []string{edit(podSlice, "127.0.9.2", "example.com", ", {port: 8001, protocol: TCP}", "")}, "EndpointSlice/default/pods", `"example.com" is not an IP address`},
		{"taken", []string{podSlice, edit(podSlice, "name: pods", "name: q", "127.0.9.1,", "127.0.7.1,", ", {port: 8001, protocol: TCP}", "")}, "EndpointSlice/default/q", "127.0.9.2:8000 is taken by EndpointSlice/default/pods already"},
		{"picker not loopback", append(pickerParts[:2:2], edit(pickerSlice, "127.0.9.9", "10.0.0.1")), "EndpointSlice/default/epp-1", "10.0.0.1 is not a loopback address"},
		{"no slice", pickerParts[:2:2], "Service/default/epp", "no EndpointSlice with the label kubernetes.io/service-name: epp"},
		{"no pool", pickerParts[1:], "EndpointSlice/default/epp-1", "no InferencePool of namespace default has an endpointPickerRef to Service epp"},
		{"two pools", append(pickerParts[:3:3], edit(pool, "name: pool", "name: second")), "EndpointSlice/default/epp-1", "the InferencePools pool, second share Service epp"},
		{"no such Service port", append(pickerParts[1:3:3], edit(pool, "9002", "9003")), "EndpointSlice/default/epp-1", "Service epp has no port of the number that InferencePool pool names"},
		{"no such slice port", append(pickerParts[:2:2], edit(pickerSlice, "grpc", "ext-proc")), "EndpointSlice/default/epp-1", `lists no port named "grpc", as port 9002 of Service epp is`},
		{"no Service", []string{pool, edit(pickerSlice, "name: epp-1,", "name: epp-1, annotations: {signalbox.dev/demo: picker},")}, "EndpointSlice/default/epp-1", "with the name of a Service that is there, not \"epp\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			servers, _, problems := Find(decode(t, strings.Join(append(tt.objects, other), "\n---\n")))
			if len(problems) != 1 || problems[0].Object != tt.object || !strings.Contains(problems[0].Message, tt.message) {
				t.Errorf("want one problem of %s with %q, got %q", tt.object, tt.message, problems)
			}
			if !slices.ContainsFunc(servers, func(m ModelServer) bool { return m.Object.Name == "healthy" }) {
				t.Error("the other declaration is lost")
			}
		})
	}
}
