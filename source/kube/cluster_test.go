//go:build cluster

package kube_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/source/kube"
	"signalbox.dev/source/kube/kubetest"
	"signalbox.dev/source/sourcetest"
)

// TestCluster runs all tests that need an API server on one: it takes longer to start than
// most of them.
func TestCluster(t *testing.T) {
	server := kubetest.Start(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *kubetest.Server)
	}{
		{"Source", testSource}, {"Goldens", testGoldens}, {"Observe", testObserve}, {"Namespaces", testNamespaces},
		{"PermissionRevoked", testPermissionRevoked}, {"Away", testAway}, {"CRDs", testCRDs},
	} {
		t.Run(test.name, func(t *testing.T) {
			server.Clear(t)
			test.run(t, server)
		})
	}
}

// world is a server as sourcetest wants it.
type world struct{ server *kubetest.Server }

func (w world) Put(t *testing.T, manifest string)      { w.server.Put(t, manifest) }
func (w world) Delete(t *testing.T, object source.Ref) { w.server.Delete(t, object) }

func testSource(t *testing.T, server *kubetest.Server) {
	sourcetest.Run(t, func(t *testing.T) (source.Source, sourcetest.World) {
		server.Clear(t)
		return kube.New(kube.Options{Config: server.Config, Logger: zap.NewNop()}), world{server}
	})
}

func route(namespace, name string) string {
	return fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: %s, namespace: %s}\nspec: {parentRefs: [{name: gw}], hostnames: [a.example.com]}\n", name, namespace)
}

func routeRef(namespace, name string) source.Ref {
	return source.Ref{Kind: source.KindHTTPRoute, Namespace: namespace, Name: name}
}

func routesOf(r *sourcetest.Reader) (n int) {
	for ref := range r.Objects {
		if ref.Kind == source.KindHTTPRoute {
			n++
		}
	}
	return n
}

func read(t *testing.T, server *kubetest.Server, o kube.Options) (*sourcetest.Reader, *observer.ObservedLogs) {
	core, logs := observer.New(zap.InfoLevel)
	o.Logger, o.Recheck = zap.New(core), recheck
	if o.Config == nil {
		o.Config = server.Config
	}
	return sourcetest.Read(t, kube.New(o)), logs
}

// CRDs come and go under a source that runs; without the others, the rest is read.
func testCRDs(t *testing.T, server *kubetest.Server) {
	kinds := []source.Kind{source.KindHTTPRoute, source.KindInferencePool, source.KindBackendTLSPolicy}
	for _, kind := range kinds {
		server.RemoveCRD(t, kubetest.CRD(t, kind))
	}
	server.Put(t, "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n")
	r, logs := read(t, server, kube.Options{})
	r.Sync()
	if n := logs.FilterMessageSnippet("does not serve this kind").Len(); n != 3 || len(r.Problems) > 0 {
		t.Errorf("%d kinds are said to be missing, want 3; problems %v", n, r.Problems)
	}
	if r.Objects[source.Ref{Kind: source.KindService, Namespace: "default", Name: "s"}] == nil {
		t.Error("the Service is missing")
	}
	crd := kubetest.CRD(t, source.KindHTTPRoute)
	for range 2 {
		server.InstallCRD(t, crd)
		for i := range 20 {
			server.Put(t, route("default", fmt.Sprintf("r%02d", i)))
		}
		r.Until(func() bool { return routesOf(r) == 20 })
		server.RemoveCRD(t, crd)
		r.Until(func() bool { return routesOf(r) == 0 })
	}
	if len(r.Problems) > 0 {
		t.Errorf("problems %v", r.Problems)
	}
	for _, kind := range kinds {
		server.InstallCRD(t, kubetest.CRD(t, kind))
	}
}

