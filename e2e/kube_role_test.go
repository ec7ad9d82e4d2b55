//go:build cluster

package e2e

import (
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"signalbox.dev/provision/pki"
	"signalbox.dev/source/kube/kubetest"
)

// The control plane is granted what it uses, and uses what it is granted: with the roles of
// deploy/install.yaml, through a life that has everything in it, the API server refuses
// nothing, and by its audit log there is no verb that was not needed.
func TestKubeRole(t *testing.T) {
	c := newCluster(t, "signalbox")
	granted := c.grant("../deploy/install.yaml")
	c.oldAuthority()
	first, second := c.start(), c.start()
	waitFor(t, "one leads", func() bool {
		return strings.Contains(first.output.String(), leads) || strings.Contains(second.output.String(), leads)
	})
	c.apply(wholeLife)
	for _, object := range []string{"gatewayclasses/signalbox", "gateways/gw", "gateways/run", "httproutes/r", "inferencepools/pool", "backendtlspolicies/policy"} {
		waitFor(t, object+" has a status", func() bool { return c.writes()[object] > 0 })
	}
	made := []schema.GroupVersionKind{
		{Group: "apps", Version: "v1", Kind: "Deployment"}, {Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"},
		{Version: "v1", Kind: "Service"}, {Version: "v1", Kind: "Secret"}, {Version: "v1", Kind: "ConfigMap"}, {Version: "v1", Kind: "ServiceAccount"},
	}
	there := func() (n int) {
		for _, gvk := range made {
			if _, err := c.server.Resource(t, gvk, "default").Get(t.Context(), "signalbox-run", metav1.GetOptions{}); err == nil {
				n++
			}
		}
		return n
	}
	waitFor(t, "the Gateway has its Envoys", func() bool { return there() == len(made) })
	// A Gateway that brings its own Envoys from now on: what ran for it is deleted.
	c.apply(strings.Replace(managedGateway, "name: run", `name: run, annotations: {signalbox.dev/unmanaged: "true"}`, 1))
	waitFor(t, "they have gone", func() bool { return there() == 0 })
	waitLong(t, "the authority, which is looked at every minute, is replaced", 3*patience, func() bool { return c.used()["update secrets"] > 0 })
	first.stop(t)
	second.stop(t)
	used := c.used()
	if d := cmp.Diff(granted, slices.Sorted(maps.Keys(used))); d != "" {
		t.Errorf("verbs (-granted and not used, +used):\n%s", d)
	}
}

// oldAuthority gives the control planes a certificate authority that has to be replaced.
func (c *cluster) oldAuthority() {
	c.t.Helper()
	client, err := kubernetes.NewForConfig(c.server.Config)
	if err != nil {
		c.t.Fatal(err)
	}
	store := pki.Store{Secrets: client.CoreV1().Secrets("signalbox-system")}
	if _, err := store.Load(c.t.Context(), time.Now().Add(-pki.AuthorityLife*9/10)); err != nil {
		c.t.Fatal(err)
	}
}

// used counts what the control planes have done, "verb resource.group/subresource".
func (c *cluster) used() map[string]int {
	out := map[string]int{}
	for _, q := range c.server.Requests(c.t, c.user) {
		what := name(q.Group, q.Resource, q.Sub)
		if q.Code == http.StatusForbidden {
			c.t.Errorf("denied: %s %s %s/%s", q.Verb, what, q.Namespace, q.Name)
		}
		if out[q.Verb+" "+what]++; q.Verb == "patch" && q.Code == http.StatusCreated {
			out["create "+what]++ // what a server-side apply makes has to be allowed, too
		}
	}
	return out
}

func name(group, resource, sub string) string {
	if group != "" {
		resource += "." + group
	}
	if sub != "" {
		resource += "/" + sub
	}
	return resource
}

// grant applies the roles of a manifest, grants them to the cluster's user, and returns
// what they allow, "verb resource.group/subresource".
func (c *cluster) grant(path string) []string {
	c.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, o := range kubetest.Read(c.t, string(text)) {
		if o.GroupVersionKind().Group != rbacv1.GroupName {
			continue
		}
		var role struct {
			Rules    []rbacv1.PolicyRule `json:"rules"`
			Subjects []rbacv1.Subject    `json:"subjects"`
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role); err != nil {
			c.t.Fatal(err)
		}
		if role.Subjects != nil {
			o.Object["subjects"] = []any{map[string]any{"apiGroup": rbacv1.GroupName, "kind": "User", "name": c.user}}
		}
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						resource, sub, _ := strings.Cut(resource, "/")
						allowed[verb+" "+name(group, resource, sub)] = true
					}
				}
			}
		}
		if err := c.server.Apply(c.t, o); err != nil {
			c.t.Fatal(err)
		}
	}
	return slices.Sorted(maps.Keys(allowed))
}

const managedGateway = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: run}
spec:
  gatewayClassName: signalbox
  listeners: [{name: http, port: 80, protocol: HTTP}]
`

// wholeLife has an object of each kind that has a status, and a Gateway to run Envoys for.
const wholeLife = managedGateway + `---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: gw}, {name: run}]
  rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: pool}]}]
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool}
spec:
  selector: {matchLabels: {app: model}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: epp, port: {number: 9002}}
---
apiVersion: v1
kind: Service
metadata: {name: epp}
spec: {selector: {app: epp}, ports: [{port: 9002}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: policy}
spec:
  targetRefs: [{group: "", kind: Service, name: epp}]
  validation: {hostname: epp.example.com, wellKnownCACertificates: System}
`
