package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"signalbox.dev/extproc/contract"
)

// newErrorsWorld has a host llm.example that routes by model, with plain rules beside,
// and a host plain.example that does not look at models.
func newErrorsWorld(t *testing.T) (*box, *pod) {
	p := startPod(t, "pod")
	on := func(host, route string) string {
		return strings.Replace(route, "  rules:", "  hostnames: ["+host+"]\n  rules:", 1)
	}
	return startBox(t, map[string]string{
		"gateway.yaml":  yamlGateway,
		"backends.yaml": yamlService("pod", p) + yamlPool("pool", startPicker(t, "pool", p), p) + yamlPool("pool-plain", startPicker(t, "pool-plain", p), p),
		"routes.yaml": on("plain.example", yamlRoute("plain", rule(toService("pod"), onPath("/")))) +
			on("llm.example", yamlRoute("models",
				rule(toPool("pool"), onModel("llama")),
				rule(toService("pod"), onPath("/plain")),
				rule(toPool("pool-plain"), onPath("/pool-plain")))),
	}, boxOptions{}), p
}

// TestUnknownModel asks for models that no route names.
func TestUnknownModel(t *testing.T) {
	t.Parallel()
	b, p := newErrorsWorld(t)
	for _, protocol := range protocols {
		client := newClient(t, protocol)
		for _, model := range []string{"nobody", "llama2", "LLAMA", "org/model:tag", `back\slash`, "<b>&'`", "%REQ(x-request-id)%", strings.Repeat("m", 256)} {
			want := fmt.Sprintf(`{"error":{"message":%q,"type":"invalid_request_error","param":"model","code":"model_not_found"}}`,
				"The model `"+model+"` does not exist or you do not have access to it.")
			for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/"} {
				checkError(t, protocol+" "+path+" "+model, sendTo(client, b.URL+path, "application/json", chat(model)), 404, want)
			}
		}
	}
	if n := p.Requests.Load(); n != 0 {
		t.Errorf("%d requests reached a pod", n)
	}
}

// sendTo sends a POST, to llm.example unless header says otherwise.
func sendTo(client *http.Client, url, contentType string, body []byte, header ...string) answer {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer{Err: err}
	}
	req.Host = "llm.example"
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Add(header[i], header[i+1])
	}
	return do(client, req)
}

// unreadable is a body from which no model can be read, and why.
type unreadable struct {
	code        contract.ErrorCode
	contentType string
	body        []byte
	header      []string
}

func unreadables(t *testing.T) []unreadable {
	form, formType := speech(t, "a", 100, true)
	return []unreadable{
		{contract.InvalidJSON, "application/json", []byte(`{"model":"llama"`), nil},
		{contract.MissingModel, "application/json", []byte(`{"messages":[]}`), nil},
		{contract.MissingModel, "application/json", nil, nil},
		{contract.DuplicateModel, "application/json", []byte(`{"model":"llama","model":"other"}`), nil},
		{contract.InvalidModel, "application/json", []byte(`{"model":7}`), nil},
		{contract.InvalidMultipart, formType, form[:len(form)-20], nil},
		{contract.InvalidContentType, "text/plain", []byte(`{"model":"llama"}`), nil},
		{contract.UnsupportedContentEncoding, "application/json", zipped(t, chat("llama")), []string{"Content-Encoding", "gzip"}},
		{contract.BodyTooLarge, "application/json", modelLast(holdLimit + 1<<20), nil},
	}
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestUnreadable has one body for each failure there is: where only models are routed it
// is an error in OpenAI's shape, and where a plain rule matches it is none of the
// gateway's business.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	b, p := newErrorsWorld(t)
	all := unreadables(t)
	for _, f := range contract.Failures {
		if !slices.ContainsFunc(all, func(u unreadable) bool { return u.code == f.Code }) {
			t.Errorf("no body here for failure %s", f.Code)
		}
	}
	for _, protocol := range protocols {
		client := newClient(t, protocol)
		for _, u := range all {
			at := protocol + " " + string(u.code)
			before := p.Requests.Load()
			checkFailure(t, at, sendTo(client, b.URL+"/v1/chat/completions", u.contentType, u.body, u.header...), u.code)
			if n := p.Requests.Load() - before; n != 0 {
				t.Errorf("%s: the request reached a pod", at)
			}
			for _, path := range []string{"/plain", "/pool-plain"} {
				checkUntouched(t, at+" "+path, sendTo(client, b.URL+path, u.contentType, u.body, u.header...), u.body)
			}
		}
	}
}

