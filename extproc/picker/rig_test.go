package picker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/template"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"signalbox.dev/extproc/contract"
)

// bootstrap is a listener in the shape that the translator gives it: the pickers' filter
// asks nobody, the routes to pools say whom.
var bootstrap = template.Must(template.New("bootstrap").Parse(`
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: front
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    per_connection_buffer_limit_bytes: 4194304
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: AUTO
          http_protocol_options: {enable_trailers: true}
          http_filters:
          - name: picker
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: {envoy_grpc: {cluster_name: extproc}, timeout: 0s}
              route_cache_action: RETAIN
              allow_content_length_header: true
              status_on_error: {code: ServiceUnavailable}
              message_timeout: 30s
              processing_mode: {request_header_mode: SKIP, request_body_mode: NONE, request_trailer_mode: SKIP, response_header_mode: SKIP, response_body_mode: NONE, response_trailer_mode: SKIP}
              metadata_options:
                forwarding_namespaces: {untyped: [envoy.lb, envoy.lb.subset_hint]}
                receiving_namespaces: {untyped: [envoy.lb]}
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
{{- range .Routes}}
              - match: {path_separated_prefix: /{{.Name}}}
                route: {cluster: {{if .Picker.FailOpen}}pool-open{{else}}pool-close{{end}}, timeout: 0s, idle_timeout: {{.Idle}}}
                typed_per_filter_config:
                  picker:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute
                    overrides:
                      failure_mode_allow: {{.Picker.FailOpen}}
                      grpc_initial_metadata:
{{- range .Picker.Metadata}}
                      - {key: {{index . 0}}, value: "{{index . 1}}"}
{{- end}}
                      processing_mode: {request_header_mode: SEND, request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND, {{.Mode}}}
{{- end}}
  clusters:
{{- range $pool := .Pools}}
  - name: pool-{{$pool}}
    load_assignment: {cluster_name: pool-{{$pool}}, endpoints: [{lb_endpoints: [{{range $.Pods}}{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.}}}}}},{{end}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        use_downstream_protocol_config: {http_protocol_options: {enable_trailers: true}, http2_protocol_options: {}}
    load_balancing_policy:
      policies:
      - typed_extension_config:
          name: envoy.load_balancing_policies.override_host
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost
            override_host_sources: [{metadata: {key: envoy.lb, path: [{key: x-gateway-destination-endpoint}]}}]
            selected_host_key: {key: envoy.lb, path: [{key: x-gateway-destination-endpoint-served}]}
            fallback_policy:
              policies:
{{- if eq $pool "open"}}
              - typed_extension_config: {name: envoy.load_balancing_policies.round_robin, typed_config: {"@type": type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin}}
{{- else}}
              - typed_extension_config:
                  name: envoy.load_balancing_policies.subset
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.subset.v3.Subset
                    fallback_policy: NO_FALLBACK
                    subset_selectors: [{keys: [signalbox.none], fallback_policy: NO_FALLBACK}]
                    subset_lb_policy: {policies: [{typed_extension_config: {name: envoy.load_balancing_policies.round_robin, typed_config: {"@type": type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin}}}]}
{{- end}}
{{- end}}
  - name: extproc
    load_assignment: {cluster_name: extproc, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Relay}}}}}}]}]}
    circuit_breakers: {thresholds: [{max_requests: 1000000, max_pending_requests: 1000000, max_connections: 1000000}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
`))

// route is a route to a pool, at /Name.
type route struct {
	Name   string
	Picker contract.Picker
	Idle   string // its idle_timeout
}

// Mode is what Envoy sends of the response.
func (r route) Mode() string {
	switch r.Picker.Response {
	case contract.ResponseHeaders:
		return "response_header_mode: SEND, response_body_mode: NONE, response_trailer_mode: SKIP"
	case contract.ResponseNone:
		return "response_header_mode: SKIP, response_body_mode: NONE, response_trailer_mode: SKIP"
	}
	return "response_header_mode: SEND, response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND"
}

// rig is a real Envoy with the relay beside it and two pods behind it.
type rig struct {
	*gateway
	front  string
	pods   [2]*httptest.Server
	h1, h2 *http.Client

	begun atomic.Int64 // requests that a pod began to read

	mu   sync.Mutex
	seen []received // by the pods
}

// received is what a pod says about a request.
type received struct {
	Pod, Digest, Trailer, Destination, Length string
	Whole                                     bool
	Cookies, Multi, New                       []string
}

