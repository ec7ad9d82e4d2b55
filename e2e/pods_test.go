package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"signalbox.dev/demo/picker"
)

// pod is a backend of the test's own: it says who it is, and the length and digest of
// what it received, so that a test can see which pod served and that nothing was lost.
type pod struct {
	Name     string
	Address  string // ip:port
	Requests atomic.Int64
	// Partial counts requests whose body ended in an error: half a body.
	Partial atomic.Int64
	handle  http.HandlerFunc // nil: as received says
}

// received is what a pod answers with, as JSON, to every request but those with
// /stream/ in their path.
type received struct {
	Pod     string              `json:"pod"`
	Method  string              `json:"method"`
	Path    string              `json:"path"`
	Host    string              `json:"host"`
	Length  int64               `json:"length"`
	SHA256  string              `json:"sha256"`
	Header  map[string][]string `json:"header"`
	Trailer map[string][]string `json:"trailer"`
}

// startPod serves HTTP/1 and h2c on a free port of the address 127.0.0.1.
func startPod(t testing.TB, name string) *pod {
	t.Helper()
	return startPodWith(t, name, nil)
}

// startPodWith starts a pod that answers by handle.
func startPodWith(t testing.TB, name string, handle http.HandlerFunc) *pod {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{Name: name, Address: l.Addr().String(), handle: handle}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: p, Protocols: &protocols}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return p
}

// Port returns the pod's port.
func (p *pod) Port() string { return p.Address[strings.LastIndexByte(p.Address, ':')+1:] }

