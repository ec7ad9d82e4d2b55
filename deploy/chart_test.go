package deploy

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

const chart = "helm/signalbox"

func TestInstallIsUpToDate(t *testing.T) {
	want, err := Install(chart)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("install.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("install.yaml is not what the chart says; run make install-yaml (-want +got):\n%s", diff)
	}
}

// object is a rendered one: what tests look at.
type object struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name      string            `json:"name"`
		Namespace string            `json:"namespace"`
		Labels    map[string]string `json:"labels"`
	} `json:"metadata"`
	Rules []rbacv1.PolicyRule `json:"rules"`
	text  string
}

func (o object) key() string {
	return strings.TrimPrefix(o.Metadata.Namespace+"/", "/") + o.Kind + "/" + o.Metadata.Name
}

func render(t *testing.T, values string) map[string]object {
	t.Helper()
	var v map[string]any
	if err := yaml.Unmarshal([]byte(values), &v); err != nil {
		t.Fatal(err)
	}
	manifests, err := Render(chart, v)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]object{}
	for _, m := range manifests {
		o := object{text: m}
		if err := yaml.UnmarshalStrict([]byte(m), &map[string]any{}); err != nil {
			t.Fatalf("%v in\n%s", err, m)
		}
		if err := yaml.Unmarshal([]byte(m), &o); err != nil {
			t.Fatal(err)
		}
		out[o.key()] = o
	}
	return out
}

const own = Namespace + "/"

func TestValues(t *testing.T) {
	for name, tt := range map[string]struct {
		values string
		has    map[string][]string // object → what its text holds
		hasNot map[string][]string
		absent []string
	}{
		"defaults": {
			has: map[string][]string{
				own + "Deployment/signalbox":          {"replicas: 2", "--image=docker.io/signalbox/signalbox:dev", "runAsNonRoot: true", "readOnlyRootFilesystem: true", "drop: [ALL]", "RuntimeDefault", "path: /readyz", "whenUnsatisfiable: ScheduleAnyway"},
				own + "PodDisruptionBudget/signalbox": {"maxUnavailable: 1"},
				own + "ServiceAccount/signalbox":      {"automountServiceAccountToken: false"},
				own + "Service/signalbox":             {"port: 18001"},
				"GatewayClass/signalbox":              {"controllerName: signalbox.dev/gateway-controller"},
			},
			hasNot: map[string][]string{own + "Deployment/signalbox": {"watch-namespaces", "imagePullSecrets", "priorityClassName", "nodeSelector"}},
		},
		"one replica": {values: "replicas: 1", absent: []string{own + "PodDisruptionBudget/signalbox"}},
		"images": {
			values: "{image: {repository: r.example/s, tag: v1, pullPolicy: Always}, envoyImage: 'r.example/e:1', imagePullSecrets: [{name: pull}]}",
			has:    map[string][]string{own + "Deployment/signalbox": {"image: r.example/s:v1", "--image=r.example/s:v1", "--envoy-image=r.example/e:1", "imagePullPolicy: Always", "- name: pull"}},
		},
		"account of one's own": {
			values: "serviceAccount: {create: false, name: mine}",
			has:    map[string][]string{own + "Deployment/signalbox": {"serviceAccountName: mine"}, "ClusterRoleBinding/signalbox": {"name: mine"}, own + "RoleBinding/signalbox": {"name: mine"}},
			absent: []string{own + "ServiceAccount/mine", own + "ServiceAccount/signalbox"},
		},
		"placement": {
			values: "{priorityClassName: high, nodeSelector: {a: b}, tolerations: [{key: k}], affinity: {nodeAffinity: {}}, podLabels: {x: z}, podAnnotations: {p: q}}",
			has:    map[string][]string{own + "Deployment/signalbox": {"priorityClassName: high", "a: b", "key: k", "nodeAffinity", "x: z", "p: q"}},
			hasNot: map[string][]string{own + "Deployment/signalbox": {"topologySpreadConstraints"}},
		},
		"no class": {values: "gatewayClass: {create: false}", absent: []string{"GatewayClass/signalbox"}},
		"namespaces": {
			values: "watchNamespaces: [a, b]",
			has:    map[string][]string{own + "Deployment/signalbox": {"--watch-namespaces=a,b"}, "a/RoleBinding/signalbox-gateways": {"namespace: signalbox-system"}, "b/Role/signalbox-gateways": {"deployments"}},
			hasNot: map[string][]string{"ClusterRole/signalbox": {"secrets", "deployments", "gateways/status"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			objects := render(t, tt.values)
			for key, texts := range tt.has {
				for _, text := range texts {
					if !strings.Contains(objects[key].text, text) {
						t.Errorf("%s has no %q:\n%s", key, text, objects[key].text)
					}
				}
			}
			for key, texts := range tt.hasNot {
				for _, text := range texts {
					if strings.Contains(objects[key].text, text) {
						t.Errorf("%s has %q:\n%s", key, text, objects[key].text)
					}
				}
			}
			for _, key := range tt.absent {
				if _, ok := objects[key]; ok {
					t.Errorf("%s is there", key)
				}
			}
		})
	}
}

// TestNoWildcards: whatever the values, no rule grants what it does not name, and Secrets
// of all namespaces are read only where all namespaces are.
func TestNoWildcards(t *testing.T) {
	for _, values := range []string{"", "watchNamespaces: [a]"} {
		for key, o := range render(t, values) {
			for _, r := range o.Rules {
				for _, word := range append(append(append([]string{}, r.Verbs...), r.Resources...), r.APIGroups...) {
					if strings.Contains(word, "*") {
						t.Errorf("%s with %q: %+v", key, values, r)
					}
				}
			}
		}
	}
}

func TestSchemaRefuses(t *testing.T) {
	for values, want := range map[string]string{
		"replica: 2":                           "replica",
		"replicas: 0":                          "replicas",
		"replicas: two":                        "replicas",
		"watchNamespaces: a":                   "watchNamespaces",
		"watchNamespaces: [A_b]":               "watchNamespaces",
		"log: {level: trace}":                  "level",
		"image: {tag: 'a b'}":                  "tag",
		"image: {pullPolicy: Sometimes}":       "pullPolicy",
		"resources: {request: {}}":             "request",
		"imagePullSecrets: [pull]":             "imagePullSecrets",
		"podAnnotations: {a: 1}":               "podAnnotations",
		"gatewayClass: {name: Upper}":          "name",
		"serviceAccount: {annotation: {a: b}}": "annotation",
	} {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(values), &v); err != nil {
			t.Fatal(err)
		}
		if _, err := Render(chart, v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", values, err)
		}
	}
}
