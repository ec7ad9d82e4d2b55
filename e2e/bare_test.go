package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// bare is the control plane and what runs beside Envoy, each by itself, as those run
// them who have an Envoy of their own.
type bare struct {
	t       testing.TB
	dir     string // of the YAML
	admin   string // http://127.0.0.1:PORT
	metrics string // of extproc, likewise
	xds     string // IP:PORT
	ports   map[int]int
	serve   *program
}

// startBare writes the files and runs `signalbox serve` on them and `signalbox extproc`.
func startBare(t testing.TB, files map[string]string, args ...string) *bare {
	t.Helper()
	b := &bare{t: t, dir: t.TempDir(), ports: map[int]int{80: freePort(t), 81: freePort(t), 443: freePort(t)}}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	admin, metrics, extproc := local(), local(), local()
	b.admin, b.metrics, b.xds = "http://"+admin, "http://"+metrics, local()
	args = append([]string{"serve", "--source", "dir:" + b.dir, "--xds", b.xds, "--admin", admin, "--extproc", extproc, "--bind", "127.0.0.1"}, args...)
	for from, to := range b.ports {
		args = append(args, "--port", fmt.Sprintf("%d=%d", from, to))
	}
	startProgram(t, binary(t, "SIGNALBOX"), "extproc", "--listen", extproc, "--metrics", metrics)
	b.serve = startProgram(t, binary(t, "SIGNALBOX"), args...)
	return b
}

// url is where a listener's port answers.
func (b *bare) url(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", b.ports[port]) }

// bootstrap prints a bootstrap into a file, has Envoy validate it, and returns its path.
func (b *bare) bootstrap(gateway, id string, args ...string) string {
	b.t.Helper()
	args = append([]string{"bootstrap", "--gateway", gateway, "--xds", b.xds, "--id", id, "--envoy-admin", fmt.Sprintf("127.0.0.1:%d", freePort(b.t))}, args...)
	text, err := exec.Command(binary(b.t, "SIGNALBOX"), args...).Output()
	if err != nil {
		b.t.Fatal(err)
	}
	path := filepath.Join(b.t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		b.t.Fatal(err)
	}
	validateBootstrap(b.t, path)
	return path
}

func validateBootstrap(t testing.TB, path string) {
	t.Helper()
	if out, err := exec.Command(binary(t, "ENVOY"), "--mode", "validate", "-c", path).CombinedOutput(); err != nil {
		t.Errorf("envoy --mode validate: %v\n%s", err, out)
	}
}

// startEnvoy runs an Envoy on a bootstrap, as by hand.
func startEnvoy(t testing.TB, bootstrap string, args ...string) *program {
	t.Helper()
	return startProgram(t, binary(t, "ENVOY"), append([]string{"-c", bootstrap, "--disable-hot-restart", "--concurrency", "1", "--log-level", "info"}, args...)...)
}

// bareEnvoy is what /debug/xds says of one Envoy.
type bareEnvoy struct {
	Node, Cluster, Group, Stream, Step, Version string
	Types                                       map[string]struct {
		Acked                                int
		SentVersion, AckedVersion, LastError string
	}
}

// envoys returns what /debug/xds says.
func (b *bare) envoys() []bareEnvoy {
	b.t.Helper()
	var out []bareEnvoy
	getJSON(b.t, b.admin+"/debug/xds", &out)
	return out
}

func getJSON(t testing.TB, url string, into any) {
	t.Helper()
	a := get(t.Context(), url)
	if a.Err != nil || a.Status != 200 || a.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("GET %s: %d %v %s\n%s", url, a.Status, a.Err, a.Header.Get("Content-Type"), a.Body)
	}
	if err := json.Unmarshal([]byte(a.Body), into); err != nil {
		t.Fatalf("GET %s: %v\n%s", url, err, a.Body)
	}
}

// bareFiles are a Gateway default/gw that routes model llama to a pool of the pod.
func bareFiles(t testing.TB, p *pod) map[string]string {
	return map[string]string{
		"gateway.yaml": yamlGateway,
		"pool.yaml":    yamlPool("pool", startPicker(t, "pool", p), p),
		"route.yaml":   yamlRoute("llama", rule(toPool("pool"), onModel("llama"))),
	}
}

// llama says whether a chat with model llama is answered by a pod.
func (b *bare) llama(port int) bool {
	return post(b.t.Context(), b.url(port), "application/json", chat("llama")).Status == 200
}

