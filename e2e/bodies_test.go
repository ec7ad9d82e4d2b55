package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"signalbox.dev/extproc/contract"
)

// bodiesWorld routes the models of the tests to the same pod in three ways, by path:
// a Service, a pool with a picker, and the same with pods that speak HTTP/2.
type bodiesWorld struct {
	box *box
	pod *pod
}

var bodiesPaths = []string{"/service", "/pool", "/h2c"}

func newBodiesWorld(t *testing.T, models ...string) bodiesWorld {
	p := startPod(t, "pod")
	var routes strings.Builder
	for _, path := range bodiesPaths {
		backend := toService("pod")
		if path != "/service" {
			backend = toPool(path[1:])
		}
		for i, m := range models {
			match := fmt.Sprintf("{path: {type: PathPrefix, value: %s}, headers: [{name: X-Gateway-Model-Name, value: %q}]}", path, m)
			routes.WriteString(yamlRoute(fmt.Sprintf("%s-%d", path[1:], i), rule(backend, match)))
		}
	}
	return bodiesWorld{pod: p, box: startBox(t, map[string]string{
		"gateway.yaml": yamlGateway,
		"backends.yaml": yamlService("pod", p) + yamlPool("pool", startPicker(t, "pool", p), p) +
			yamlPoolOf("appProtocol: kubernetes.io/h2c", "h2c", startPicker(t, "h2c", p), p),
		"routes.yaml": routes.String(),
	}, boxOptions{})}
}

// holdLimit is how much of a body the gateway holds to find its model (design, §7).
const holdLimit = 4 << 20

// bodyShape is how a body is sent.
type bodyShape struct {
	name    string
	length  bool // known: content-length
	trailer bool
	expect  bool
}

var bodyShapes = []bodyShape{
	{name: "length", length: true},
	{name: "chunked"}, // over HTTP/2: no content-length
	{name: "trailers", trailer: true},
	{name: "expect", length: true, expect: true},
}

// TestBodies sends bodies of every size in every way that HTTP has: what the pod
// receives is what the client sent, byte for byte, or the client is told what to do.
func TestBodies(t *testing.T) {
	t.Parallel()
	w := newBodiesWorld(t, "llama")
	sizes := []int{100, 1 << 10, 16 << 10, 64<<10 - 1, 256 << 10, 1 << 20, holdLimit - 1<<10, holdLimit + 1<<20, 16 << 20}
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, protocol)
			for _, path := range bodiesPaths {
				for _, shape := range bodyShapes {
					for _, size := range sizes {
						w.sendBody(t, client, path, shape, modelFirst(size), 200)
						want := 200
						if size > holdLimit {
							want = 413
						}
						w.sendBody(t, client, path, shape, modelLast(size), want)
					}
				}
			}
		})
	}
}

// modelFirst and modelLast are JSON bodies of a size that name the model llama.
func modelFirst(size int) []byte { return padded(`{"model":"llama","prompt":"`, `"}`, size) }
func modelLast(size int) []byte  { return padded(`{"prompt":"`, `","model":"llama"}`, size) }

// padded puts text that does not repeat in step with any buffer between a and b.
func padded(a, b string, size int) []byte {
	out := make([]byte, 0, size)
	out = append(out, a...)
	for i := 0; len(out) < size-len(b); i++ {
		out = append(out, 'a'+byte(i*i%23))
	}
	return append(out, b...)
}