func newRig(t *testing.T, routes func(r *rig) []route) *rig {
	t.Helper()
	r := &rig{}
	for i := range r.pods {
		r.pods[i] = httptest.NewUnstartedServer(http.HandlerFunc(r.pod))
		r.pods[i].Config.Protocols = new(http.Protocols)
		r.pods[i].Config.Protocols.SetHTTP1(true)
		r.pods[i].Config.Protocols.SetUnencryptedHTTP2(true)
		r.pods[i].Start()
		t.Cleanup(r.pods[i].Close)
	}
	r.gateway = newGateway(t, Config{})
	relay := listen(t, func(s extprocv3.ExternalProcessor_ProcessServer) error { return r.Serve(s) }, grpc.MaxRecvMsgSize(64<<20))
	var conf bytes.Buffer
	if err := bootstrap.Execute(&conf, map[string]any{"Routes": routes(r), "Pools": []string{"open", "close"}, "Relay": port(relay),
		"Pods": []string{port(r.picked()), port(r.pods[1].Listener.Addr().String())}}); err != nil {
		t.Fatal(err)
	}
	r.startEnvoy(t, conf.Bytes())
	one, two := &http.Transport{DisableCompression: true}, &http.Transport{DisableCompression: true, Protocols: new(http.Protocols)}
	two.Protocols.SetUnencryptedHTTP2(true)
	r.h1, r.h2 = &http.Client{Transport: one}, &http.Client{Transport: two}
	t.Cleanup(func() { one.CloseIdleConnections(); two.CloseIdleConnections() })
	return r
}

func port(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }

// picked is the pod that the pickers of the tests pick.
func (r *rig) picked() string { return r.pods[0].Listener.Addr().String() }

// pod answers what it received, or a token stream that the client paces: each further
// byte of the body lets one event go.
func (r *rig) pod(w http.ResponseWriter, req *http.Request) {
	if strings.HasSuffix(req.URL.Path, "/sse") {
		sse(w, req)
		return
	}
	r.begun.Add(1)
	hash := sha256.New()
	_, err := io.Copy(hash, req.Body)
	got := received{Pod: req.Context().Value(http.LocalAddrContextKey).(net.Addr).String(), Digest: hex.EncodeToString(hash.Sum(nil)),
		Whole: err == nil, Trailer: req.Trailer.Get("X-Tail"), Destination: req.Header.Get(contract.KeyDestination),
		Length: req.Header.Get("Content-Length"), Cookies: req.Header.Values("Cookie"), Multi: req.Header.Values("X-Multi"), New: req.Header.Values("X-New")}
	if req.ContentLength >= 0 && req.Method == http.MethodPost {
		got.Length = fmt.Sprint(req.ContentLength)
	}
	r.mu.Lock()
	r.seen = append(r.seen, got)
	r.mu.Unlock()
	w.Header().Add("Set-Cookie", "a=1")
	w.Header().Add("Set-Cookie", "b=2")
	w.Header().Set("Trailer", "X-Done")
	_ = json.NewEncoder(w).Encode(got)
	w.Header().Set("X-Done", "yes")
}

const events = 30

// sse sends events; the test lets each go on.
func sse(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	_ = http.NewResponseController(w).Flush()
	next := tickets[req.URL.Query().Get("ticket")]
	for i := range events {
		select {
		case <-next:
		case <-req.Context().Done():
			return
		}
		fmt.Fprintf(w, "data: %d\n\n", i)
		_ = http.NewResponseController(w).Flush()
	}
}

// tickets are what token streams wait for, by name.
var tickets = map[string]chan struct{}{}

// ticket makes one; it is only written before requests use it.
func ticket(t *testing.T) string {
	tickets[t.Name()] = make(chan struct{}, events)
	return t.Name()
}

func (r *rig) podsSaw() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.seen
	r.seen = nil
	return out
}

func (r *rig) startEnvoy(t *testing.T, conf []byte) {
	t.Helper()
	dir := t.TempDir()
	file, admin := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoyPath(t), "-c", file, "--admin-address-path", admin, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warn")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("Envoy said:\n%s", stderr.String())
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(20 * time.Second); r.front == ""; {
		select {
		case <-tick.C:
			r.front = listenerOf(admin)
		case <-exited:
			t.Fatal("Envoy exited")
		case <-end:
			t.Fatal("Envoy does not listen")
		}
	}
}

// listenerOf asks Envoy's admin where it listens; "" if it does not yet.
func listenerOf(adminFile string) string {
	admin, err := os.ReadFile(adminFile)
	if err != nil || len(admin) == 0 {
		return ""
	}
	for _, path := range []string{"/ready", "/listeners"} {
		resp, err := http.Get("http://" + string(admin) + path)
		if err != nil {
			return ""
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return ""
		}
		if _, addr, ok := strings.Cut(string(b), "front::"); ok {
			return "http://" + strings.TrimSpace(addr)
		}
	}
	return ""
}

// envoyPath finds the Envoy to test with.
func envoyPath(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("ENVOY"); p != "" {
		return p
	}
	if found, _ := filepath.Glob("../../.bin/envoy-*/envoy"); len(found) > 0 {
		return found[len(found)-1]
	}
	p, err := exec.LookPath("envoy")
	if err != nil {
		t.Fatal("no Envoy: run `make envoy`, or set ENVOY to the path of one")
	}
	return p
}

// childPicker is set in the environment of a process that is only a picker: one that can
// be killed and stopped.
const childPicker = "SIGNALBOX_TEST_PICKER"

// child starts a picker as a process of its own that picks endpoint.
func child(t *testing.T, endpoint string) (string, *os.Process) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childPicker+"="+endpoint)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line), cmd.Process
}

// beChild is that process.
func beChild(endpoint string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	srv := grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(srv, processor{f: (&scripted{endpoint: endpoint}).process})
	fmt.Println(l.Addr())
	_ = srv.Serve(l)
}