// TestBareEnvoy starts an Envoy by hand and has it follow a change, with both variants
// of the protocol.
func TestBareEnvoy(t *testing.T) {
	t.Parallel()
	for stream, args := range map[string][]string{"delta": nil, "state of the world": {"--state-of-the-world"}} {
		t.Run(stream, func(t *testing.T) {
			t.Parallel()
			p := startPod(t, "pod")
			b := startBare(t, bareFiles(t, p))
			startEnvoy(t, b.bootstrap("default/gw", "by-hand", args...))
			waitFor(t, "the Envoy serves", func() bool { return b.llama(80) })
			waitFor(t, "the Envoy is in sync", func() bool {
				all := b.envoys()
				return len(all) == 1 && all[0].Step == "in sync"
			})
			e := b.envoys()[0]
			if e.Node != "by-hand" || e.Cluster != "default/gw" || e.Group != "default/gw" || e.Stream != stream || e.Version == "" {
				t.Errorf("/debug/xds says %+v", e)
			}
			for _, typ := range []string{"clusters", "endpoints", "listeners", "routes"} {
				if s := e.Types[typ]; s.Acked == 0 || s.AckedVersion != s.SentVersion || s.LastError != "" {
					t.Errorf("/debug/xds says of the %s: %+v", typ, s)
				}
			}
			if a := post(t.Context(), b.url(80), "application/json", chat("phi")); a.Status != 404 {
				t.Errorf("model phi before it has a route: %d", a.Status)
			}
			if err := os.WriteFile(filepath.Join(b.dir, "phi.yaml"), []byte(yamlRoute("phi", rule(toPool("pool"), onModel("phi")))), 0o644); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the new route is served", func() bool {
				return post(t.Context(), b.url(80), "application/json", chat("phi")).Status == 200
			})
		})
	}
}

var clusterInBootstrap = regexp.MustCompile(`(?m)^  cluster: .*$`)

