package deploy

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// fluxCases are objects and what Flux must make of them, by kind. Of InferencePools the
// cases of Argo CD's test data are taken too.
var fluxCases = map[string]map[string]string{
	"Gateway": {
		"{metadata: {generation: 2}, status: {conditions: [{type: Accepted, status: 'True', observedGeneration: 2}, {type: Programmed, status: 'True', observedGeneration: 2}]}}":                                     "Current",
		"{metadata: {generation: 3}, status: {conditions: [{type: Accepted, status: 'True', observedGeneration: 2}, {type: Programmed, status: 'True', observedGeneration: 2}]}}":                                     "InProgress",
		"{metadata: {generation: 2}, status: {conditions: [{type: Accepted, status: 'True', observedGeneration: 2}, {type: Programmed, status: 'False', reason: AddressNotAssigned, observedGeneration: 2}]}}":        "InProgress",
		"{metadata: {generation: 2}, status: {conditions: [{type: Accepted, status: 'True', observedGeneration: 2}, {type: Programmed, status: 'False', reason: Invalid, observedGeneration: 2}]}}":                   "Failed",
		"{metadata: {generation: 2}, status: {conditions: [{type: Accepted, status: 'False', reason: InvalidParameters, observedGeneration: 2}]}}":                                                                    "Failed",
		"{metadata: {generation: 1}, status: {conditions: [{type: Accepted, status: Unknown, reason: Pending, observedGeneration: 0}, {type: Programmed, status: Unknown, reason: Pending, observedGeneration: 0}]}}": "InProgress",
		"{metadata: {generation: 2}, status: {addresses: []}}": "InProgress",
		"{metadata: {generation: 2}}":                          "error",
		"{metadata: {generation: 2}, status: {conditions: [{type: Accepted, status: 'True', observedGeneration: 2}, {type: Programmed, status: 'True', observedGeneration: 2}, {type: x.y/Z, status: 'False', reason: Other, observedGeneration: 2}]}}": "Current",
	},
	"HTTPRoute": {
		"{metadata: {generation: 2}, status: {parents: [{conditions: [{type: Accepted, status: 'True', observedGeneration: 2}, {type: ResolvedRefs, status: 'True', observedGeneration: 2}]}]}}":  "Current",
		"{metadata: {generation: 2}, status: {parents: [{conditions: [{type: Accepted, status: 'True', observedGeneration: 1}, {type: ResolvedRefs, status: 'True', observedGeneration: 1}]}]}}":  "InProgress",
		"{metadata: {generation: 2}, status: {parents: [{conditions: [{type: Accepted, status: 'True', observedGeneration: 2}, {type: ResolvedRefs, status: 'False', observedGeneration: 2}]}]}}": "Failed",
		"{metadata: {generation: 2}, status: {parents: [{conditions: [{type: Accepted, status: 'True', observedGeneration: 2}]}]}}":                                                               "InProgress",
		"{metadata: {generation: 2}, status: {parents: []}}": "InProgress",
		"{metadata: {generation: 2}}":                        "error", // Flux waits
	},
	"InferencePool": {
		"{metadata: {generation: 2}, status: {}}": "InProgress",
	},
}

// argoHealth says which word of Flux's a word of Argo CD's is.
var argoHealth = map[string]string{"healthy": "Current", "degraded": "Failed", "progressing": "InProgress"}

// A pool that nobody uses, or that is on its way out, is no matter of the expressions: of
// the one they know nothing, and of the other Flux itself takes care.
var notOfExpressions = []string{"healthy_no_status.yaml", "healthy_default_parent.yaml", "terminating.yaml"}

func TestFluxHealthCheckExprs(t *testing.T) {
	evaluators := fluxEvaluators(t)
	if want := slices.Sorted(maps.Keys(fluxCases)); !slices.Equal(want, slices.Sorted(maps.Keys(evaluators))) {
		t.Errorf("expressions for %v, tested are %v", slices.Sorted(maps.Keys(evaluators)), want)
	}
	for kind, cases := range fluxCases {
		for text, want := range cases {
			var object map[string]any
			if err := yaml.Unmarshal([]byte(text), &object); err != nil {
				t.Fatal(err)
			}
			evaluate(t, evaluators[kind], text, object, want)
		}
	}
	pools, err := filepath.Glob(argocd + "/*/InferencePool/testdata/*.yaml")
	if err != nil || len(pools) == 0 {
		t.Fatal(pools, err)
	}
	for _, file := range pools {
		if slices.Contains(notOfExpressions, filepath.Base(file)) {
			continue
		}
		var object map[string]any
		read(t, file, &object)
		word, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".yaml"), "_")
		evaluate(t, evaluators["InferencePool"], filepath.Base(file), object, argoHealth[word])
	}
}

func evaluate(t *testing.T, e *cel.StatusEvaluator, name string, object map[string]any, want string) {
	t.Helper()
	integers(object)
	got := "error"
	result, err := e.Evaluate(t.Context(), &unstructured.Unstructured{Object: object})
	if err == nil {
		got = string(result.Status)
	}
	if got != want {
		t.Errorf("%s: %s (%v), want %s", name, got, err, want)
	}
}

// integers makes the numbers of JSON what they are in an object of an API server.
func integers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = integers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = integers(e)
		}
	case float64:
		return int64(v)
	}
	return v
}

// fluxEvaluators reads the expressions out of the example's Kustomizations.
func fluxEvaluators(t *testing.T) map[string]*cel.StatusEvaluator {
	t.Helper()
	b, err := os.ReadFile("gitops/flux/kustomizations.yaml")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*cel.StatusEvaluator{}
	for _, document := range bytes.Split(b, []byte("\n---\n")) {
		var k struct {
			Spec struct {
				HealthCheckExprs []kustomize.CustomHealthCheck `json:"healthCheckExprs"`
			} `json:"spec"`
		}
		if err := yaml.Unmarshal(document, &k); err != nil {
			t.Fatal(err)
		}
		for _, check := range k.Spec.HealthCheckExprs {
			if out[check.Kind], err = cel.NewStatusEvaluator(&check.HealthCheckExpressions); err != nil {
				t.Fatalf("%s: %v", check.Kind, err)
			}
		}
	}
	return out
}
