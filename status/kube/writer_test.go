package kube_test

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/status/kube"
	"signalbox.dev/translator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long anything may take that has to happen.
const patience = 30 * time.Second

// api keeps HTTPRoutes, and refuses patches as it is told.
type api struct {
	*httptest.Server
	mu      sync.Mutex
	routes  map[string]*gatewayv1.HTTPRoute
	version int
	gets    int
	refuse  []int         // the answers to the next patches; 0 takes one
	patched chan string   // names, as patches are taken or refused
	meddle  func()        // called between a get and its patch, once; the lock is held
	hang    chan struct{} // until it is closed, gets are not answered
}

func newAPI(t *testing.T) *api {
	a := &api{routes: map[string]*gatewayv1.HTTPRoute{}, patched: make(chan string, 1000)}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// put stores a route of a generation.
func (a *api) put(name string, generation int64, parents ...gatewayv1.RouteParentStatus) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.store(name, generation, parents...)
}

func (a *api) store(name string, generation int64, parents ...gatewayv1.RouteParentStatus) {
	a.version++
	o := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Generation: generation, ResourceVersion: time.Duration(a.version).String()}}
	o.Status.Parents = parents
	a.routes[name] = o
}

func (a *api) route(name string) *gatewayv1.HTTPRoute {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.routes[name].DeepCopy()
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.Split(strings.TrimSuffix(r.URL.Path, "/status"), "/")[7]
	a.mu.Lock()
	hang := a.hang
	a.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-r.Context().Done():
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	o, ok := a.routes[name]
	switch {
	case !ok:
		answer(w, http.StatusNotFound, name)
	case r.Method == http.MethodGet:
		a.gets++
		_ = json.NewEncoder(w).Encode(o)
		if a.meddle != nil {
			a.meddle()
			a.meddle = nil
		}
	default:
		answer(w, a.patch(o, r), name)
		a.patched <- name
	}
}

// patch returns the status of the answer.
func (a *api) patch(o *gatewayv1.HTTPRoute, r *http.Request) int {
	if len(a.refuse) > 0 {
		status := a.refuse[0]
		if a.refuse = a.refuse[1:]; status != 0 {
			return status
		}
	}
	var p gatewayv1.HTTPRoute
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		return http.StatusBadRequest
	}
	if p.ResourceVersion != o.ResourceVersion {
		return http.StatusConflict
	}
	a.store(o.Name, o.Generation, p.Status.Parents...)
	return http.StatusOK
}

func answer(w http.ResponseWriter, code int, name string) {
	w.WriteHeader(code)
	if code == http.StatusOK {
		_, _ = w.Write([]byte("{}"))
		return
	}
	_ = json.NewEncoder(w).Encode(apierrors.NewGenericServerResponse(code, "patch", schema.GroupResource{Resource: "httproutes"}, name, "says the test", 0, true).Status())
}

// start runs a writer.
func start(t *testing.T, a *api) (*kube.Writer, *prometheus.Registry) {
	registry := prometheus.NewRegistry()
	transport := &http.Transport{DialContext: (&net.Dialer{}).DialContext}
	w, err := kube.New(kube.Options{Config: &rest.Config{Host: a.URL, Transport: transport}, Logger: zap.NewNop(), Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
	})
	return w, registry
}

// parent is an entry of ours, or of another controller.
func parent(gateway, controller, reason string) gatewayv1.RouteParentStatus {
	return gatewayv1.RouteParentStatus{
		ParentRef: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(gateway)}, ControllerName: gatewayv1.GatewayController(controller),
		Conditions: []metav1.Condition{{Type: "Accepted", Status: metav1.ConditionTrue, Reason: reason, Message: "m"}},
	}
}

func ours(reason string) gatewayv1.RouteParentStatus {
	return parent("gw", translator.ControllerName, reason)
}

func says(name string, generation int64, parents ...gatewayv1.RouteParentStatus) translator.Status {
	return translator.Status{
		Ref: source.Ref{Kind: source.KindHTTPRoute, Namespace: "default", Name: name}, Generation: generation,
		HTTPRoute: &gatewayv1.HTTPRouteStatus{RouteStatus: gatewayv1.RouteStatus{Parents: parents}},
	}
}

// expect waits for patches, of these routes in any order.
func (a *api) expect(t *testing.T, names ...string) {
	t.Helper()
	want := map[string]int{}
	for _, n := range names {
		want[n]++
	}
	got := map[string]int{}
	for range names {
		select {
		case name := <-a.patched:
			got[name]++
		case <-time.After(patience):
			t.Fatalf("patched: %v, want %v", got, want)
		}
	}
	if !maps.Equal(want, got) {
		t.Fatalf("patched: %v, want %v", got, want)
	}
}

// counted waits until the writer has counted so many results of a kind.
func counted(t *testing.T, registry *prometheus.Registry, result string, n float64) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got float64
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "result" && l.GetValue() == result {
						got += m.GetCounter().GetValue()
					}
				}
			}
		}
		if got >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v results %q, want %v", got, result, n)
		}
	}
}

func reasonsOf(o *gatewayv1.HTTPRoute) (out []string) {
	for _, p := range o.Status.Parents {
		out = append(out, string(p.ControllerName)+" "+p.Conditions[0].Reason)
	}
	return out
}

func wantReason(t *testing.T, a *api, name, reason string) {
	t.Helper()
	if got := reasonsOf(a.route(name)); len(got) != 1 || !strings.HasSuffix(got[0], " "+reason) {
		t.Errorf("%s says %q, want %s", name, got, reason)
	}
}

