package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestSpoof sends what a client might send to choose its server itself: every header
// that routes, in every form, with a body that names a model, none, an unknown one or
// is broken, over HTTP/1.1 and HTTP/2. What counts is the body alone (facts:
// reliability S1).
func TestSpoof(t *testing.T) {
	t.Parallel()
	w := newSpoofWorld(t)
	const wanted = 10_000
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			all := w.requests(protocol)
			sent := w.send(t, protocol, all, wanted/len(protocols))
			t.Logf("%d requests of %d kinds", sent, len(all))
		})
	}
	t.Cleanup(func() { // when both are done
		if n := w.evil.Requests.Load(); n != 0 {
			t.Errorf("%d requests were served by the pod that only a client's header names", n)
		}
		for _, path := range spoofPaths[:4] { // it could have been reached
			if r := post(context.Background(), w.box.URL+path, "application/json", chat("evil")).decode(t); r.Pod != "evil" {
				t.Errorf("POST %s with a body for evil was served by %s", path, r.Pod)
			}
		}
	})
}

// spoofWorld routes the same models by path to a Service, to a pool with a picker and to
// a pool without; on each path the model "evil" has a pod of its own, to which no body
// that is sent leads. /plain does not look at models.
type spoofWorld struct {
	box               *box
	good, evil, plain *pod
}

func newSpoofWorld(t *testing.T) *spoofWorld {
	w := &spoofWorld{good: startPod(t, "good"), evil: startPod(t, "evil"), plain: startPod(t, "plain")}
	evil := func(backend, path string) string {
		return rule(backend,
			"{path: {type: PathPrefix, value: "+path+"}, headers: [{name: X-Gateway-Model-Name, value: evil}]}",
			"{path: {type: PathPrefix, value: "+path+"}, headers: [{name: X-Gateway-Base-Model-Name, value: evil-base}]}")
	}
	const h2c = "appProtocol: kubernetes.io/h2c" // the pods that receive trailers
	good := func(backend, path string) string {
		return rule(backend, "{path: {type: PathPrefix, value: "+path+"}, headers: [{name: X-Gateway-Model-Name, value: good}]}")
	}
	w.box = startBox(t, map[string]string{
		"gateway.yaml": yamlGateway,
		"backends.yaml": yamlService("good", w.good) + yamlService("evil", w.evil) + yamlService("plain", w.plain) +
			yamlPool("good", startPicker(t, "good", w.good), w.good) + yamlPool("evil", startPicker(t, "evil", w.evil), w.evil) +
			yamlPool("good-bare", "", w.good) + yamlPool("evil-bare", "", w.evil) +
			yamlPoolOf(h2c, "good-h2c", startPicker(t, "good", w.good), w.good) + yamlPoolOf(h2c, "evil-h2c", startPicker(t, "evil", w.evil), w.evil),
		"routes.yaml": yamlRoute("models",
			good(toService("good"), "/service"), evil(toService("evil"), "/service"),
			good(toPool("good"), "/pool"), evil(toPool("evil"), "/pool"),
			good(toPool("good-bare"), "/bare"), evil(toPool("evil-bare"), "/bare"),
			good(toPool("good-h2c"), "/h2c"), evil(toPool("evil-h2c"), "/h2c"),
			rule(toService("plain"), onPath("/plain"))),
	}, boxOptions{})
	return w
}

// spoof is a request of a client that wants to be served by another server than its
// body names.
type spoof struct {
	path    string
	body    spoofBody
	header  http.Header // keys as they are to be written
	trailer http.Header
	refused bool // Envoy refuses it whatever the body
}

func (s spoof) String() string {
	return fmt.Sprintf("POST %s, body %s, header %v, trailer %v", s.path, s.body.text, s.header, s.trailer)
}

// spoofBody is a body and what a path that looks at models makes of it.
type spoofBody struct {
	text   string
	model  string // that the extractor reads
	status int
	// cut: the body ends too early. If trailers follow, Envoy does not tell the
	// extractor of the end, and the request ends with the extractor's patience
	// (facts: envoy-extractor §2.6).
	cut bool
}

