package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// statuses looks at what the guides' objects say: nothing is wrong, everything is of the
// present generation.
func statuses(t *testing.T) {
	type parent struct {
		Conditions []metav1.Condition
	}
	var list struct {
		Items []struct {
			Kind     string
			Metadata metav1.ObjectMeta
			Status   struct {
				Conditions []metav1.Condition
				Parents    []parent
				Listeners  []parent
				Addresses  []struct{ Value string }
			}
		}
	}
	get(t, &list, "gatewayclasses,gateways,httproutes,inferencepools", "-A")
	for _, o := range list.Items {
		name := fmt.Sprintf("%s %s/%s", o.Kind, o.Metadata.Namespace, o.Metadata.Name)
		conditions := slices.Clone(o.Status.Conditions)
		for _, p := range slices.Concat(o.Status.Parents, o.Status.Listeners) {
			conditions = append(conditions, p.Conditions...)
		}
		if len(conditions) < 2 {
			t.Errorf("%s has hardly a status: %v", name, conditions)
		}
		for _, c := range conditions {
			want := metav1.ConditionTrue
			if c.Type == "Conflicted" {
				want = metav1.ConditionFalse
			}
			if c.Status != want || c.ObservedGeneration != o.Metadata.Generation {
				t.Errorf("%s, generation %d: %+v", name, o.Metadata.Generation, c)
			}
		}
		if o.Kind == "Gateway" && len(o.Status.Addresses) == 0 {
			t.Errorf("%s has no address", name)
		}
	}
	features := strings.Fields(kubectl(t, "get", "gatewayclass/signalbox", "-o", "jsonpath={.status.supportedFeatures[*].name}"))
	if !slices.IsSorted(features) || !slices.Contains(features, "HTTPRoute") {
		t.Errorf("supportedFeatures: %v", features)
	}
}

// uniqueModelNames holds the admission policy of deploy/gitops to its word, on the real
// API server.
func uniqueModelNames(t *testing.T) {
	kubectl(t, "apply", "-f", "deploy/gitops/policy/unique-model-names.yaml")
	defer kubectl(t, "delete", "-f", "deploy/gitops/policy/unique-model-names.yaml")
	kubectl(t, "wait", "crd/modelregistries.signalbox.dev", "--for=condition=Established", "--timeout", patience.String())
	kubectl(t, "apply", "-f", "deploy/gitops/policy/registry-example.yaml")
	try := func(route, gateway, header, kind, model string) error {
		_, err := run(t, strings.NewReplacer("ROUTE", route, "GATEWAY", gateway, "HEADER", header, "TYPE", kind, "MODEL", model).Replace(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ROUTE, namespace: default}
spec:
  parentRefs: [{name: GATEWAY}]
  rules:
  - matches: [{path: {value: /plain}}]
  - matches: [{headers: [{name: X-Other, value: any}]}, {headers: [{name: HEADER, type: TYPE, value: "MODEL"}]}]
`), "kubectl", "apply", "--dry-run=server", "-f", "-")
		return err
	}
	const ours, model = "inference-gateway", "X-Gateway-Model-Name"
	eventually(t, "the policy is in force", func() (bool, string) {
		err := try("thief", ours, model, "Exact", "chatbot")
		return err != nil && strings.Contains(err.Error(), "signalbox-unique-model-names"), fmt.Sprint(err)
	})
	for _, tt := range []struct{ name, route, gateway, header, kind, model, refused string }{
		{"its own", "routes-to-llms", ours, model, "Exact", "chatbot", ""},
		{"its own, with a slash", "llm-phi4-route", ours, model, "Exact", "microsoft/Phi-4-mini-instruct", ""},
		{"another's", "thief", ours, model, "Exact", "chatbot", "does not give these models to HTTPRoute default/thief: chatbot."},
		{"nobody's", "routes-to-llms", ours, model, "Exact", "unheard", ": unheard."},
		{"spelt otherwise", "thief", ours, "x-gateway-MODEL-name", "Exact", "chatbot", ": chatbot."},
		{"a base model", "thief", ours, "X-Gateway-Base-Model-Name", "Exact", "chatbot", ": chatbot."},
		{"any", "routes-to-llms", ours, model, "RegularExpression", "chat.*", ": chat.*."},
		{"of another Gateway", "thief", "other", model, "Exact", "chatbot", ""},
		{"another header", "thief", ours, "X-Team", "Exact", "chatbot", ""},
	} {
		err := try(tt.route, tt.gateway, tt.header, tt.kind, tt.model)
		if (err != nil) != (tt.refused != "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
