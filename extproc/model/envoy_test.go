package model_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
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
	"testing"
	"text/template"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/net/http2"

	"signalbox.dev/extproc"
	"signalbox.dev/extproc/contract"
)

const holdLimit = 1 << 20

// bootstrap is one listener as the translator makes it: routing headers of clients
// removed, the extractor enabled by the virtual host, routes by model, routes by
// error, and one that looks at no model.
var bootstrap = template.Must(template.New("bootstrap").Parse(`
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: front
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    per_connection_buffer_limit_bytes: {{.HoldLimit}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: AUTO
          http_protocol_options: {enable_trailers: true}
          http2_protocol_options: {initial_stream_window_size: {{.HoldLimit}}}
          early_header_mutation_extensions:
          - name: strip
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
              mutations: [{remove: x-gateway-model-name}, {remove: x-signalbox-model-error}]
          http_filters:
          - name: extractor
            disabled: true
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service:
                envoy_grpc: {cluster_name: extractor}
                timeout: 0s
                initial_metadata: [{key: x-signalbox-part, value: model}, {key: x-signalbox-hold-limit, value: "{{.HoldLimit}}"}]
              processing_mode: {request_header_mode: SEND, request_body_mode: STREAMED, request_trailer_mode: SKIP, response_header_mode: SKIP, response_body_mode: NONE, response_trailer_mode: SKIP}
              send_body_without_waiting_for_header_response: true
              allow_content_length_header: true
              status_on_error: {code: 503}
              message_timeout: 15s
              forward_rules: {allowed_headers: {patterns: [{exact: ":method"}, {exact: content-type}, {exact: content-encoding}, {exact: content-length}]}}
              mutation_rules: {disallow_all: true, allow_expression: {regex: "x-gateway-model-name|x-signalbox-model-error|content-type"}, disallow_is_error: true}
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            name: routes
            virtual_hosts:
            - name: all
              domains: ["*"]
              typed_per_filter_config:
                extractor:
                  "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
                  config: {"@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute, overrides: {}}
              routes:
              - match: {prefix: /, headers: [{name: x-gateway-model-name, string_match: {exact: llama}}]}
                route: {cluster: backend, timeout: 0s}
              - match: {prefix: /plain}
                route: {cluster: backend, timeout: 0s}
              - match: {prefix: /any, headers: [{name: x-gateway-model-name, present_match: true}]}
                route: {cluster: backend, timeout: 0s}
{{- range .Failures}}
              - match: {prefix: /, headers: [{name: x-signalbox-model-error, string_match: {exact: {{.Code}}}}]}
                direct_response: {status: {{.Status}}, body: {inline_string: {{.Code}}}}
{{- end}}
              - match: {prefix: /}
                direct_response: {status: 404}
  clusters:
  - name: backend
    load_assignment: {cluster_name: backend, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.BackendPort}}}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http_protocol_options: {enable_trailers: true}}
  - name: extractor
    load_assignment: {cluster_name: extractor, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: {{.Socket}}}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
`))

// received is what the backend says about a request.
type received struct {
	Digest, Model, Spoof, Trailer string
	Bytes                         int64
	Chunked                       bool
}

// rig is an Envoy with the extractor beside it and a backend behind it.
type rig struct {
	front string
	whole chan bool // per request that reached the backend: whether its body was whole
}

func (r *rig) backend(w http.ResponseWriter, req *http.Request) {
	hash := sha256.New()
	n, err := io.Copy(hash, req.Body)
	r.whole <- err == nil
	if err != nil {
		return
	}
	_ = json.NewEncoder(w).Encode(received{
		Digest: hex.EncodeToString(hash.Sum(nil)), Bytes: n, Chunked: req.ContentLength < 0,
		Model: strings.Join(req.Header.Values(contract.HeaderModel), "|"), Spoof: req.Header.Get(contract.HeaderModelError),
		Trailer: req.Trailer.Get("X-Tail"),
	})
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
		t.Fatal("no Envoy: run `scripts/fetch-envoy 1.40.0`, or set ENVOY to the path of one")
	}
	return p
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "sb") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{whole: make(chan bool, 1000)}
	backend := httptest.NewServer(http.HandlerFunc(r.backend))
	t.Cleanup(backend.Close)
	socket := filepath.Join(dir, "extproc")
	serveExtractor(t, socket)
	var conf bytes.Buffer
	if err := bootstrap.Execute(&conf, map[string]any{"HoldLimit": holdLimit, "Socket": socket, "Failures": contract.Failures,
		"BackendPort": backend.Listener.Addr().(*net.TCPAddr).Port}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, conf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	r.startEnvoy(t, dir, file)
	return r
}