var spoofBodies = []spoofBody{
	{text: `{"model":"good","messages":[]}`, model: "good", status: 200},
	{text: `{"messages":[]}`, status: 400},
	{text: `{"model":"nobody"}`, model: "nobody", status: 404},
	{text: `{"model":"good","model":"evil"}`, status: 400},
	{text: `model=evil`, status: 400},
	{text: `{"model":"evil"`, status: 400, cut: true},
	{text: ``, status: 400, cut: true},
}

var spoofPaths = []string{"/service", "/pool", "/bare", "/h2c", "/plain"}

// requests lists every kind of request.
func (w *spoofWorld) requests(protocol string) []spoof {
	values := map[string][]string{
		"x-gateway-model-name":                  {"evil", "good,evil"},
		"x-gateway-base-model-name":             {"evil-base"},
		"x-gateway-destination-endpoint":        {w.evil.Address},
		"x-gateway-destination-endpoint-subset": {w.evil.Address},
		"x-gateway-destination-endpoint-served": {w.evil.Address},
		"x-envoy-original-dst-host":             {w.evil.Address},
		"x-signalbox-model-error":               {"invalid_json"},
		"x-signalbox-pool":                      {"default/evil"},
		"x-signalbox-picker-endpoints":          {w.evil.Address},
		"x-prefiller-host-port":                 {w.evil.Address},
	}
	var out []spoof
	for _, path := range spoofPaths {
		for _, body := range spoofBodies {
			for name, list := range values {
				for _, v := range list {
					forms := []http.Header{
						{name: {v}},
						{name: {v, v}},
						{name: {"good", v}},
						{strings.ToUpper(name): {v}},
						{http.CanonicalHeaderKey(name): {v}},
					}
					if protocol == "HTTP/1.1" { // HTTP/2 knows lower case only
						forms = append(forms, http.Header{name: {v}, strings.ToUpper(name): {v}, "X-gateWay" + name[len("x-gateway"):]: {v}})
					}
					for _, header := range forms {
						out = append(out, spoof{path: path, body: body, header: header})
					}
					out = append(out,
						spoof{path: path, body: body, header: http.Header{strings.ReplaceAll(name, "-", "_"): {v}}, refused: true},
						spoof{path: path, body: body, header: http.Header{strings.Replace(name, "-", "_", 1): {v}, name: {v}}, refused: true})
					if !body.cut {
						out = append(out, spoof{path: path, body: body, trailer: http.Header{http.CanonicalHeaderKey(name): {v}}})
					}
				}
			}
			all := http.Header{}
			for name, list := range values {
				all[name] = list
			}
			out = append(out, spoof{path: path, body: body, header: all})
		}
	}
	return out
}

// send sends the requests over and over until there were n, several at a time.
func (w *spoofWorld) send(t *testing.T, protocol string, requests []spoof, n int) int64 {
	client := newClient(t, protocol)
	var sent atomic.Int64
	var wrong atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				i := int(sent.Add(1)) - 1
				if i >= max(n, len(requests)) || wrong.Load() > 10 {
					sent.Add(-1)
					return
				}
				r := requests[i%len(requests)]
				if problem := w.check(client, r); problem != "" {
					wrong.Add(1)
					t.Errorf("%v: %s", r, problem)
				}
			}
		})
	}
	wg.Wait()
	return sent.Load()
}

// check sends one request and says what is wrong with the answer, or with what the pod
// received.
func (w *spoofWorld) check(client *http.Client, s spoof) string {
	// A plain reader: the length is unknown, so that trailers may follow over HTTP/1.1.
	var body io.Reader = bytes.NewReader([]byte(s.body.text))
	if s.trailer != nil {
		body = io.MultiReader(body)
	}
	req, err := http.NewRequest(http.MethodPost, w.box.URL+s.path+"/v1/chat/completions", body)
	if err != nil {
		return err.Error()
	}
	req.Header = s.header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header["Content-Type"] = []string{"application/json"}
	req.Trailer = s.trailer
	a := do(client, req)
	if s.refused {
		if a.Err == nil && a.Status != 400 { // over HTTP/2 the stream is reset
			return fmt.Sprintf("status %d; want a refusal", a.Status)
		}
		return ""
	}
	want := s.body.status
	if s.path == "/plain" {
		want = 200
	}
	if a.Err != nil || a.Status != want {
		return fmt.Sprintf("status %d, error %v; want %d\n%s", a.Status, a.Err, want, a.Body)
	}
	if want != 200 {
		return ""
	}
	return w.received(s, a)
}

