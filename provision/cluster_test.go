//go:build cluster

package provision

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/provision/infrastructure"
	"signalbox.dev/provision/pki"
	"signalbox.dev/source"
	"signalbox.dev/source/kube/kubetest"
	"signalbox.dev/translator"
)

// world is a Provisioner on an API server of the test's own.
type world struct {
	t         *testing.T
	server    *kubetest.Server
	core      kubernetes.Interface
	p         *Provisioner
	now       atomic.Pointer[time.Time]
	authority atomic.Pointer[pki.Authority]

	later int // Gateways that settled has made

	mu    sync.Mutex
	words map[string]string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, server: kubetest.Start(t), words: map[string]string{}}
	w.core = kubernetes.NewForConfigOrDie(w.server.Config)
	now := time.Now()
	w.now.Store(&now)
	ca, err := pki.NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	w.authority.Store(ca)
	w.p = w.start()
	return w
}

// start starts a replica.
func (w *world) start() *Provisioner {
	w.t.Helper()
	p, err := New(Options{Config: w.server.Config, Settings: settings, Authority: w.authority.Load, Now: func() time.Time { return *w.now.Load() },
		Report: w.report, Logger: zaptest.NewLogger(w.t), Registerer: prometheus.NewRegistry()})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	w.t.Cleanup(func() { stop(); <-done })
	return p
}

func (w *world) report(r translator.Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.words[r.Gateway.Name] = r.Words
}

func (w *world) said(name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.words[name]
}