func serveExtractor(t *testing.T, socket string) {
	t.Helper()
	server, err := extproc.New(extproc.Config{Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l, err := extproc.Listen(ctx, "unix:"+socket, false)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// startEnvoy starts Envoy and waits until it listens.
func (r *rig) startEnvoy(t *testing.T, dir, file string) {
	t.Helper()
	admin := filepath.Join(dir, "admin")
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
	for tick := time.NewTicker(20 * time.Millisecond); r.front == ""; {
		select {
		case <-exited:
			t.Fatalf("Envoy exited:\n%s", stderr.String())
		case <-tick.C:
			r.findFront(admin)
		}
	}
}

func (r *rig) findFront(adminFile string) {
	address, err := os.ReadFile(adminFile)
	if err != nil {
		return
	}
	resp, err := http.Get("http://" + string(address) + "/listeners")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	if line, err := io.ReadAll(resp.Body); err == nil {
		if _, at, ok := strings.Cut(string(line), "front::"); ok {
			r.front = strings.TrimSpace(at)
		}
	}
}

// client makes requests in one of the ways a body can be framed.
type client struct {
	name    string
	http    *http.Client
	chunked bool
	trailer bool
}

func clients(t *testing.T) []client {
	h1 := &http.Client{Transport: &http.Transport{}}
	h2 := &http.Client{Transport: &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}}
	t.Cleanup(h1.CloseIdleConnections)
	t.Cleanup(h2.CloseIdleConnections)
	return []client{
		{name: "h1", http: h1}, {name: "h1 chunked", http: h1, chunked: true}, {name: "h1 trailers", http: h1, chunked: true, trailer: true},
		{name: "h2", http: h2}, {name: "h2 without length", http: h2, chunked: true}, {name: "h2 trailers", http: h2, chunked: true, trailer: true},
	}
}

// post sends body and returns the status and what the backend, or else Envoy, said.
func (r *rig) post(t *testing.T, c client, path, contentType string, body []byte) (int, received, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.front+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if c.chunked {
		req.ContentLength, req.Body = -1, io.NopCloser(bytes.NewReader(body))
	}
	if c.trailer {
		req.Trailer = http.Header{"X-Tail": {"end"}}
	}
	req.Header["Content-Type"] = []string{contentType}
	if contentType == "" {
		delete(req.Header, "Content-Type")
	}
	req.Header.Set(contract.HeaderModel, "spoofed")
	req.Header.Set(contract.HeaderModelError, "spoofed")
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s, %d bytes: %v", c.name, path, len(body), err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var got received
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(answer, &got); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode, got, string(answer)
}

// passed checks that the backend got body whole.
func passed(t *testing.T, c client, body []byte, status int, got received, answer, model string) {
	t.Helper()
	digest := sha256.Sum256(body)
	want := received{Digest: hex.EncodeToString(digest[:]), Bytes: int64(len(body)), Model: model, Chunked: c.chunked, Spoof: got.Spoof}
	if c.trailer {
		want.Trailer = "end"
	}
	if model != "" && got.Spoof != "" {
		t.Errorf("the backend saw %s: %q", contract.HeaderModelError, got.Spoof)
	}
	if status != http.StatusOK || got != want {
		t.Errorf("%d bytes: status %d %+v %s\nwant %+v", len(body), status, got, answer, want)
	}
}

// chat is a request of exactly n bytes, if it can be.
func chat(n int, first bool) []byte {
	const model = `"model":"llama"`
	head, tail := `{`+model+`,"prompt":"`, `"}`
	if !first {
		head, tail = `{"prompt":"`, `",`+model+`}`
	}
	fill := max(0, n-len(head)-len(tail))
	return []byte(head + strings.Repeat("Lorem ipsum. ", fill/13+1)[:fill] + tail)
}

// TestEnvoySizes sends bodies of every size in every framing. What Envoy can hold
// passes wherever the model stands; beyond that the model has to come first.
func TestEnvoySizes(t *testing.T) {
	r := newRig(t)
	sizes := []int{1, 1000, 16 << 10, 64 << 10, 256 << 10, holdLimit - 1, holdLimit, holdLimit + 1, holdLimit + 2, 5 * holdLimit / 4, 4 << 20, 16 << 20}
	for _, c := range clients(t) {
		t.Run(c.name, func(t *testing.T) {
			for _, n := range sizes {
				for _, first := range []bool{true, false} {
					body := chat(n, first)
					status, got, answer := r.post(t, c, "/v1/chat/completions", "application/json", body)
					if !first && len(body)-len("}") > holdLimit {
						if status != http.StatusRequestEntityTooLarge || !strings.Contains(answer, string(contract.BodyTooLarge)) {
							t.Errorf("%d bytes, model last: status %d %s; want 413", len(body), status, answer)
						}
						continue
					}
					passed(t, c, body, status, got, answer, "llama")
				}
			}
			if c.trailer {
				return // Envoy tells nobody of trailers without a body before the headers are answered
			}
			if status, _, answer := r.post(t, c, "/v1/chat/completions", "application/json", nil); status != http.StatusBadRequest {
				t.Errorf("no body: status %d %s; want 400", status, answer)
			}
		})
	}
}

// TestEnvoyPlain: a route that looks at no model gets every body as it is.
func TestEnvoyPlain(t *testing.T) {
	r := newRig(t)
	for _, c := range clients(t) {
		for _, body := range [][]byte{[]byte("not JSON"), bytes.Repeat([]byte(`[1,2]`), 1<<20), []byte(`{"prompt":"` + strings.Repeat("x", 8<<20) + `"}`)} {
			for _, contentType := range []string{"application/json", "text/plain"} {
				t.Run(fmt.Sprintf("%s %s %d", c.name, contentType, len(body)), func(t *testing.T) {
					status, got, answer := r.post(t, c, "/plain", contentType, body)
					passed(t, c, body, status, got, answer, "")
				})
			}
		}
	}
}

// TestEnvoyCorpus: each body of the corpus is read through Envoy as its index says.
func TestEnvoyCorpus(t *testing.T) {
	r := newRig(t)
	index, err := os.ReadFile("../../testdata/bodies/index.tsv")
	if err != nil {
		t.Fatal(err)
	}
	c := clients(t)[0]
	for line := range strings.Lines(string(index)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if strings.HasPrefix(line, "#") {
			continue
		}
		t.Run(f[0], func(t *testing.T) {
			body, err := os.ReadFile(filepath.Join("../../testdata/bodies", f[0]))
			if err != nil {
				t.Fatal(err)
			}
			status, got, answer := r.post(t, c, "/any", f[1], body)
			verdict := "error=" + answer
			if status == http.StatusOK {
				passed(t, c, body, status, got, answer, got.Model)
				verdict = "model=" + got.Model
			}
			if verdict != f[2] {
				t.Errorf("status %d, %s; want %s", status, verdict, f[2])
			}
		})
	}
}

// TestEnvoyLate: what is wrong after the request was released ends it, and the
// backend never gets a whole body.
func TestEnvoyLate(t *testing.T) {
	r := newRig(t)
	start := strings.TrimSuffix(string(chat(5<<20, true)), "}")
	for _, c := range clients(t) {
		if c.trailer {
			continue // Envoy does not say that the body is over: TestEnvoySizes has them
		}
		for _, late := range []struct {
			tail string
			code contract.ErrorCode
		}{
			{`,"model":"evil"}`, contract.DuplicateModel},
			{`,"model":1}`, contract.InvalidModel},
			{`,]`, contract.InvalidJSON},
			{``, contract.InvalidJSON},
		} {
			t.Run(c.name+" "+late.tail, func(t *testing.T) {
				status, _, answer := r.post(t, c, "/", "application/json", []byte(start+late.tail))
				if status != http.StatusBadRequest || !strings.Contains(answer, fmt.Sprintf(`"code":%q`, late.code)) {
					t.Errorf("status %d %s; want 400 %s", status, answer, late.code)
				}
				if <-r.whole {
					t.Error("the backend got the whole body")
				}
			})
		}
	}
}