// received says what is wrong with what the pod got.
func (w *spoofWorld) received(s spoof, a answer) string {
	r, err := a.parse()
	if err != nil {
		return err.Error()
	}
	pod := w.good
	if s.path == "/plain" {
		pod = w.plain
	}
	model := []string{s.body.model}
	if s.body.model == "" {
		model = nil
	}
	switch {
	case r.Pod != pod.Name:
		return "served by " + r.Pod
	case !slices.Equal(r.Header["X-Gateway-Model-Name"], model):
		return fmt.Sprintf("the pod received the model %q; want %q", r.Header["X-Gateway-Model-Name"], model)
	}
	// Trailers of such names may reach pods that speak HTTP/2, as trailers: nothing
	// routes by those.
	for name, values := range r.Header {
		if name != "X-Gateway-Model-Name" && routingHeader(name) && !slices.Equal(values, []string{pod.Address}) {
			return fmt.Sprintf("the pod received %s: %q", name, values)
		}
	}
	return ""
}

// routingHeader says whether a header is one that only the gateway may set.
func routingHeader(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "x-gateway-") || strings.HasPrefix(name, "x-signalbox-") ||
		name == "x-envoy-original-dst-host" || name == "x-prefiller-host-port"
}

// TestSmuggling sends what one parser may read as one request and another as two, and
// what would turn a request into something else than one. No pod sees a second request.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	w := newSpoofWorld(t)
	const (
		head  = "POST /service HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
		good  = `{"model":"good"}` // 16 bytes
		chunk = "10\r\n" + good + "\r\n0\r\n\r\n"
		evil  = "POST /service HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"model\":\"evil\"}"
	)
	for name, c := range map[string]struct {
		raw  string
		want string // of the status line; none of them is served twice
	}{
		"plain":                  {head + "Content-Length: 16\r\n\r\n" + good, "200"},
		"both lengths":           {head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + evil, "400"},
		"two lengths":            {head + "Content-Length: 16\r\nContent-Length: 17\r\n\r\n" + good + evil, "400"},
		"list of lengths":        {head + "Content-Length: 16, 16\r\n\r\n" + good + evil, "400"},
		"signed length":          {head + "Content-Length: +16\r\n\r\n" + good + evil, "400"},
		"chunked twice":          {head + "Transfer-Encoding: chunked, chunked\r\n\r\n" + chunk + evil, "501"},
		"chunked, but not last":  {head + "Transfer-Encoding: chunked, identity\r\n\r\n" + chunk + evil, "501"},
		"other coding":           {head + "Transfer-Encoding: xchunked\r\n\r\n" + chunk + evil, "501"},
		"space before the colon": {head + "Content-Length : 16\r\n\r\n" + good + evil, "400"},
		"folded header":          {head + "X: a\r\n Content-Length: 0\r\nContent-Length: 16\r\n\r\n" + good, "200"},
		"bare line feed":         {head + "X: a\nTransfer-Encoding: chunked\r\nContent-Length: 16\r\n\r\n" + good + evil, "400"},
		"chunk too long":         {head + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + good + evil, "400"},
		"HTTP/1.0":               {strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1) + "Content-Length: 16\r\n\r\n" + good, "426"},
		"upgrade":                {head + "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 16\r\n\r\n" + good, "403"},
		"CONNECT":                {"CONNECT evil:80 HTTP/1.1\r\nHost: evil:80\r\n\r\n", "404"},
	} {
		before := w.good.Requests.Load()
		status := rawRequest(t, strings.TrimPrefix(w.box.URL, "http://"), c.raw)
		if status != c.want {
			t.Errorf("%s: status %q; want %s", name, status, c.want)
		}
		want := int64(0)
		if c.want == "200" {
			want = 1
		}
		if n := w.good.Requests.Load() - before; n != want {
			t.Errorf("%s: the pod served %d requests; want %d", name, n, want)
		}
	}
	if n := w.evil.Requests.Load(); n != 0 {
		t.Errorf("%d smuggled requests were served", n)
	}
}

// rawRequest writes bytes to a connection and returns the status of the answer, once the
// connection has been closed or has nothing more to say.
func rawRequest(t *testing.T, address, raw string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return strconv.Itoa(resp.StatusCode)
}