// gateway makes a Gateway and returns what it asks for.
func (w *world) gateway(name string) infrastructure.Gateway {
	w.t.Helper()
	w.server.Put(w.t, fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %s, namespace: default}
spec: {gatewayClassName: signalbox, listeners: [{name: http, port: 80, protocol: HTTP}]}
`, name))
	o, err := w.server.Resource(w.t, gatewayv1.SchemeGroupVersion.WithKind("Gateway"), "default").Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return infrastructure.Gateway{Namespace: "default", Name: name, UID: o.GetUID(), Ports: []infrastructure.Port{{Service: 80, Pod: 10080}}, Parameters: infrastructure.Default()}
}

func wanted(gateways ...infrastructure.Gateway) (out []translator.Infrastructure) {
	for _, g := range gateways {
		out = append(out, translator.Infrastructure{Ref: ref(g.Name), Wanted: &g})
	}
	return out
}

func ref(name string) source.Ref {
	return source.Ref{Kind: source.KindGateway, Namespace: "default", Name: name}
}

// kinds lists the kinds of what there is for a Gateway, sorted.
func (w *world) kinds(name string) (out []string) {
	for kind, resource := range resources {
		_, err := w.p.metadata.Resource(resource).Namespace("default").Get(w.t.Context(), infrastructure.ResourceName(name), metav1.GetOptions{})
		if err == nil {
			out = append(out, kind)
		}
	}
	slices.Sort(out)
	return out
}

var all = []string{"ConfigMap", "Deployment", "PodDisruptionBudget", "Secret", "Service", "ServiceAccount"}

// until waits until a condition holds.
func (w *world) until(what string, holds func() bool) {
	w.t.Helper()
	tick, timeout := time.NewTicker(20*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-timeout:
			w.t.Fatalf("not after 20 s: %s", what)
		}
	}
}

func (w *world) there(name string, want []string) func() bool {
	return func() bool { return slices.Equal(w.kinds(name), want) }
}

// writes counts the writes that the API server has answered, of a Gateway's objects.
func (w *world) writes(name string) (n int) {
	for _, r := range w.server.Requests(w.t, "admin") {
		if (r.Verb == "patch" || r.Verb == "delete") && r.Name == infrastructure.ResourceName(name) {
			n++
		}
	}
	return n
}

func TestLifeOfAGateway(t *testing.T) {
	w := newWorld(t)
	gw := w.gateway("gw")
	w.p.Provide(wanted(gw))
	w.p.Lead(true)
	w.until("all is there", w.there("gw", all))

	t.Run("nothing is written again", func(t *testing.T) {
		w.until("its own changes have come back", func() bool { return w.settled("gw") })
		if !w.settled("gw") {
			t.Error("objects that are as they should be are written again")
		}
	})
	t.Run("what others change is put right", func(t *testing.T) {
		for _, kind := range all {
			uid := w.uid(kind, "gw")
			if err := w.p.metadata.Resource(resources[kind]).Namespace("default").Delete(t.Context(), "signalbox-gw", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			w.until(kind+" is there again", func() bool { now := w.uid(kind, "gw"); return now != "" && now != uid })
		}
		patch := []byte(`{"metadata":{"labels":{"team":"mine","gateway.networking.k8s.io/gateway-name":"none"}},"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1}}}}`)
		if _, err := w.core.AppsV1().Deployments("default").Patch(t.Context(), "signalbox-gw", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("the Deployment is as it was, with what is not signalbox's", func() bool {
			d, err := w.core.AppsV1().Deployments("default").Get(t.Context(), "signalbox-gw", metav1.GetOptions{})
			return err == nil && d.Labels[gatewayv1.GatewayNameLabelKey] == "gw" && d.Labels["team"] == "mine" && *d.Spec.Template.Spec.TerminationGracePeriodSeconds == 330
		})
	})
	t.Run("scaling is left to others", func(t *testing.T) {
		if _, err := w.core.AppsV1().Deployments("default").Patch(t.Context(), "signalbox-gw", types.MergePatchType, []byte(`{"spec":{"replicas":3}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		gw.Labels = map[string]string{"a": "b"}
		w.p.Provide(wanted(gw))
		w.until("the label is there", func() bool {
			d, err := w.core.AppsV1().Deployments("default").Get(t.Context(), "signalbox-gw", metav1.GetOptions{})
			if err == nil && *d.Spec.Replicas != 3 {
				t.Fatalf("%d replicas; want the 3 that somebody has set", *d.Spec.Replicas)
			}
			return err == nil && d.Labels["a"] == "b"
		})
	})
	t.Run("types of Services", func(t *testing.T) {
		for _, typ := range []corev1.ServiceType{"ClusterIP", "NodePort", "LoadBalancer"} {
			gw.Parameters.ServiceType = typ
			w.p.Provide(wanted(gw))
			w.until("the Service is a "+string(typ), func() bool {
				s, err := w.core.CoreV1().Services("default").Get(t.Context(), "signalbox-gw", metav1.GetOptions{})
				return err == nil && s.Spec.Type == typ
			})
		}
	})
	t.Run("kept while it is refused", func(t *testing.T) {
		w.p.Provide([]translator.Infrastructure{{Ref: ref("gw"), Kept: true}})
		w.settled("gw")
		if got := w.kinds("gw"); !slices.Equal(got, all) {
			t.Errorf("there is %v; want all", got)
		}
	})
	t.Run("gone when it is another's", func(t *testing.T) {
		w.p.Provide([]translator.Infrastructure{{Ref: ref("gw")}})
		w.until("all is gone", w.there("gw", nil))
	})
}

func (w *world) uid(kind, name string) types.UID {
	o, err := w.p.metadata.Resource(resources[kind]).Namespace("default").Get(w.t.Context(), infrastructure.ResourceName(name), metav1.GetOptions{})
	if err != nil {
		return ""
	}
	return o.UID
}

// settled says whether looking at a Gateway again writes nothing. It has been looked at
// when one that was asked for after it has all it needs.
func (w *world) settled(name string) bool {
	before := w.writes(name)
	w.p.Again()
	w.later++
	next := fmt.Sprintf("later-%d", w.later)
	w.p.Provide(wanted(w.gateway(next)))
	w.until(next+" has all", w.there(next, all))
	return w.writes(name) == before
}