// checkUntouched checks that a pod received a body as it was sent, and no word of the
// gateway's about its model.
func checkUntouched(t *testing.T, at string, a answer, body []byte) {
	t.Helper()
	got, err := a.parse()
	if err != nil {
		t.Errorf("%s: %v", at, err)
		return
	}
	checkSame(t, at, got, body)
	for name, values := range got.Header {
		if strings.HasPrefix(name, "X-Signalbox-") || name == "X-Gateway-Model-Name" || name == "X-Gateway-Base-Model-Name" {
			t.Errorf("%s: the pod received %s: %q", at, name, values)
		}
	}
}

// TestLateConflict has a second model beyond what the gateway holds: the request is on its
// way to the pod by then, but never gets there whole.
func TestLateConflict(t *testing.T) {
	t.Parallel()
	b, p := newErrorsWorld(t)
	body := padded(`{"model":"llama","prompt":"`, `","model":"other"}`, 8<<20)
	for _, protocol := range protocols {
		client := newClient(t, protocol)
		before := p.Partial.Load()
		checkFailure(t, protocol, sendTo(client, b.URL+"/v1/chat/completions", "application/json", body), contract.DuplicateModel)
		waitFor(t, "the pod sees the request's end, if it was sent any of it", func() bool { return p.Partial.Load()-before == p.Requests.Load()-before })
	}
	if got := sendTo(newClient(t, "HTTP/1.1"), b.URL+"/v1/chat/completions", "application/json", modelFirst(8<<20)); got.Status != 200 {
		t.Errorf("the same body without the second model: %d %v", got.Status, got.Err)
	}
}

// TestUnmodelledHost sends anything to a host that has no rule about models.
func TestUnmodelledHost(t *testing.T) {
	t.Parallel()
	b, _ := newErrorsWorld(t)
	bodies := map[string][]byte{
		"empty": nil, "one byte": {0}, "JSON": chat("llama"), "not JSON": []byte("model=llama"),
		"gzip": zipped(t, chat("llama")), "huge": padded("<", ">", 16<<20), "huge JSON": modelLast(16 << 20),
	}
	for _, protocol := range protocols {
		client := newClient(t, protocol)
		for name, body := range bodies {
			for _, contentType := range []string{"", "application/json", "multipart/form-data; boundary=x", "application/octet-stream"} {
				a := sendTo(client, b.URL+"/any", contentType, body, "Host", "plain.example", "X-Gateway-Model-Name", "llama", "X-Signalbox-Model-Error", "invalid_json")
				checkUntouched(t, fmt.Sprintf("%s %s as %q", protocol, name, contentType), a, body)
			}
		}
	}
}

// TestWithoutBody sends methods that have no body to hosts with and without model rules.
func TestWithoutBody(t *testing.T) {
	t.Parallel()
	b, _ := newErrorsWorld(t)
	for _, protocol := range protocols {
		client := newClient(t, protocol)
		for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS"} {
			for _, c := range []struct {
				host, path string
				want       int
			}{
				{"elsewhere.example", "/", 404},
				{"llm.example", "/v1/models", 404}, // no rule matches
				{"llm.example", "/plain/v1/models", 200},
				{"llm.example", "/pool-plain/v1/models", 200},
				{"plain.example", "/v1/models", 200},
			} {
				req, err := http.NewRequest(method, b.URL+c.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = c.host
				req.Header.Set("X-Gateway-Model-Name", "llama")
				a := do(client, req)
				at := fmt.Sprintf("%s %s %s%s", protocol, method, c.host, c.path)
				if a.Err != nil || a.Status != c.want {
					t.Errorf("%s: %d %v; want %d", at, a.Status, a.Err, c.want)
				}
				if c.want == 404 && a.Body != "" { // plain: it is not about a model
					t.Errorf("%s: the body is %q", at, a.Body)
				}
				if c.want == 200 && method != "HEAD" {
					checkUntouched(t, at, a, nil)
				}
			}
		}
	}
}

