//go:build cluster

package e2e

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source/kube/kubetest"
	"signalbox.dev/translator"
)

// replica is a control plane on an API server of the test's own.
type replica struct {
	*program
	admin, xds string
}

// cluster is an API server of the test's own, with a Gateway default/gw whose Envoys are
// brought along, and what control planes on it have in common.
type cluster struct {
	t      *testing.T
	server *kubetest.Server
	user   string // who the control planes are
	port   int    // where Envoys answer for the Gateway's port 80
}

const kubeGateway = `apiVersion: v1
kind: Namespace
metadata: {name: signalbox-system}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: signalbox}
spec: {controllerName: signalbox.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: default, annotations: {signalbox.dev/unmanaged: "true"}}
spec:
  gatewayClassName: signalbox
  listeners: [{name: http, port: 80, protocol: HTTP}]
`

func newCluster(t *testing.T, user string) *cluster {
	t.Helper()
	c := &cluster{t: t, server: kubetest.Start(t), user: user, port: freePort(t)}
	c.server.Put(t, kubeGateway)
	return c
}

// start runs a control plane.
func (c *cluster) start() *replica {
	c.t.Helper()
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(c.t)) }
	r := &replica{xds: local(), admin: local()}
	r.program = startProgram(c.t, binary(c.t, "SIGNALBOX"), "serve", "--source", "kube", "--kubeconfig", c.server.Kubeconfig(c.t, c.user),
		"--xds", r.xds, "--admin", r.admin, "--xds-tls", local(), "--bind", "127.0.0.1", "--port", fmt.Sprintf("80=%d", c.port))
	waitFor(c.t, "the control plane is ready", func() bool { return get(c.t.Context(), "http://"+r.admin+"/readyz").Status == http.StatusOK })
	return r
}

const leads = "this replica leads"

// envoy runs an Envoy of the Gateway on a control plane.
func (c *cluster) envoy(r *replica) {
	c.t.Helper()
	b := bare{t: c.t, xds: r.xds}
	startEnvoy(c.t, b.bootstrap("default/gw", "envoy-1", "--envoy-admin", fmt.Sprintf("127.0.0.1:%d", freePort(c.t))))
}

// kill kills a program without a word.
func kill(t *testing.T, p *program) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.exited
}

// redirect is an HTTPRoute that is answered without a backend.
func redirect(name string) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: default}
spec:
  parentRefs: [{name: gw}]
  rules:
  - matches: [{path: {type: Exact, value: /%s}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: there.example.com, statusCode: 302}}]
`, name, name)
}

// answers says whether Envoy answers for a route.
func (c *cluster) answers(name string) bool { return c.status(name) == http.StatusFound }

// noRedirects does not go where it is sent.
var noRedirects = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 8},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (c *cluster) status(name string) int {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/%s", c.port, name), nil)
	if err != nil {
		c.t.Error(err)
		return 0
	}
	return do(noRedirects, req).Status
}

// hammer asks for a route until the function that it returns is called, which returns
// how many of how many requests were not answered.
func (c *cluster) hammer(name string) (stop func() (failed, sent int)) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var group sync.WaitGroup
	var failed, sent int
	group.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if sent++; !c.answers(name) {
					failed++
				}
			}
		}
	})
	return func() (int, int) { cancel(); group.Wait(); return failed, sent }
}

// accepted says whether a route's status says that our Gateway has accepted it.
func (c *cluster) accepted(name string) bool {
	var route gatewayv1.HTTPRoute
	c.get("HTTPRoute", name, &route)
	for _, p := range route.Status.Parents {
		if p.ControllerName == translator.ControllerName && len(p.Conditions) > 0 && p.Conditions[0].Status == metav1.ConditionTrue {
			return true
		}
	}
	return false
}

// get reads an object of the default namespace.
func (c *cluster) get(kind, name string, into any) {
	c.t.Helper()
	o, err := c.server.Resource(c.t, schema.GroupVersionKind{Group: gatewayv1.GroupName, Version: "v1", Kind: kind}, "default").Get(c.t.Context(), name, metav1.GetOptions{})
	if err == nil {
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// attached is how many routes the Gateway's status says are attached.
func (c *cluster) attached() int {
	var gateway gatewayv1.Gateway
	c.get("Gateway", "gw", &gateway)
	if len(gateway.Status.Listeners) == 0 {
		return 0
	}
	return int(gateway.Status.Listeners[0].AttachedRoutes)
}

// writes counts, by "resource/name", the statuses that the control planes have written.
func (c *cluster) writes() map[string]int {
	out := map[string]int{}
	for _, r := range c.server.Requests(c.t, c.user) {
		if r.Sub == "status" {
			out[r.Resource+"/"+r.Name]++
		}
	}
	return out
}

func (c *cluster) apply(manifest string) {
	c.t.Helper()
	for _, o := range kubetest.Read(c.t, manifest) {
		if err := c.server.Apply(c.t, o); err != nil {
			c.t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// since writes down what was measured.
func since(t *testing.T, what string, began time.Time) time.Duration {
	t.Helper()
	took := time.Since(began).Round(time.Millisecond)
	t.Logf("%s: %s", what, took)
	return took
}

// try applies a manifest and says whether the API server took it.
func (c *cluster) try(manifest string) bool {
	for _, o := range kubetest.Read(c.t, manifest) {
		if c.server.Apply(c.t, o) != nil {
			return false
		}
	}
	return true
}

// outageTime is how long what is taken away stays away.
var outageTime = flag.Duration("outage", 10*time.Second, "how long API servers are away in the tests on clusters")

// waitLong is waitFor for what takes its time.
func waitLong(t *testing.T, what string, limit time.Duration, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %s", limit, what)
		case <-tick.C:
		}
	}
}