// A source of some namespaces reads only what is in these, with no more than Roles there,
// and asks for nothing but lists and watches.
func testNamespaces(t *testing.T, server *kubetest.Server) {
	for _, ns := range []string{"a", "b", "c"} {
		server.Put(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n"+route(ns, "r"))
	}
	server.Put(t, roles)
	r, _ := read(t, server, kube.Options{Config: server.As("signalbox"), Namespaces: []string{"a", "b", "a"}})
	r.Sync()
	var got []string
	for ref := range r.Objects {
		got = append(got, ref.String())
	}
	slices.Sort(got)
	want := []string{"HTTPRoute/a/r", "HTTPRoute/b/r", "Namespace/a", "Namespace/b"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("objects (-want +got):\n%s", d)
	}
	server.Put(t, route("c", "other")+route("b", "new"))
	r.Until(r.Has(routeRef("b", "new")))
	if r.Objects[routeRef("c", "other")] != nil {
		t.Error("a route of another namespace came")
	}
	verbs := map[string]int{}
	for _, q := range server.Requests(t, "signalbox") {
		verbs[fmt.Sprint(q.Verb, " ", q.Code)]++
	}
	if d := cmp.Diff([]string{"list 200", "watch 200"}, slices.Sorted(maps.Keys(verbs))); d != "" {
		t.Errorf("requests and answers (-want +got):\n%s", d)
	}
}

// roles let the user signalbox read the namespaces a and b, and nothing else.
var roles = func() string {
	var groups []string
	for _, k := range source.Kinds {
		if k.Namespaced {
			groups = append(groups, fmt.Sprintf("{apiGroups: [%q], resources: [%s], verbs: [list, watch]}", k.GVK.Group, k.Resource))
		}
	}
	text := `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signalbox}
rules:
- {apiGroups: [gateway.networking.k8s.io], resources: [gatewayclasses], verbs: [list, watch]}
- {apiGroups: [""], resources: [namespaces], resourceNames: [a, b], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signalbox}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signalbox}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: signalbox}]
`
	for _, ns := range []string{"a", "b"} {
		text += fmt.Sprintf(`---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: signalbox, namespace: %[1]s}
rules: [%[2]s]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signalbox, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: signalbox}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: signalbox}]
`, ns, strings.Join(groups, ", "))
	}
	return text
}()

// A permission that is taken away keeps everything as it was, and other kinds go on.
func testPermissionRevoked(t *testing.T, server *kubetest.Server) {
	server.Put(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n"+route("a", "r"))
	server.Put(t, roles)
	r, logs := read(t, server, kube.Options{Config: server.As("signalbox"), Namespaces: []string{"a"}})
	r.Sync()
	role := server.Resource(t, schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"}, "a")
	if _, err := role.Patch(t.Context(), "signalbox", types.MergePatchType,
		[]byte(`{"rules":[{"apiGroups":[""],"resources":["services"],"verbs":["list","watch"]}]}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	// A watch that runs goes on whatever its Role says: only the next request is refused.
	server.KillAPI()
	server.StartAPI(t)
	denied := func() (n int) {
		for _, p := range r.Problems {
			if strings.Contains(p.Message, "grant signalbox list and watch on") {
				n++
			}
		}
		return n
	}
	namespaced := -1 // Services are still allowed
	for _, k := range source.Kinds {
		if k.Namespaced {
			namespaced++
		}
	}
	r.Until(func() bool { return denied() == namespaced && len(r.Problems) == namespaced })
	if r.Objects[routeRef("a", "r")] == nil {
		t.Error("the route is gone")
	}
	server.Put(t, "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {ports: [{port: 80}]}\n"+route("a", "later"))
	r.Until(r.Has(source.Ref{Kind: source.KindService, Namespace: "a", Name: "s"}))
	server.Put(t, roles)
	r.Until(func() bool { return len(r.Problems) == 0 && r.Objects[routeRef("a", "later")] != nil })
	if n := logs.FilterMessageSnippet("cannot be read").FilterField(zap.String("kind", "HTTPRoute")).Len(); n > 3 {
		t.Errorf("%d log lines on one kind", n)
	}
}

// An API server that is away, for longer than any single retry.
func testAway(t *testing.T, server *kubetest.Server) {
	const routes = 30
	for i := range routes {
		server.Put(t, route("default", fmt.Sprintf("r%02d", i)))
	}
	r, _ := read(t, server, kube.Options{})
	r.Sync()
	server.KillAPI()
	r.Until(func() bool { return len(r.Problems) == len(source.Kinds) })
	<-time.After(5 * time.Second)
	server.StartAPI(t)
	changes := r.Until(func() bool { return len(r.Problems) == 0 })
	server.Put(t, route("default", "after"))
	changes = append(changes, r.Until(r.Has(routeRef("default", "after")))...)
	for _, c := range changes {
		if c.Object == nil {
			t.Errorf("%s went", c.Ref)
		}
	}
}

// Statuses come to Observe and are no changes.
func testObserve(t *testing.T, server *kubetest.Server) {
	server.Put(t, route("default", "r"))
	observed := make(chan *gatewayv1.HTTPRoute, 100)
	r, _ := read(t, server, kube.Options{Observe: func(o source.Object) {
		if o, ok := o.(*gatewayv1.HTTPRoute); ok {
			observed <- o.DeepCopy()
		}
	}})
	r.Sync()
	client := server.Resource(t, schema.GroupVersionKind{Group: gatewayv1.GroupName, Version: "v1", Kind: "HTTPRoute"}, "default")
	status := `{"status":{"parents":[{"controllerName":"example.com/c","parentRef":{"name":"gw"},"conditions":[{"type":"Accepted","status":"True","reason":"A","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}]}}`
	if _, err := client.Patch(t.Context(), "r", types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	for o := range observed {
		if len(o.Status.Parents) == 1 && o.ResourceVersion != "" {
			break
		}
	}
	server.Put(t, route("default", "next"))
	before := r.Objects[routeRef("default", "r")]
	for _, c := range r.Until(r.Has(routeRef("default", "next"))) {
		if c.Ref == routeRef("default", "r") {
			t.Errorf("a status came as a change:\n%s", cmp.Diff(before, c.Object))
		}
	}
	if o := r.Objects[routeRef("default", "r")].(*gatewayv1.HTTPRoute); len(o.Status.Parents) > 0 || o.ResourceVersion != "" {
		t.Errorf("the object was sent with %v", o)
	}
}