func (p *pod) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && r.URL.Path == "/metrics" { // a picker looks
		fmt.Fprint(w, "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n")
		return
	}
	p.Requests.Add(1)
	w.Header().Set("X-Pod", p.Name)
	if p.handle != nil {
		p.handle(w, r)
		return
	}
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	if err != nil {
		p.Partial.Add(1)
		panic(http.ErrAbortHandler)
	}
	if strings.Contains(r.URL.Path, "/stream/") {
		p.stream(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
	_ = json.NewEncoder(w).Encode(received{Pod: p.Name, Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host,
		Length: n, SHA256: hex.EncodeToString(hash.Sum(nil)), Header: r.Header, Trailer: r.Trailer})
}

// stream serves …/stream/COUNT/PAUSE: COUNT server-sent events, PAUSE apart, then
// [DONE].
func (p *pod) stream(w http.ResponseWriter, r *http.Request) {
	var count int
	var pause string
	_, want, _ := strings.Cut(r.URL.Path, "/stream/")
	if _, err := fmt.Sscanf(strings.ReplaceAll(want, "/", " "), "%d %s", &count, &pause); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	gap, err := time.ParseDuration(pause)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(gap)
	defer tick.Stop()
	for i := range count {
		fmt.Fprintf(w, "data: {\"i\":%d,\"at\":%d}\n\n", i, time.Now().UnixNano())
		_ = http.NewResponseController(w).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// decode reads what a pod answered.
func (a answer) decode(t testing.TB) received {
	t.Helper()
	r, err := a.parse()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// parse is decode for goroutines that are not the test's own.
func (a answer) parse() (received, error) {
	var r received
	if a.Err != nil {
		return r, fmt.Errorf("want 200 from a pod, got %d and then: %w", a.Status, a.Err)
	}
	if a.Status != 200 {
		return r, fmt.Errorf("want 200 from a pod, got %d\n%s", a.Status, a.Body)
	}
	if err := json.Unmarshal([]byte(a.Body), &r); err != nil {
		return r, fmt.Errorf("not a pod's answer: %w\n%s", err, a.Body)
	}
	return r, nil
}

// yamlGateway is a GatewayClass and a Gateway default/gw with one HTTP listener on 80.
const yamlGateway = `apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: signalbox}
spec: {controllerName: signalbox.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: default}
spec:
  gatewayClassName: signalbox
  listeners: [{name: http, port: 80, protocol: HTTP}]
`

// startPicker runs an endpoint picker for the pods, TLS with a certificate of its own
// making, as pickers ship. It returns its address.
func startPicker(t testing.TB, name string, pods ...*pod) string {
	t.Helper()
	var addresses []string
	for _, p := range pods {
		addresses = append(addresses, p.Address)
	}
	endpoints, err := picker.NewEndpoints(addresses...)
	if err != nil {
		t.Fatal(err)
	}
	p, err := picker.New(picker.Config{Name: name, Endpoints: endpoints, ScrapeInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("picker %s: %v", name, err)
		}
	})
	return l.Addr().String()
}

// yamlPool is an InferencePool default/NAME of the pods. With the address of a picker
// it has one, and no request is served without a pick; with "" it has none.
func yamlPool(name, pickerAddress string, pods ...*pod) string {
	return yamlPoolOf("", name, pickerAddress, pods...)
}

// yamlPoolOf is yamlPool with more lines of the spec, in flow style: "appProtocol: …".
func yamlPoolOf(spec, name, pickerAddress string, pods ...*pod) string {
	var addresses []string
	for _, p := range pods {
		addresses = append(addresses, p.Address)
	}
	pool := fmt.Sprintf(`---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: %[1]s, namespace: default}
spec:
  selector: {matchLabels: {app: %[1]s}}
  targetPorts: [{number: 8000}]
  %[2]s
`, name, spec)
	if pickerAddress != "" {
		pool += fmt.Sprintf(`  endpointPickerRef: {name: %[1]s-epp, port: {number: 9002}, failureMode: FailClose}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s-epp, namespace: default}
spec:
  ports: [{name: http, port: 9002}]
`, name) + yamlSlice(name+"-epp", "kubernetes.io/service-name: "+name+"-epp", pickerAddress)
	}
	return pool + yamlSlice("pool-"+name, "app: "+name, addresses...)
}

// yamlService is a Service default/NAME, port 80, of the pods.
func yamlService(name string, pods ...*pod) string {
	var addresses []string
	for _, p := range pods {
		addresses = append(addresses, p.Address)
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: default}
spec:
  ports: [{name: http, port: 80}]
`, name) + yamlSlice("service-"+name, "kubernetes.io/service-name: "+name, addresses...)
}

// yamlRoute is an HTTPRoute default/NAME on Gateway default/gw. Each rule is the YAML
// of one, in flow style.
func yamlRoute(name string, rules ...string) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: default}
spec:
  parentRefs: [{name: gw}]
  rules:
  - %s
`, name, strings.Join(rules, "\n  - "))
}

// What rules are made of, in flow style.
func toPool(name string) string {
	return fmt.Sprintf("backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: %s}]", name)
}

func toService(name string) string {
	return fmt.Sprintf("backendRefs: [{name: %s, port: 80}]", name)
}

func onModel(name string) string {
	return fmt.Sprintf("{headers: [{name: X-Gateway-Model-Name, value: %q}]}", name)
}

func onPath(prefix string) string {
	return fmt.Sprintf("{path: {type: PathPrefix, value: %q}}", prefix)
}

func rule(backend string, matches ...string) string {
	return fmt.Sprintf("{matches: [%s], %s}", strings.Join(matches, ", "), backend)
}

// yamlSlice is an EndpointSlice of pods, which may each have a port of its own only if
// there is one pod: an EndpointSlice has one list of ports. label is "key: value".
func yamlSlice(name, label string, addresses ...string) string {
	var b strings.Builder
	for i, a := range addresses {
		ip, port, _ := strings.Cut(a, ":")
		fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-%d, namespace: default, labels: {%s}}
addressType: IPv4
ports: [{name: http, port: %s}]
endpoints: [{addresses: [%s], conditions: {ready: true}}]
`, name, i, label, port, ip)
	}
	return b.String()
}

// certificate is a self-signed certificate and its key, PEM.
type certificate struct{ Cert, Key string }

func newCertificate(t testing.TB, hosts ...string) certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: hosts, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return certificate{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
	}
}

// pool trusts the certificate alone.
func (c certificate) pool(t testing.TB) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(c.Cert)) {
		t.Fatal("not a certificate")
	}
	return pool
}

// yamlSecret is a Secret default/NAME with the certificate, for a listener.
func yamlSecret(name string, c certificate) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: default}\ntype: kubernetes.io/tls\nstringData: {tls.crt: %q, tls.key: %q}\n", name, c.Cert, c.Key)
}
