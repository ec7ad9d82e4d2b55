package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hookup is a Gateway with pools, and what stands behind them. Each pool has a route: its
// name as the first segment of the path, or as the model of a JSON body; so every request
// goes through the extractor first, but those to plainHost.
type hookup struct {
	*box
	client *http.Client
	// Open and Close are two pods each. Pools take their pods from one of these sets by
	// their failure mode, so that what reaches the pods of FailClose pools is all theirs.
	Open, Close []*pod
	Outsider    *pod         // belongs to no pool
	Arrived     atomic.Int64 // requests at pods that have not begun to answer, and all before
}

// plainHost is a host whose routes do not look at models.
const plainHost = "plain.test"

// hookupPool is an InferencePool and the Service of its picker.
type hookupPool struct {
	Name        string // the Service's too, with "-epp"
	FailOpen    bool
	Pickers     []string // ip:port; none: no endpoint is ready
	NoPicker    bool     // no endpointPickerRef
	Annotations string   // YAML, inline, without the braces
	Spec        string   // more lines of the spec
}

func (p hookupPool) mode() string {
	if p.FailOpen {
		return "FailOpen"
	}
	return "FailClose"
}

func (p hookupPool) pods() string {
	if p.FailOpen {
		return "open"
	}
	return "close"
}

func (p hookupPool) yaml() string {
	picker := fmt.Sprintf("  endpointPickerRef: {name: %s-epp, port: {number: 9002}, failureMode: %s}\n", p.Name, p.mode())
	if p.NoPicker {
		picker = ""
	}
	return fmt.Sprintf(`apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: %[1]s, namespace: default, annotations: {%[2]s}}
spec:
  selector: {matchLabels: {app: %[3]s}}
  targetPorts: [{number: 8000}]
%[4]s%[5]s---
apiVersion: v1
kind: Service
metadata: {name: %[1]s-epp, namespace: default}
spec:
  ports: [{name: http, port: 9002, appProtocol: http2}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %[1]s, namespace: default}
spec:
  parentRefs: [{name: gw}]
  rules:
  - matches:
    - path: {type: PathPrefix, value: /%[1]s}
    - headers: [{name: X-Gateway-Model-Name, value: %[1]s}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: %[1]s}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %[1]s-plain, namespace: default}
spec:
  parentRefs: [{name: gw}]
  hostnames: [%[6]s]
  rules:
  - matches: [{path: {type: PathPrefix, value: /%[1]s}}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: %[1]s}]
`, p.Name, p.Annotations, p.pods(), picker, p.Spec, plainHost)
}

// pickersYAML lists the endpoints of a pool's picker.
func (p hookupPool) pickersYAML() string {
	return yamlSlice(p.Name+"-epp", "kubernetes.io/service-name: "+p.Name+"-epp", p.Pickers...)
}

// hookupFiles is the folder of a hookup with these pools.
func hookupFiles(open, closed []*pod, pools []hookupPool) map[string]string {
	files := map[string]string{"gateway.yaml": yamlGateway, "pods.yaml": yamlPods("open", open) + yamlPods("close", closed)}
	for _, p := range pools {
		files["pool-"+p.Name+".yaml"] = p.yaml()
		files["picker-"+p.Name+".yaml"] = p.pickersYAML()
	}
	return files
}

func yamlPods(app string, pods []*pod) string {
	var addresses []string
	for _, p := range pods {
		addresses = append(addresses, p.Address)
	}
	return yamlSlice(app, "app: "+app, addresses...)
}

// newHookup starts the pods; run starts the rest.
func newHookup(t testing.TB) *hookup {
	h := &hookup{client: newClient(t, "HTTP/1.1")}
	h.Outsider = startThinkingPod(t, "outsider", &h.Arrived)
	for _, n := range []string{"0", "1"} {
		h.Open = append(h.Open, startThinkingPod(t, "open-"+n, &h.Arrived))
		h.Close = append(h.Close, startThinkingPod(t, "close-"+n, &h.Arrived))
	}
	return h
}

func (h *hookup) run(t testing.TB, pools ...hookupPool) {
	t.Helper()
	h.box = startBox(t, hookupFiles(h.Open, h.Close, pools), boxOptions{})
}

// headerPodThink is how long a thinking pod takes to begin its answer, a Go duration.
const headerPodThink = "x-test-pod-think"

// startThinkingPod is a pod that can take its time; it counts requests as they arrive.
func startThinkingPod(t testing.TB, name string, arrived *atomic.Int64) *pod {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{Name: name, Address: l.Addr().String()}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived.Add(1)
		if d, err := time.ParseDuration(r.Header.Get(headerPodThink)); err == nil {
			select {
			case <-time.After(d):
			case <-r.Context().Done():
			}
		}
		p.ServeHTTP(w, r)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return p
}

// noBody as the size of a request is a GET.
const noBody = -1

// sizes of the bodies that every case is tried with.
var hookupSizes = []int{noBody, 300, 1 << 20, 8 << 20}

var hookupBodies sync.Map // [2]any{model, size} → []byte

// hookupBody is a JSON body of n bytes for a model, no two parts of which are the same.
func hookupBody(model string, n int) []byte {
	key := [2]any{model, n}
	if b, ok := hookupBodies.Load(key); ok {
		return b.([]byte)
	}
	b := fmt.Appendf(make([]byte, 0, n+16), `{"model":%q,"prompt":"`, model)
	for i := 0; len(b) < n-2; i++ {
		b = fmt.Appendf(b, "%x ", i)
	}
	b = append(b[:n-2], `"}`...)
	hookupBodies.Store(key, b)
	return b
}