// TestBaseModel routes 1,000 adapters by one rule on their base model.
func TestBaseModel(t *testing.T) {
	t.Parallel()
	p := startPod(t, "pod")
	lora := func(i int) string { return fmt.Sprintf("org/lora-%d", i) }
	configMap := func(name string, from, to int) string {
		var adapters strings.Builder
		for i := from; i < to; i++ {
			fmt.Fprintf(&adapters, "    - %s\n", lora(i))
		}
		return fmt.Sprintf(`---
apiVersion: v1
kind: ConfigMap
metadata: {name: %s, namespace: default, labels: {inference.networking.k8s.io/bbr-managed: "true"}}
data:
  baseModel: org/base
  adapters: |
%s`, name, &adapters)
	}
	const adapters = 1000
	b := startBox(t, map[string]string{
		"gateway.yaml":  yamlGateway,
		"pool.yaml":     yamlPool("pool", startPicker(t, "pool", p), p),
		"adapters.yaml": configMap("first", 0, 400) + configMap("second", 400, adapters),
		"route.yaml":    yamlRoute("base", rule(toPool("pool"), "{headers: [{name: X-Gateway-Base-Model-Name, value: org/base}]}")),
	}, boxOptions{})
	ask := func(model string) (problem error) {
		got, err := post(context.Background(), b.URL+"/v1/chat/completions", "application/json", chat(model), "X-Gateway-Base-Model-Name", "forged").parse()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", model, err)
		case !slices.Equal(got.Header["X-Gateway-Base-Model-Name"], []string{"org/base"}), !slices.Equal(got.Header["X-Gateway-Model-Name"], []string{model}):
			return fmt.Errorf("%s: the pod received the headers %q", model, got.Header)
		}
		return nil
	}
	if err := ask("org/base"); err != nil {
		t.Error(err)
	}
	var wg sync.WaitGroup
	const workers = 8
	for w := range workers {
		wg.Go(func() {
			for i := w; i < adapters; i += workers {
				if err := ask(lora(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()

	unknown := lora(adapters)
	if a := post(t.Context(), b.URL, "application/json", chat(unknown)); a.Status != 404 || !strings.Contains(a.Body, "model_not_found") {
		t.Errorf("an adapter that no ConfigMap has: %d %s", a.Status, a.Body)
	}
	b.Write("more.yaml", configMap("third", adapters, adapters+1))
	waitFor(t, "a new adapter is served", func() bool { return ask(unknown) == nil })
	b.Remove("more.yaml")
	waitFor(t, "an adapter that is gone is not", func() bool {
		return post(t.Context(), b.URL, "application/json", chat(unknown)).Status == 404
	})
}

// TestRequestToNothing reads what comes when a route has nothing to send to: an error of
// the gateway's, at once.
func TestRequestToNothing(t *testing.T) {
	t.Parallel()
	b := startBox(t, map[string]string{
		"gateway.yaml": yamlGateway,
		"backends.yaml": yamlService("empty") + yamlPool("empty", "") +
			"---\napiVersion: v1\nkind: Service\nmetadata: {name: portless}\nspec: {ports: [{name: http, port: 81}]}\n",
		"route.yaml": yamlRoute("r", rule(toService("empty"), onPath("/service")), rule(toPool("empty"), onPath("/pool")),
			rule(toService("missing"), onPath("/missing")), rule(toPool("missing"), onPath("/no-pool")), rule(toService("portless"), onPath("/portless"))),
	}, boxOptions{})
	for path, want := range map[string]int{"/service": 503, "/pool": 503, "/missing": 500, "/no-pool": 500, "/portless": 500} {
		resp, err := http.Get(b.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: %s %s; want %d", path, resp.Status, body, want)
		}
	}
}
