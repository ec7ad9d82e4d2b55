package drain

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
)

const config = `
admin: {address: {pipe: {path: %q}}}
static_resources:
  listeners:
  - name: clients
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: clients
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: backend, timeout: 0s}}]}]}
  clusters:
  - name: backend
    load_assignment: {cluster_name: backend, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}
`

// rig is a real Envoy with a backend that answers /slow when it is told to.
type rig struct {
	t       *testing.T
	admin   string
	url     string
	release chan struct{}
	started chan struct{}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	envoy := os.Getenv("ENVOY")
	if found, _ := filepath.Glob("../../.bin/envoy-*/envoy"); envoy == "" && len(found) > 0 {
		envoy = found[0]
	}
	if envoy == "" {
		t.Fatal("no Envoy: set ENVOY, or run make envoy")
	}
	r := &rig{t: t, release: make(chan struct{}), started: make(chan struct{}, 8)}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			r.started <- struct{}{}
			<-r.release
		}
		fmt.Fprint(w, "whole")
	}))
	t.Cleanup(backend.Close)
	dir, err := os.MkdirTemp("", "drain") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	_, port, _ := net.SplitHostPort(backend.Listener.Addr().String())
	socket := filepath.Join(dir, "admin.sock")
	r.admin = "unix:" + socket
	path := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, config, socket, port), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoy, "-c", path, "--disable-hot-restart", "--log-level", "off", "--concurrency", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	r.url = "http://" + r.address()
	return r
}

// address waits until Envoy listens and returns where.
func (r *rig) address() string {
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var listeners struct {
			ListenerStatuses []struct {
				LocalAddress struct {
					SocketAddress struct {
						Address string `json:"address"`
						Port    int    `json:"port_value"`
					} `json:"socket_address"`
				} `json:"local_address"`
			} `json:"listener_statuses"`
		}
		b, err := admin(r.admin).ask(ctx, http.MethodGet, "/listeners?format=json")
		if err == nil && json.Unmarshal(b, &listeners) == nil && len(listeners.ListenerStatuses) > 0 {
			a := listeners.ListenerStatuses[0].LocalAddress.SocketAddress
			return fmt.Sprintf("%s:%d", a.Address, a.Port)
		}
		select {
		case <-ctx.Done():
			r.t.Fatalf("Envoy does not listen: %v", err)
		case <-tick.C:
		}
	}
}

// get asks on a connection of its own, or on the given one.
func (r *rig) get(c net.Conn, path string) (*http.Response, error) {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(c), nil)
}

func (r *rig) dial() net.Conn {
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// drained runs Run and returns what is closed when it has returned.
func (r *rig) drained(o Options) <-chan struct{} {
	o.Admin, o.Logger = r.admin, zaptest.NewLogger(r.t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := Run(r.t.Context(), o); err != nil {
			r.t.Error(err)
		}
	}()
	r.t.Cleanup(func() { <-done })
	return done
}

func is(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// A request in flight ends whole, with an answer that closes its connection; one that
// comes after the start is still served; then Run returns and says so.
func TestRequestsEnd(t *testing.T) {
	r := newRig(t)
	slow := make(chan error, 1)
	go func() {
		resp, err := http.Get(r.url + "/slow")
		if err == nil {
			if resp.StatusCode != http.StatusOK || !resp.Close {
				err = fmt.Errorf("status %d, closed %v", resp.StatusCode, resp.Close)
			}
			resp.Body.Close()
		}
		slow <- err
	}()
	<-r.started
	file := filepath.Join(t.TempDir(), "drained")
	done := r.drained(Options{Propagation: time.Millisecond, Quiet: time.Hour, Timeout: time.Minute, Done: file})
	asked := make(chan int, 1)
	waiting := httptest.NewServer(Handler(file))
	defer waiting.Close()
	go func() {
		resp, err := http.Get(waiting.URL)
		if err == nil {
			resp.Body.Close()
			asked <- resp.StatusCode
		}
	}()
	var last *http.Response
	for last == nil || !last.Close { // until Envoy drains
		resp, err := r.get(r.dial(), "/")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("a request while it drains: %v, %v", resp, err)
		}
		last = resp
	}
	if is(done) {
		t.Error("Run has returned with a request in flight")
	}
	close(r.release)
	if err := <-slow; err != nil {
		t.Errorf("the request in flight: %v", err)
	}
	<-done
	if status := <-asked; status != http.StatusOK {
		t.Errorf("GET /drained answered %d", status)
	}
}

// A connection that nobody uses holds up the end for as long as Quiet, not for ever.
func TestSilentConnection(t *testing.T) {
	r := newRig(t)
	if _, err := r.get(r.dial(), "/"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	<-r.drained(Options{Propagation: time.Millisecond, Quiet: time.Second, Timeout: time.Minute})
	if took := time.Since(start); took < time.Second {
		t.Errorf("it took %v; the connection was not waited for", took)
	}
}

func TestTimeout(t *testing.T) {
	r := newRig(t)
	go http.Get(r.url + "/slow")
	<-r.started
	defer close(r.release)
	<-r.drained(Options{Propagation: time.Millisecond, Quiet: time.Hour, Timeout: time.Second})
}

// An Envoy that has ended by itself needs no drain; whoever waits must not wait.
func TestNoEnvoy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "drained")
	if err := Run(t.Context(), Options{Admin: "unix:" + filepath.Join(t.TempDir(), "none"), Timeout: time.Minute, Done: file, Logger: zaptest.NewLogger(t)}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