// sendBody sends a body and checks the answer.
func (w bodiesWorld) sendBody(t *testing.T, client *http.Client, path string, shape bodyShape, body []byte, want int) {
	t.Helper()
	at := fmt.Sprintf("%s, %s, %d bytes, %.12q…", path, shape.name, len(body), body)
	var r io.Reader = bytes.NewReader(body)
	if !shape.length {
		r = io.MultiReader(r) // hides its length
	}
	continued := false
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { continued = true }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.box.URL+path, r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if shape.expect {
		req.Header.Set("Expect", "100-continue")
	}
	if shape.trailer {
		req.Trailer = http.Header{"X-Checksum": {"abc"}}
	}
	a := do(client, req)
	if a.Err != nil || a.Status != want {
		t.Errorf("%s: %d %v; want %d\n%.300s", at, a.Status, a.Err, want, a.Body)
		return
	}
	if want != 200 {
		checkFailure(t, at, a, contract.BodyTooLarge)
		return
	}
	got := a.decode(t)
	checkSame(t, at, got, body)
	if shape.expect && !continued {
		t.Errorf("%s: no 100 Continue came", at)
	}
	if trailer := got.Trailer["X-Checksum"]; shape.trailer && path == "/h2c" && !slices.Equal(trailer, []string{"abc"}) {
		t.Errorf("%s: the trailer arrived as %q", at, trailer)
	}
	if length := got.Header["Content-Length"]; shape.length && !slices.Equal(length, []string{fmt.Sprint(len(body))}) {
		t.Errorf("%s: content-length arrived as %q", at, length)
	}
}

// checkSame checks that a pod received the body.
func checkSame(t *testing.T, at string, got received, body []byte) {
	t.Helper()
	sum := sha256.Sum256(body)
	if got.Length != int64(len(body)) || got.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("%s: the pod received %d bytes with digest %s; want %d with %x", at, got.Length, got.SHA256, len(body), sum)
	}
}

// checkFailure checks that an answer is the failure of a code, in OpenAI's shape.
func checkFailure(t *testing.T, at string, a answer, code contract.ErrorCode) {
	t.Helper()
	i := slices.IndexFunc(contract.Failures, func(f contract.Failure) bool { return f.Code == code })
	if i < 0 {
		t.Fatalf("no failure with code %s", code)
	}
	f := contract.Failures[i]
	param := "null"
	if strings.HasSuffix(string(code), "_model") {
		param = `"model"`
	}
	checkError(t, at, a, f.Status, fmt.Sprintf(`{"error":{"message":%q,"type":"invalid_request_error","param":%s,"code":%q}}`, f.Message, param, code))
}

// checkError checks status, content type and JSON of an answer of the gateway's own.
func checkError(t *testing.T, at string, a answer, status int, want string) {
	t.Helper()
	var got, wanted any
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		t.Fatal(err)
	}
	err := json.Unmarshal([]byte(a.Body), &got)
	if a.Err != nil || err != nil || a.Status != status || fmt.Sprint(got) != fmt.Sprint(wanted) || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: got %d %v, content-type %q\n%s\nwant %d, application/json\n%s", at, a.Status, a.Err, a.Header.Get("Content-Type"), a.Body, status, want)
	}
}

// TestSlowUpload sends a body one byte at a time.
func TestSlowUpload(t *testing.T) {
	t.Parallel()
	w := newBodiesWorld(t, "llama")
	body := modelLast(100)
	var wg sync.WaitGroup
	for _, protocol := range protocols {
		for _, path := range bodiesPaths {
			client := newClient(t, protocol)
			wg.Go(func() {
				r, pw := io.Pipe()
				go func() {
					tick := time.NewTicker(10 * time.Millisecond)
					defer tick.Stop()
					for i := range body {
						<-tick.C
						if _, err := pw.Write(body[i : i+1]); err != nil {
							return
						}
					}
					pw.Close()
				}()
				req, err := http.NewRequest(http.MethodPost, w.box.URL+path, r)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Content-Type", "application/json")
				got, err := do(client, req).parse()
				if err != nil {
					t.Errorf("%s %s: %v", protocol, path, err)
					return
				}
				checkSame(t, protocol+" "+path, got, body)
			})
		}
	}
	wg.Wait()
}

