package kube_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"signalbox.dev/source"
	"signalbox.dev/source/kube"
	"signalbox.dev/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// api is as much of an API server as a reflector needs, and misbehaves as it is told.
type api struct {
	server   *httptest.Server
	address  string
	mu       sync.Mutex
	missing  map[string]bool  // resources that are not served
	refused  map[string]int   // resources whose lists and watches end in this status
	expired  map[string]bool  // resources whose next watch finds its place too old
	services []corev1.Service // all that there is
	watches  chan struct{}    // closed to end all watches
	away     bool             // it stops: a watch that begins now would never end
}

func newAPI(t *testing.T) *api {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &api{address: l.Addr().String(), missing: map[string]bool{}, refused: map[string]int{}, expired: map[string]bool{}, watches: make(chan struct{})}
	a.serve(l)
	t.Cleanup(func() { a.stop() })
	return a
}

func (a *api) serve(l net.Listener) {
	a.change(func() { a.away = false })
	a.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: a}}
	a.server.Start()
}

func (a *api) stop() {
	a.change(func() { a.away = true })
	a.server.CloseClientConnections()
	a.server.Close()
}

// change changes what the API server does, and ends all watches.
func (a *api) change(do func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	do()
	close(a.watches)
	a.watches = make(chan struct{})
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away {
		panic(http.ErrAbortHandler) // as if nobody listened any more
	}
	w.Header().Set("Content-Type", "application/json")
	prefix, resource := split(r.URL.Path)
	if resource == "" {
		a.discover(w, prefix)
		return
	}
	watch := r.URL.Query().Get("watch") != ""
	status := a.refused[resource]
	if watch && a.expired[resource] {
		status, a.expired[resource] = http.StatusGone, false
	}
	switch {
	case status != 0:
		w.WriteHeader(status)
		reply(w, apierrors.NewGenericServerResponse(status, r.Method, corev1.Resource(resource), "", "says the test", 0, true).Status())
	case watch:
		w.(http.Flusher).Flush()
		done := a.watches
		a.mu.Unlock()
		select {
		case <-done:
		case <-r.Context().Done():
		}
		a.mu.Lock()
	default:
		list := map[string]any{"apiVersion": strings.TrimPrefix(strings.TrimPrefix(prefix, "/apis/"), "/api/"), "metadata": metav1.ListMeta{ResourceVersion: "1"}, "items": []any{}}
		for _, k := range source.Kinds {
			if k.Resource == resource {
				list["kind"] = string(k.Kind) + "List"
			}
		}
		if resource == "services" {
			list["items"] = a.services
		}
		reply(w, list)
	}
}

// split tells "/apis/group/version" from the resource behind it.
func split(path string) (prefix, resource string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	n := 3
	if parts[0] == "api" {
		n = 2
	}
	if len(parts) > n {
		resource = parts[n]
	}
	return "/" + strings.Join(parts[:n], "/"), resource
}

func (a *api) discover(w http.ResponseWriter, prefix string) {
	list := metav1.APIResourceList{}
	for _, k := range source.Kinds {
		if gv := k.GVK.GroupVersion().String(); !a.missing[k.Resource] && (prefix == "/api/"+gv || prefix == "/apis/"+gv) {
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: k.Resource})
		}
	}
	if len(list.APIResources) == 0 {
		w.WriteHeader(http.StatusNotFound)
	}
	reply(w, list)
}

