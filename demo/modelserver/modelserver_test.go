package modelserver

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
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves cfg on free ports, one for each rank, and returns their URLs.
func start(t *testing.T, cfg Config, ranks int) []string {
	t.Helper()
	var urls []string
	var listeners []net.Listener
	for range ranks {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		urls = append(urls, "http://"+l.Addr().String())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, cfg, listeners...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return urls
}

// client returns a client of one protocol whose connections end with the test.
func client(t *testing.T, h2c bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!h2c)
	tr.Protocols.SetUnencryptedHTTP2(h2c)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// send posts a body (GET if empty) with headers name, value, … and returns the answer.
func send(t *testing.T, c *http.Client, url, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	method := http.MethodPost
	if body == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

var pod = Config{Pod: "pod-1", Models: []string{"base", "lora-a", "lora-b"}}

func TestAnswers(t *testing.T) {
	url := start(t, pod, 1)[0]
	tests := []struct {
		name, path, body string
		status           int
		want             []string // parts of the answer
	}{
		{"chat", "/v1/chat/completions", `{"model":"lora-a","messages":[{"role":"user","content":"hello there"}]}`, 200,
			[]string{`"object":"chat.completion"`, `"model":"lora-a"`, `"role":"assistant"`, "You asked: hello there", `"finish_reason":"stop"`, `"prompt_tokens":2`}},
		{"chat parts", "/v1/chat/completions", `{"model":"base","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}`, 200, []string{`"model":"base"`}},
		{"completion", "/v1/completions", `{"model":"base","prompt":"2+2 is"}`, 200, []string{`"object":"text_completion"`, `"text":"This is base`, "2+2 is"}},
		{"max_tokens", "/v1/completions", `{"model":"base","prompt":"x","max_tokens":3}`, 200, []string{`"text":"This is base,"`, `"finish_reason":"length"`, `"completion_tokens":3`}},
		{"ignore_eos", "/v1/completions", `{"model":"base","prompt":"x","max_tokens":200,"ignore_eos":true}`, 200, []string{`"completion_tokens":200`, `"finish_reason":"length"`}},
		{"no model is the base", "/v1/completions", `{"prompt":"x"}`, 200, []string{`"model":"base"`}},
		{"embeddings", "/v1/embeddings", `{"model":"base","input":"a b c"}`, 200, []string{`"object":"embedding"`, `"prompt_tokens":3`}},
		{"unknown model", "/v1/chat/completions", `{"model":"gpt-9"}`, 404,
			[]string{"{\"error\":{\"code\":404,\"message\":\"The model `gpt-9` does not exist.\",\"param\":\"model\",\"type\":\"NotFoundError\"}}"}},
		{"not JSON", "/v1/completions", `{"model":`, 400, []string{`"type":"BadRequestError"`}},
		{"no tokens", "/v1/completions", `{"model":"base","max_tokens":0}`, 400, []string{`"param":"max_tokens"`}},
		{"health", "/health", "", 200, nil},
		{"models", "/v1/models", "", 200, []string{`{"id":"base","object":"model"`, `"parent":null}`, `{"id":"lora-b"`, `"parent":"base"}`}},
	}
	for _, h2c := range []bool{false, true} {
		c := client(t, h2c)
		for _, tt := range tests {
			t.Run(fmt.Sprintf("h2c=%t/%s", h2c, tt.name), func(t *testing.T) {
				resp, body := send(t, c, url+tt.path, tt.body)
				if resp.StatusCode != tt.status {
					t.Errorf("status %d, want %d: %s", resp.StatusCode, tt.status, body)
				}
				for _, w := range tt.want {
					if !strings.Contains(body, w) {
						t.Errorf("no %s in %s", w, body)
					}
				}
				if got := resp.Header.Get(HeaderPod); got != "pod-1" {
					t.Errorf("%s: %q", HeaderPod, got)
				}
				if got, want := resp.ProtoMajor, map[bool]int{false: 1, true: 2}[h2c]; got != want {
					t.Errorf("HTTP/%d, want HTTP/%d", got, want)
				}
			})
		}
	}
}

// events reads a stream of server-sent events to its end.
func events(t *testing.T, r io.Reader) (data []string) {
	t.Helper()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if d, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			data = append(data, d)
		} else if lines.Text() != "" {
			t.Errorf("line %q is not of an event", lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
	return data
}

func TestStream(t *testing.T) {
	url := start(t, pod, 1)[0]
	for path, text := range map[string]func(choice map[string]any) string{
		"/v1/chat/completions": func(c map[string]any) string { return c["delta"].(map[string]any)["content"].(string) },
		"/v1/completions":      func(c map[string]any) string { return c["text"].(string) },
	} {
		t.Run(path, func(t *testing.T) {
			_, body := send(t, client(t, false), url+path,
				`{"model":"lora-a","prompt":"x","max_tokens":4,"stream":true,"stream_options":{"include_usage":true}}`)
			data := events(t, strings.NewReader(body))
			if len(data) != 6 || data[5] != "[DONE]" {
				t.Fatalf("want 4 tokens, usage and [DONE], got %q", data)
			}
			var all string
			var last struct {
				Choices []map[string]any
				Usage   map[string]int
			}
			for i, d := range data[:5] {
				last.Choices = nil
				if err := json.Unmarshal([]byte(d), &last); err != nil {
					t.Fatal(err)
				}
				if i < 4 {
					all += text(last.Choices[0])
				}
				if i == 3 && last.Choices[0]["finish_reason"] != "length" {
					t.Errorf("last token's finish_reason: %v", last.Choices[0]["finish_reason"])
				}
			}
			if all != "This is lora-a, simulated" {
				t.Errorf("text %q", all)
			}
			want := map[string]int{"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
			if diff := cmp.Diff(want, last.Usage); diff != "" || len(last.Choices) != 0 {
				t.Errorf("usage event: %s, choices %v", diff, last.Choices)
			}
		})
	}
}

// A token is sent when it is there, not when the answer is complete.
func TestStreamFlushes(t *testing.T) {
	url := start(t, pod, 1)[0]
	req, _ := http.NewRequest(http.MethodPost, url+"/v1/completions", strings.NewReader(`{"model":"base","prompt":"x","stream":true}`))
	req.Header.Set(WantTokenDelay, "1h")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	resp, err := client(t, false).Do(req.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || !strings.Contains(line, `"text":"This "`) {
		t.Errorf("first event %q, %v", line, err)
	}
}

func TestReportsWhatArrived(t *testing.T) {
	url := start(t, pod, 1)[0]
	body := `{"model":"base","prompt":"` + strings.Repeat("x", 1<<20) + `"}`
	sum := sha256.Sum256([]byte(body))
	for _, h2c := range []bool{false, true} {
		for _, path := range []string{"/v1/completions", "/anything?a=b"} {
			t.Run(fmt.Sprintf("h2c=%t%s", h2c, path), func(t *testing.T) {
				req, _ := http.NewRequest(http.MethodPost, url+path, io.MultiReader(strings.NewReader(body))) // unknown length: chunked
				req.Header.Add("X-Gateway-Model-Name", "one")
				req.Header.Add("X-Gateway-Model-Name", "two")
				req.Header.Set("X-Other", "no")
				req.Header.Add("Cookie", "a=1")
				req.Header.Add("Cookie", "b=2")
				req.Trailer = http.Header{"X-End": {"here"}}
				resp, err := client(t, h2c).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				got := map[string][]string{}
				for _, name := range []string{"X-Demo-Body-Sha256", "X-Demo-Body-Length", "X-Demo-Header-X-Gateway-Model-Name", "X-Demo-Header-X-Other", "X-Demo-Trailer-X-End"} {
					got[name] = resp.Header.Values(name)
				}
				want := map[string][]string{
					"X-Demo-Body-Sha256": {hex.EncodeToString(sum[:])}, "X-Demo-Body-Length": {strconv.Itoa(len(body))},
					"X-Demo-Header-X-Gateway-Model-Name": {"one", "two"}, "X-Demo-Header-X-Other": nil, "X-Demo-Trailer-X-End": {"here"},
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
				if path == "/v1/completions" {
					return
				}
				var e Echo
				if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
					t.Fatal(err)
				}
				if e.URI != path || e.Method != http.MethodPost || e.Pod != "pod-1" || e.Body.Length != int64(len(body)) || e.Trailers.Get("X-End") != "here" {
					t.Errorf("echo %+v", e)
				}
			})
		}
	}
}

func TestWants(t *testing.T) {
	url := start(t, pod, 1)[0]
	c := client(t, false)
	resp, _ := send(t, c, url+"/x", "b", WantStatus, "503", WantHeader, "Set-Cookie: a=1", WantHeader, "Set-Cookie: b=2", WantTrailer, "X-End: yes", WantDelay, "1ms")
	if resp.StatusCode != http.StatusServiceUnavailable || len(resp.Header.Values("Set-Cookie")) != 2 || resp.Trailer.Get("X-End") != "yes" {
		t.Errorf("%d %v %v", resp.StatusCode, resp.Header, resp.Trailer)
	}
	resp, body := send(t, c, url+"/x", "b", WantSize, "300000")
	sum := sha256.Sum256([]byte(body))
	if len(body) != 300000 || resp.Header.Get("x-demo-answer-sha256") != hex.EncodeToString(sum[:]) {
		t.Errorf("%d bytes, digest %s", len(body), resp.Header.Get("x-demo-answer-sha256"))
	}
	resp, body = send(t, c, url+"/v1/completions", `{"model":"base"}`, WantStatus, "500")
	if resp.StatusCode != http.StatusInternalServerError || !strings.Contains(body, "InternalServerError") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	for _, bad := range [][2]string{{WantStatus, "99"}, {WantDelay, "soon"}, {WantTokenDelay, "1"}, {WantSize, "-1"}, {WantHeader, "no-colon"}, {WantTrailer, ":"}} {
		for _, path := range []string{"/x", "/v1/completions"} {
			resp, body := send(t, c, url+path, `{"model":"base"}`, bad[0], bad[1])
			if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, bad[0]) {
				t.Errorf("%s: %s on %s: %d %s", bad[0], bad[1], path, resp.StatusCode, body)
			}
		}
	}
}

// metric returns the line of /metrics that starts with name, or "".
func metric(t *testing.T, c *http.Client, url, name string) string {
	t.Helper()
	_, body := send(t, c, url+"/metrics", "")
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, name+"{") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// await polls until the metric's line contains want.
func await(t *testing.T, c *http.Client, url, name, want string) {
	t.Helper()
	var got string
	for range 2000 {
		if got = metric(t, c, url, name); strings.Contains(got, want) {
			return
		}
	}
	t.Fatalf("%s: %q, want %q", name, got, want)
}

func TestQueueAndMetrics(t *testing.T) {
	cfg := pod
	cfg.MaxRunning, cfg.MaxLoRA = 2, 4
	url := start(t, cfg, 1)[0]
	c := client(t, false)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answered := make(chan error, 3)
	ask := func(model string) {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", strings.NewReader(`{"model":"`+model+`"}`))
		req.Header.Set(WantDelay, "1h")
		go func() {
			resp, err := c.Do(req)
			if err == nil {
				resp.Body.Close()
			}
			answered <- err
		}()
	}
	ask("base")
	ask("lora-b")
	await(t, c, url, "vllm:num_requests_running", `{engine="0",model_name="base"} 2`)
	ask("lora-a")
	await(t, c, url, "vllm:num_requests_waiting", `{engine="0",model_name="base"} 1`)
	if got := metric(t, c, url, "vllm:lora_requests_info"); !strings.Contains(got, `{max_lora="4",running_lora_adapters="lora-b",waiting_lora_adapters="lora-a"}`) {
		t.Error(got)
	}
	for _, name := range []string{"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"} {
		if got := metric(t, c, url, name); !strings.HasSuffix(got, " 1") {
			t.Error(got)
		}
	}
	cancel() // the clients leave: nothing runs and nothing waits any more
	for range 3 {
		if err := <-answered; err == nil {
			t.Error("answered although it was to take an hour")
		}
	}
	await(t, c, url, "vllm:num_requests_running", `} 0`)
	await(t, c, url, "vllm:num_requests_waiting", `} 0`)
	send(t, c, url+"/v1/completions", `{"model":"base","prompt":"a b","max_tokens":3}`)
	await(t, c, url, "vllm:generation_tokens_total", `} 3`)
	await(t, c, url, "vllm:prompt_tokens_total", `} 2`)
}

// Data-parallel ranks are one pod, but each has its own queue.
func TestRanks(t *testing.T) {
	urls := start(t, pod, 2)
	c := client(t, false)
	send(t, c, urls[1]+"/v1/completions", `{"model":"base","prompt":"a","max_tokens":3}`)
	await(t, c, urls[0], "vllm:generation_tokens_total", `} 0`)
	await(t, c, urls[1], "vllm:generation_tokens_total", `} 3`)
}

func TestRun(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := pod
	for name, listen := range map[string][]string{"taken": {"127.0.0.1:0", l.Addr().String()}, "none": nil} {
		cfg.Listen = listen
		if err := Run(context.Background(), cfg); err == nil {
			t.Errorf("address %s: no error", name)
		}
	}
	for _, bad := range []Config{{Models: []string{"m"}}, {Pod: "p"}, {Pod: "p", Models: []string{"m", ""}}} {
		if _, err := New(bad); err == nil {
			t.Errorf("no error for %+v", bad)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	cfg.Listen = []string{"127.0.0.1:0", "127.0.0.1:0"}
	if err := Run(ctx, cfg); err != nil {
		t.Error(err)
	}
}

// An answer that runs when the server is told to stop is finished.
func TestDrain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, pod, l) }()
	req, _ := http.NewRequest(http.MethodPost, "http://"+l.Addr().String()+"/v1/completions", bytes.NewReader([]byte(`{"model":"base","prompt":"x","stream":true}`)))
	req.Header.Set(WantTokenDelay, "20ms")
	resp, err := client(t, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	if data := events(t, resp.Body); len(data) == 0 || data[len(data)-1] != "[DONE]" {
		t.Errorf("cut off: %q", data)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