// TestForms sends what clients send to transcribe speech: a form with a file, the
// model before it or after it.
func TestForms(t *testing.T) {
	t.Parallel()
	w := newBodiesWorld(t, "whisper")
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, protocol)
			for _, path := range bodiesPaths {
				for _, c := range []struct {
					file   int // bytes
					before bool
					want   int
				}{
					{1 << 10, true, 200}, {1 << 10, false, 200},
					{3 << 20, true, 200}, {3 << 20, false, 200},
					{15 << 20, true, 200}, {15 << 20, false, 413},
				} {
					body, contentType := speech(t, "whisper", c.file, c.before)
					at := fmt.Sprintf("%s, file of %d bytes, model before it %v", path, c.file, c.before)
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.box.URL+path, bytes.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					req.Header.Set("Content-Type", contentType)
					a := do(client, req)
					if c.want != 200 {
						checkFailure(t, at, a, contract.BodyTooLarge)
						continue
					}
					got, err := a.parse()
					if err != nil {
						t.Errorf("%s: %v", at, err)
						continue
					}
					checkSame(t, at, got, body)
					if m := got.Header["X-Gateway-Model-Name"]; !slices.Equal(m, []string{"whisper"}) {
						t.Errorf("%s: the pod received the model %q", at, m)
					}
				}
			}
		})
	}
}

// speech is a form as openai-python writes it.
func speech(t *testing.T, model string, size int, before bool) (body []byte, contentType string) {
	t.Helper()
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	field := func() {
		if err := form.WriteField("model", model); err != nil {
			t.Fatal(err)
		}
	}
	if before {
		field()
	}
	file, err := form.CreateFormFile("file", "speech.wav")
	if err != nil {
		t.Fatal(err)
	}
	sound := make([]byte, size)
	for i := range sound {
		sound[i] = byte(i * i >> 3)
	}
	if _, err := file.Write(sound); err != nil {
		t.Fatal(err)
	}
	if !before {
		field()
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), form.FormDataContentType()
}

// corpusBody is one line of testdata/bodies/index.tsv.
type corpusBody struct {
	file, contentType string
	model             string // that is read …
	code              contract.ErrorCode
	body              []byte
}

func corpus(t *testing.T) []corpusBody {
	t.Helper()
	const dir = "../testdata/bodies"
	index, err := os.Open(filepath.Join(dir, "index.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	var out []corpusBody
	for lines := bufio.NewScanner(index); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		f := strings.Split(lines.Text(), "\t")
		c := corpusBody{file: f[0], contentType: f[1]}
		switch kind, verdict, _ := strings.Cut(f[2], "="); kind {
		case "model":
			c.model = verdict
		case "error":
			c.code = contract.ErrorCode(verdict)
		default:
			t.Fatalf("%s: verdict %q", c.file, f[2])
		}
		if c.body, err = os.ReadFile(filepath.Join(dir, c.file)); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	if len(out) < 100 {
		t.Fatalf("the corpus has only %d bodies", len(out))
	}
	return out
}

// TestCorpus holds the gateway to the verdicts of testdata/bodies.
func TestCorpus(t *testing.T) {
	t.Parallel()
	all := corpus(t)
	var models []string
	for _, c := range all {
		if c.model != "" && !slices.Contains(models, c.model) {
			models = append(models, c.model)
		}
	}
	w := newBodiesWorld(t, models...)
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, protocol)
			for _, path := range bodiesPaths {
				for _, c := range all {
					w.sendCorpus(t, client, path, c)
				}
			}
		})
	}
}

func (w bodiesWorld) sendCorpus(t *testing.T, client *http.Client, path string, c corpusBody) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, w.box.URL+path, bytes.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	if c.contentType != "" {
		req.Header.Set("Content-Type", c.contentType)
	}
	a, at := do(client, req), path+" "+c.file
	if c.code != "" {
		checkFailure(t, at, a, c.code)
		return
	}
	got, err := a.parse()
	if err != nil {
		t.Errorf("%s: %v", at, err)
		return
	}
	checkSame(t, at, got, c.body)
	if m := got.Header["X-Gateway-Model-Name"]; !slices.Equal(m, []string{c.model}) {
		t.Errorf("%s: the pod received the model %q; want %q", at, m, c.model)
	}
}