// renameNode changes node.cluster in a bootstrap.
func renameNode(t *testing.T, path, line string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(clusterInBootstrap.FindAll(text, -1)) != 1 {
		t.Fatalf("no node.cluster in the bootstrap:\n%s", text)
	}
	if err := os.WriteFile(path, clusterInBootstrap.ReplaceAll(text, []byte(line)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestBareOneGateway: where only one Gateway exists an Envoy need not know its name.
func TestBareOneGateway(t *testing.T) {
	t.Parallel()
	b := startBare(t, bareFiles(t, startPod(t, "pod")))
	bootstrap := b.bootstrap("default/gw", "by-hand")
	renameNode(t, bootstrap, `  cluster: "my-own-name"`)
	startEnvoy(t, bootstrap)
	waitFor(t, "the Envoy serves", func() bool { return b.llama(80) })
	if e := b.envoys(); len(e) != 1 || e[0].Cluster != "my-own-name" || e[0].Group != "default/gw" {
		t.Errorf("/debug/xds says %+v", e)
	}
}

// TestBareTwoGateways: an Envoy must say which is its own, and is told so.
func TestBareTwoGateways(t *testing.T) {
	t.Parallel()
	p := startPod(t, "pod")
	files := bareFiles(t, p)
	_, gateway, _ := strings.Cut(yamlGateway, "---\n")
	other := strings.NewReplacer("name: gw", "name: other", "port: 80", "port: 81").Replace(gateway)
	files["other.yaml"] = other
	b := startBare(t, files)

	unknown := b.bootstrap("default/gw", "unknown")
	renameNode(t, unknown, `  cluster: "my-own-name"`)
	refused := startEnvoy(t, unknown)
	refused.waitOutput(t, `node.cluster "my-own-name" is no Gateway; set it (envoy --service-cluster) to one of: default/gw, default/other`)

	// What the words say to do, by the flag that they name.
	byFlag := b.bootstrap("default/other", "by-flag")
	renameNode(t, byFlag, "")
	startEnvoy(t, byFlag, "--service-cluster", "default/gw")
	waitFor(t, "the Envoy of Gateway gw serves", func() bool { return b.llama(80) })

	startEnvoy(t, b.bootstrap("default/other", "other"))
	waitFor(t, "the Envoy of Gateway other answers", func() bool { return get(t.Context(), b.url(81)).Status == 404 })
	if b.llama(81) {
		t.Error("the Envoy of Gateway other serves a route of Gateway gw")
	}
	for _, e := range b.envoys() {
		if e.Node == "unknown" {
			t.Errorf("the refused Envoy is among those connected: %+v", e)
		}
	}
}

// TestBareNoName starts an Envoy without node.cluster: it has nothing to be known by.
func TestBareNoName(t *testing.T) {
	t.Parallel()
	b := startBare(t, bareFiles(t, startPod(t, "pod")))
	bootstrap := b.bootstrap("default/gw", "nameless")
	renameNode(t, bootstrap, "")
	e := startEnvoy(t, bootstrap)
	e.waitOutput(t, "--service-cluster") // Envoy itself says so
}

// TestBootstrapValidates has Envoy read what `signalbox bootstrap` prints for every kind
// of address.
func TestBootstrapValidates(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--xds", "127.0.0.1:18000"},
		{"--xds", "[::1]:18000", "--envoy-admin", "[::1]:19000"},
		{"--xds", "unix:/run/signalbox/xds.sock", "--envoy-admin", "unix:/tmp/admin.sock"},
		{"--state-of-the-world", "--id", `quotes " and \ and 'such'`},
	} {
		text, err := exec.Command(binary(t, "SIGNALBOX"), append([]string{"bootstrap", "--gateway", "default/gw"}, args...)...).Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		path := filepath.Join(t.TempDir(), "envoy.yaml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		validateBootstrap(t, path)
	}
}

// TestAdmin reads every page of the admin interface.
func TestAdmin(t *testing.T) {
	t.Parallel()
	p := startPod(t, "pod")
	files := bareFiles(t, p)
	c := newCertificate(t, "secure.example")
	files["secret.yaml"] = yamlSecret("cert", c)
	files["gateway.yaml"] = yamlGateway + "  - {name: https, port: 443, protocol: HTTPS, hostname: secure.example, tls: {certificateRefs: [{name: cert}]}}\n"
	files["gateway.yaml"] = strings.Replace(files["gateway.yaml"], "  listeners: [{name: http, port: 80, protocol: HTTP}]\n", "  listeners:\n  - {name: http, port: 80, protocol: HTTP}\n", 1)
	b := startBare(t, files)
	startEnvoy(t, b.bootstrap("default/gw", "by-hand"))
	waitFor(t, "the Envoy serves", func() bool { return b.llama(80) })
	checkTLS(t, b.ports[443], c)

	for path, want := range map[string]string{
		"/healthz": "ok\n", "/readyz": "ok\n", "/": "/debug/status", "/metrics": "signalbox_translate_seconds_count",
		"/debug/config": "pool/default/pool", "/debug/status": "HTTPRoute", "/debug/xds": "by-hand",
	} {
		if a := get(t.Context(), b.admin+path); a.Status != 200 || !strings.Contains(a.Body, want) {
			t.Errorf("GET %s: %d, without %q\n%s", path, a.Status, want, a.Body)
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/nothing"} {
		if a := get(t.Context(), b.admin+path); a.Status != 404 {
			t.Errorf("GET %s: %d; want 404", path, a.Status)
		}
	}
	if a := get(t.Context(), b.metrics+"/metrics"); a.Status != 200 || !strings.Contains(a.Body, "signalbox_") {
		t.Errorf("extproc's metrics: %d\n%.300s", a.Status, a.Body)
	}
	var config map[string]map[string][]any
	getJSON(t, b.admin+"/debug/config", &config)
	for _, typ := range []string{"secrets", "clusters", "endpoints", "listeners", "routes"} {
		if len(config["default/gw"][typ]) == 0 {
			t.Errorf("/debug/config has no %s of default/gw", typ)
		}
	}
	checkNoKey(t, b, c)
}

// checkTLS has the listener show its certificate.
func checkTLS(t *testing.T, port int, c certificate) {
	t.Helper()
	waitFor(t, "the HTTPS listener shows the certificate", func() bool {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{ServerName: "secure.example", RootCAs: c.pool(t)})
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

// checkNoKey looks for the private key wherever signalbox could show it.
func checkNoKey(t *testing.T, b *bare, c certificate) {
	t.Helper()
	secret := strings.Split(c.Key, "\n")[1] // the first line of base64
	for _, path := range []string{"/debug/config", "/debug/config?gateway=default/gw", "/debug/status", "/debug/xds", "/metrics"} {
		a := get(t.Context(), b.admin+path)
		if strings.Contains(a.Body, secret) || strings.Contains(a.Body, "PRIVATE KEY") {
			t.Errorf("GET %s shows a private key", path)
		}
	}
	out, err := exec.Command(binary(t, "SIGNALBOX"), "translate", b.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("translate: %v\n%s", err, out)
	}
	for name, text := range map[string]string{"translate": string(out), "the log": b.serve.output.String()} {
		if strings.Contains(text, secret) || strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("%s shows a private key", name)
		}
	}
}

// TestPProf: profiles are served where they were asked for.
func TestPProf(t *testing.T) {
	t.Parallel()
	b := startBare(t, map[string]string{"gateway.yaml": yamlGateway}, "--pprof")
	waitFor(t, "/readyz", func() bool { return get(t.Context(), b.admin+"/readyz").Status == 200 })
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1"} {
		if a := get(t.Context(), b.admin+path); a.Status != 200 {
			t.Errorf("GET %s: %d; want 200", path, a.Status)
		}
	}
}

// TestNotReady asks while the source is still being read: alive, but not ready.
func TestNotReady(t *testing.T) {
	t.Parallel()
	var routes strings.Builder
	routes.WriteString(yamlGateway)
	for i := range 600 { // takes much longer to read than to open a port
		routes.WriteString(yamlRoute(fmt.Sprintf("r%d", i), rule(toService("none"), onModel(fmt.Sprintf("m%d", i)))))
	}
	b := startBare(t, map[string]string{"all.yaml": routes.String()})
	var first answer
	waitFor(t, "the admin interface answers", func() bool {
		first = get(t.Context(), b.admin+"/readyz")
		return first.Err == nil
	})
	if first.Status != http.StatusServiceUnavailable || !strings.Contains(first.Body, "not ready") {
		t.Errorf("/readyz at first: %d %s; want 503", first.Status, first.Body)
	}
	if a := get(t.Context(), b.admin+"/healthz"); a.Status != 200 {
		t.Errorf("/healthz: %d", a.Status)
	}
	waitFor(t, "/readyz", func() bool { return get(t.Context(), b.admin+"/readyz").Status == 200 })
}