// Only the leader writes; a new one writes all that differs, and nothing else.
func TestLeader(t *testing.T) {
	a := newAPI(t)
	w, registry := start(t, a)
	a.put("a", 1)
	a.put("b", 1, ours("B"))
	w.Write([]translator.Status{says("a", 1, ours("A")), says("b", 1, ours("B")), says("gone", 1, ours("C"))})
	w.Lead(false)
	w.Lead(true)
	a.expect(t, "a")
	counted(t, registry, "same", 2)
	if a.gets != 2 {
		t.Errorf("%d routes were read, want 2", a.gets)
	}
	w.Lead(false)
	w.Write([]translator.Status{says("a", 1, ours("A2"))})
	w.Lead(true)
	a.expect(t, "a")
	wantReason(t, a, "a", "A2")
}

// A status of another generation than the object's is not written: a newer one is on its
// way.
func TestGenerations(t *testing.T) {
	for _, test := range []struct {
		name         string
		object, says int64
	}{{"the object has been changed since", 3, 2}, {"the object has been made anew since", 1, 5}} {
		t.Run(test.name, func(t *testing.T) {
			a := newAPI(t)
			w, registry := start(t, a)
			w.Lead(true)
			a.put("a", test.object)
			w.Write([]translator.Status{says("a", test.says, ours("Old"))})
			counted(t, registry, "same", 1)
			w.Write([]translator.Status{says("a", test.object, ours("New"))})
			a.expect(t, "a")
			wantReason(t, a, "a", "New")
		})
	}
}

// A write that comes between makes a conflict, and what came between stays.
func TestConflict(t *testing.T) {
	a := newAPI(t)
	w, registry := start(t, a)
	w.Lead(true)
	a.put("a", 1)
	a.mu.Lock()
	a.meddle = func() { a.store("a", 1, parent("gw", "example.com/other", "Theirs")) }
	a.mu.Unlock()
	w.Write([]translator.Status{says("a", 1, ours("Ours"))})
	a.expect(t, "a", "a")
	counted(t, registry, "conflict", 1)
	if got := reasonsOf(a.route("a")); len(got) != 2 || got[0] != "example.com/other Theirs" || !strings.HasSuffix(got[1], " Ours") {
		t.Errorf("parents %q", got)
	}
}

// Failures are tried again, refusals are not: until the status is another one.
func TestFailures(t *testing.T) {
	a := newAPI(t)
	w, registry := start(t, a)
	w.Lead(true)
	a.put("a", 1)
	a.refuse = []int{http.StatusInternalServerError, http.StatusForbidden, 0, http.StatusUnprocessableEntity}
	w.Write([]translator.Status{says("a", 1, ours("A"))})
	a.expect(t, "a", "a", "a")
	wantReason(t, a, "a", "A")
	w.Write([]translator.Status{says("a", 1, ours("Refused"))})
	a.expect(t, "a")
	counted(t, registry, "error", 3)
	wantReason(t, a, "a", "A")
	w.Write([]translator.Status{says("a", 1, ours("B"))})
	a.expect(t, "a")
	wantReason(t, a, "a", "B")
}

// What comes while an object is being written, or may not be written yet, is written in
// the end, and only the newest.
func TestNewestWins(t *testing.T) {
	a := newAPI(t)
	w, _ := start(t, a)
	w.Lead(true)
	a.put("a", 1)
	hang := make(chan struct{})
	a.hang = hang
	w.Write([]translator.Status{says("a", 1, ours("R0"))})
	for range 100 {
		w.Write([]translator.Status{says("a", 1, ours("Between"))})
	}
	w.Write([]translator.Status{says("a", 1, ours("Last"))})
	close(hang)
	for reason := ""; reason != "Last"; {
		a.expect(t, "a")
		reason = a.route("a").Status.Parents[0].Conditions[0].Reason
	}
	if a.gets > 3 {
		t.Errorf("%d reads of one object", a.gets)
	}
}

// An object that somebody has overwritten is written again, by the leader.
func TestOverwritten(t *testing.T) {
	a := newAPI(t)
	w, registry := start(t, a)
	w.Lead(true)
	a.put("a", 1)
	w.Write([]translator.Status{says("a", 1, ours("A"))})
	a.expect(t, "a")
	w.Observe(a.route("a")) // its own write comes back
	a.put("a", 1, parent("gw", "example.com/other", "Theirs"))
	w.Observe(a.route("a"))
	a.expect(t, "a")
	if got := reasonsOf(a.route("a")); len(got) != 2 {
		t.Errorf("parents %q", got)
	}
	a.put("b", 1, ours("Unknown"))
	w.Observe(a.route("b")) // nothing is known of it yet
	a.put("a", 2)
	w.Observe(a.route("a")) // what is wanted is of an older generation
	counted(t, registry, "written", 2)
	if a.gets != 2 {
		t.Errorf("%d reads, want one for each write", a.gets)
	}
}

// A route that has left us keeps nothing of ours, and is forgotten when it is gone.
func TestLeft(t *testing.T) {
	a := newAPI(t)
	w, registry := start(t, a)
	w.Lead(true)
	a.put("a", 1, parent("gw", "example.com/other", "Theirs"), ours("A"))
	w.Write([]translator.Status{says("a", 1)})
	a.expect(t, "a")
	if got := reasonsOf(a.route("a")); len(got) != 1 || got[0] != "example.com/other Theirs" {
		t.Errorf("parents %q", got)
	}
	a.mu.Lock()
	delete(a.routes, "a")
	a.mu.Unlock()
	w.Write([]translator.Status{{Ref: source.Ref{Kind: source.KindHTTPRoute, Namespace: "default", Name: "a"}}})
	counted(t, registry, "same", 1)
}