func reply(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func someServices(n int) (out []corev1.Service) {
	for i := range n {
		out = append(out, corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s%02d", i)}})
	}
	return out
}

// recheck is far above what the tests need to see nothing happen, and below patience.
const recheck = 300 * time.Millisecond

// read starts a source of the API server.
func (a *api) read(t *testing.T) (*sourcetest.Reader, *observer.ObservedLogs) {
	core, logs := observer.New(zap.InfoLevel)
	// A transport of its own ends its connections with the test.
	config := &rest.Config{Host: "http://" + a.address, QPS: -1}
	transport := &http.Transport{DialContext: (&net.Dialer{}).DialContext}
	config.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	return sourcetest.Read(t, kube.New(kube.Options{Config: config, Logger: zap.New(core), Recheck: recheck})), logs
}

func service(i int) source.Ref {
	return source.Ref{Kind: source.KindService, Namespace: "default", Name: fmt.Sprintf("s%02d", i)}
}

// A kind that may not be read holds the start back: it is not empty, it is unknown.
func TestForbiddenAtTheStart(t *testing.T) {
	a := newAPI(t)
	a.services, a.refused["httproutes"] = someServices(1), http.StatusForbidden
	r, logs := a.read(t)
	if batch := r.Next(); batch.Synced || len(r.Objects) > 0 {
		t.Errorf("synced without HTTPRoutes: %v", batch)
	}
	want := "grant signalbox list and watch on httproutes.gateway.networking.k8s.io"
	if len(r.Problems) != 1 || r.Problems[0].Where != "httproutes.gateway.networking.k8s.io" || !strings.Contains(r.Problems[0].Message, want) {
		t.Errorf("problems %v, want one with %q", r.Problems, want)
	}
	a.change(func() { delete(a.refused, "httproutes") })
	r.Sync()
	if r.Objects[service(0)] == nil || len(r.Problems) > 0 {
		t.Errorf("objects %v, problems %v", r.Objects, r.Problems)
	}
	if n := logs.FilterMessageSnippet("cannot be read").Len(); n != 1 {
		t.Errorf("%d log lines of one refusal", n)
	}
}

// A kind that may not be read any more stays as it was.
func TestForbiddenLater(t *testing.T) {
	a := newAPI(t)
	a.services = someServices(3)
	r, _ := a.read(t)
	r.Sync()
	a.change(func() { a.refused["services"] = http.StatusForbidden })
	r.Until(func() bool { return len(r.Problems) > 0 })
	if len(r.Objects) != 3 {
		t.Errorf("%d of 3 objects are left", len(r.Objects))
	}
	a.change(func() { delete(a.refused, "services"); a.services = someServices(4) })
	r.Until(func() bool { return len(r.Problems) == 0 && len(r.Objects) == 4 })
}

// Any subset of the CRDs may be there; a kind that comes is read, one that goes is empty.
func TestKindsComeAndGo(t *testing.T) {
	a := newAPI(t)
	a.services = someServices(3)
	for _, k := range source.Kinds {
		a.missing[k.Resource] = true
	}
	r, _ := a.read(t)
	r.Sync()
	if len(r.Objects)+len(r.Problems) > 0 {
		t.Errorf("objects %v, problems %v", r.Objects, r.Problems)
	}
	a.change(func() { delete(a.missing, "services") })
	r.Until(func() bool { return len(r.Objects) == 3 })
	a.change(func() { a.missing["services"], a.expired["services"] = true, true })
	r.Until(func() bool { return len(r.Objects) == 0 })
	if len(r.Problems) > 0 {
		t.Errorf("a kind that is gone is no problem: %v", r.Problems)
	}
	a.change(func() { delete(a.missing, "services") })
	r.Until(func() bool { return len(r.Objects) == 3 })
}

// An API server that is away is one problem a kind, and nothing changes.
func TestAPIServerAway(t *testing.T) {
	a := newAPI(t)
	a.services = someServices(30)
	r, logs := a.read(t)
	r.Sync()
	a.stop()
	r.Until(func() bool { return len(r.Problems) == len(source.Kinds) })
	if want := "the API server cannot be reached: "; !strings.HasPrefix(r.Problems[0].Message, want) || strings.Contains(r.Problems[0].Message, "http://") {
		t.Errorf("problem %q, want it to begin with %q and without a URL", r.Problems[0].Message, want)
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", a.address)
	if err != nil {
		t.Fatal(err)
	}
	a.serve(l)
	changes := r.Until(func() bool { return len(r.Problems) == 0 })
	if len(changes) > 0 || len(r.Objects) != 30 {
		t.Errorf("%d changes, %d of 30 objects", len(changes), len(r.Objects))
	}
	if n := logs.FilterMessageSnippet("cannot be read").Len(); n > 3*len(source.Kinds) {
		t.Errorf("%d log lines of one outage", n)
	}
}

// An API server that has suddenly lost most objects is asked again before it is believed.
func TestListWithoutMost(t *testing.T) {
	a := newAPI(t)
	a.services = someServices(30)
	r, logs := a.read(t)
	r.Sync()
	began := time.Now()
	a.change(func() { a.services, a.expired["services"] = someServices(5), true })
	r.Until(func() bool { return len(r.Objects) == 5 })
	if took := time.Since(began); took < recheck {
		t.Errorf("25 of 30 objects went after %s, want a second list first", took)
	}
	if logs.FilterMessageSnippet("not listed any more").Len() != 1 {
		t.Errorf("log: %v", logs.All())
	}
}