// reply is the answer to a request of send.
type reply struct {
	answer
	Pool  string
	Size  int
	Sent  []byte
	Began time.Time
	Took  time.Duration
}

// send sends a request to a pool, a GET if size is noBody. The header Host: plainHost has
// it pass by the extractor.
func (h *hookup) send(ctx context.Context, pool string, size int, header ...string) reply {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := reply{Pool: pool, Size: size}
	path := "/" + pool + "/v1/models"
	if size != noBody {
		path, r.Sent = "/v1/chat/completions", hookupBody(pool, size)
	}
	if slices.Contains(header, plainHost) {
		path = "/" + pool + path
	}
	req := h.request(ctx, path, r.Sent, header...)
	r.Began = time.Now()
	r.answer = do(h.client, req)
	r.Took = time.Since(r.Began)
	return r
}

// request is a POST of a JSON body, or a GET if that is nil.
func (h *hookup) request(ctx context.Context, path string, body []byte, header ...string) *http.Request {
	method := http.MethodPost
	if body == nil {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, h.URL+path, bytes.NewReader(body))
	if err != nil {
		panic(err) // the test's own mistake
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	req.Host = req.Header.Get("Host")
	return req
}

// sendAll sends a request of every size to each of the pools, all at once.
func (h *hookup) sendAll(ctx context.Context, pools []string, header ...string) []reply {
	replies := make([]reply, len(pools)*len(hookupSizes))
	var all sync.WaitGroup
	for i := range replies {
		all.Go(func() {
			replies[i] = h.send(ctx, pools[i/len(hookupSizes)], hookupSizes[i%len(hookupSizes)], header...)
		})
	}
	all.Wait()
	return replies
}

func (r reply) String() string {
	size := fmt.Sprintf("%d B", r.Size)
	if r.Size == noBody {
		size = "GET"
	}
	return fmt.Sprintf("%s, %s: %d after %v (%v) %.300s", r.Pool, size, r.Status, r.Took.Round(time.Millisecond), r.Err, r.Body)
}

// podGot checks that a pod got the whole request, and returns what it saw.
func (r reply) podGot(t testing.TB) (received, bool) {
	t.Helper()
	if r.Err != nil || r.Status != 200 {
		t.Errorf("%v: want 200", r)
		return received{}, false
	}
	got := r.decode(t)
	if want := sha256.Sum256(r.Sent); got.SHA256 != hex.EncodeToString(want[:]) || got.Length != int64(len(r.Sent)) {
		t.Errorf("%v: pod %s got %d bytes, digest %s; %d were sent", r, got.Pod, got.Length, got.SHA256, len(r.Sent))
	}
	return got, true
}

// picked checks that the request was served, whole, by the pod that the picker named.
func (r reply) picked(t testing.TB, picker string, by *pod) {
	t.Helper()
	got, ok := r.podGot(t)
	if !ok {
		return
	}
	if from := got.header(headerPicker); from != picker || got.Pod != by.Name {
		t.Errorf("%v: picked by %q, served by %s; want %q and %s", r, from, got.Pod, picker, by.Name)
	}
	if to := got.header(keyDestination); !strings.Contains(to, by.Address) {
		t.Errorf("%v: the pod was told %.200q is picked; want %s", r, to, by.Address)
	}
}

// unpicked checks that the request was served whole by one of the pods without a picker.
func (r reply) unpicked(t testing.TB, pods []*pod) {
	t.Helper()
	got, ok := r.podGot(t)
	if !ok {
		return
	}
	if from, to := got.header(headerPicker), got.header(keyDestination); from != "" || to != "" {
		t.Errorf("%v: the pod saw the picker %q and the pick %q; want none", r, from, to)
	}
	if !slices.ContainsFunc(pods, func(p *pod) bool { return p.Name == got.Pod }) {
		t.Errorf("%v: served by %s", r, got.Pod)
	}
}

// refused checks for the 503 of a pool that nobody can pick for.
func (r reply) refused(t testing.TB) {
	t.Helper()
	if r.Err != nil || r.Status != 503 || !strings.Contains(r.Body, `"code":"endpoint_picker_unavailable"`) || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%v (%s): want 503 endpoint_picker_unavailable", r, r.Header.Get("Content-Type"))
	}
}

func (r received) header(key string) string {
	return strings.Join(r.Header[http.CanonicalHeaderKey(key)], ";")
}

// requests counts what reached the pods so far; partial what did so in part.
func requests(pods ...*pod) (all, partial int64) {
	for _, p := range pods {
		all += p.Requests.Load()
		partial += p.Partial.Load()
	}
	return all, partial
}

// watchPods returns a function that checks how many requests have reached the pods since,
// and that none did so in part.
func watchPods(pods ...*pod) func(t testing.TB, what string, want int64) {
	before, _ := requests(pods...)
	return func(t testing.TB, what string, want int64) {
		t.Helper()
		now, partial := requests(pods...)
		if now-before != want || partial != 0 {
			t.Errorf("%d requests reached the pods of %s, want %d; %d in part, want 0", now-before, what, want, partial)
		}
	}
}
