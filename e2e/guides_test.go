package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"signalbox.dev/translator"
)

// The simulated pods and pickers of the guides have addresses of their own in
// 127.0.0.0/8. Each run of a test moves them elsewhere there, so that it meets neither
// another nor a `make demo` of the same machine.
var demoAddress = regexp.MustCompile(`\b127\.0\.(\d+\.\d+)\b`)

func moveDemo(text string, second int) string {
	return demoAddress.ReplaceAllString(text, fmt.Sprintf("127.%d.$1", second))
}

func elsewhere() int { return 64 + rand.IntN(160) }

// readTestdata returns a file of testdata.
func readTestdata(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../testdata", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// guideFiles returns the files of testdata/guides below a folder, the addresses moved.
func guideFiles(t *testing.T, folder string, second int) map[string]string {
	t.Helper()
	files := map[string]string{}
	root := os.DirFS("../testdata/guides")
	err := fs.WalkDir(root, folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(root, path)
		files[path] = moveDemo(string(b), second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// curls returns the curl commands of a guide, as they stand there.
func curls(t *testing.T, guide string) []string {
	t.Helper()
	var out []string
	for _, block := range regexp.MustCompile("(?ms)^ *```bash\n(.*?)^ *```").FindAllStringSubmatch(guide, -1) {
		if command := strings.TrimSpace(block[1]); strings.HasPrefix(command, "curl ") {
			out = append(out, command)
		}
	}
	if len(out) == 0 {
		t.Fatal("no curl command in the guide")
	}
	return out
}

// guideAnswers are what the guides' requests must come to, by model: the pool whose
// picker is asked, "" for the gateway's own 404 since no route names the model.
var guideAnswers = map[string]string{
	"meta-llama/Llama-3.1-8B-Instruct": "default/vllm-llama3-8b-instruct",
	"food-review-1":                    "default/vllm-llama3-8b-instruct",
	"microsoft/Phi-4-mini-instruct":    "default/vllm-phi4-mini-instruct",
	"movie-critique":                   "default/vllm-deepseek-r1",
	"ski-resorts":                      "",
	"chatbot":                          "default/gemma3",
	"recommender":                      "default/deepseek-r1",
}

// TestGuides types every curl command of both guides.
func TestGuides(t *testing.T) {
	t.Parallel()
	b := startBox(t, guideFiles(t, ".", elsewhere()), boxOptions{})
	address, err := url.Parse(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	for _, guide := range []string{"multiple-models-and-loras", "multiple-models"} {
		for _, command := range curls(t, readTestdata(t, "guides/"+guide+"/guide.md")) {
			sh := exec.Command("sh", "-c", command)
			sh.Env = append(os.Environ(), "IP="+address.Hostname(), "PORT="+address.Port())
			out, err := sh.Output()
			if err != nil {
				t.Fatalf("%s\n%v", command, err)
			}
			asked[checkCurl(t, command, string(out))] = true
		}
	}
	for model := range guideAnswers {
		if !asked[model] {
			t.Errorf("no command of the guides asks for %s", model)
		}
	}
	checkGuideStatuses(t, b)
}

var modelInCommand = regexp.MustCompile(`"model": *"([^"]+)"`)

// checkCurl checks what curl -i printed and returns the model that it asked for.
func checkCurl(t *testing.T, command, out string) string {
	t.Helper()
	m := modelInCommand.FindStringSubmatch(command)
	if m == nil {
		t.Fatalf("no model in: %s", command)
	}
	pool, known := guideAnswers[m[1]]
	if !known {
		t.Fatalf("the test does not know model %s", m[1])
	}
	head, body, _ := strings.Cut(strings.ReplaceAll(out, "\r\n", "\n"), "\n\n")
	want := []string{"HTTP/1.1 200 OK\n", "x-demo-picker: " + pool + "\n", "x-demo-pod: " + strings.TrimPrefix(pool, "default/")}
	if pool == "" {
		want = []string{"HTTP/1.1 404 Not Found\n", "content-type: application/json\n"}
		var got struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil || got.Error.Code != "model_not_found" || !strings.Contains(got.Error.Message, "`"+m[1]+"`") {
			t.Errorf("%s\nwant model_not_found; got %s", command, body)
		}
	}
	for _, w := range want {
		if !strings.Contains(head+"\n", w) {
			t.Errorf("%s\nwant %q in\n%s", command, w, head)
		}
	}
	if pool == "" && strings.Contains(head, "x-demo-pod") {
		t.Errorf("%s\nwas sent to a pod\n%s", command, head)
	}
	return m[1]
}

// checkGuideStatuses looks at what the guides tell their readers to look at: the routes'
// conditions. The one HTTPRoute that leaves out the pool's group gets a hint.
func checkGuideStatuses(t *testing.T, b *box) {
	t.Helper()
	var page struct {
		Objects []struct {
			translator.ObjectStatus
			Status struct {
				Parents []struct {
					Conditions []struct{ Type, Status, Message string }
				}
			} `json:"status"`
		}
	}
	b.adminJSON("/debug/status", &page)
	routes, warned := 0, false
	for _, o := range page.Objects {
		if o.Kind != "HTTPRoute" {
			continue
		}
		routes++
		true_ := map[string]bool{}
		for _, p := range o.Status.Parents {
			for _, c := range p.Conditions {
				true_[c.Type] = c.Status == "True"
			}
		}
		if !true_["Accepted"] || !true_["ResolvedRefs"] {
			t.Errorf("HTTPRoute %s: %+v; want Accepted and ResolvedRefs", o.Name, o.Status.Parents)
		}
		warned = warned || o.Name == "routes-to-llms" && slices.ContainsFunc(o.Warnings, func(w string) bool { return strings.Contains(w, "inference.networking.k8s.io") })
	}
	if routes != 5 {
		t.Errorf("%d HTTPRoutes have a status; want 5", routes)
	}
	if !warned {
		t.Error("no warning on routes-to-llms names the pool's right group")
	}
}

// TestDemo runs what `make demo` runs, without a terminal.
func TestDemo(t *testing.T) {
	t.Parallel()
	checkout, second := t.TempDir(), elsewhere()
	script, err := os.ReadFile("../scripts/demo")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"scripts/demo": string(script)}
	for name, text := range guideFiles(t, ".", second) {
		files["testdata/guides/"+name] = text
	}
	for name, text := range files {
		path := filepath.Join(checkout, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	demo := exec.CommandContext(ctx, filepath.Join(checkout, "scripts/demo"))
	demo.Env = append(os.Environ(), "SIGNALBOX="+binary(t, "SIGNALBOX"), "ENVOY="+binary(t, "ENVOY"), "TMPDIR="+t.TempDir())
	out, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"15 of 15 requests", "pool default/vllm-llama3-8b-instruct, pod vllm-llama3-8b-instruct-", "the gateway itself, model_not_found", "/debug/status"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
		}
	}
}

// TestGuideSteps does what the first guide does on its way, while clients keep asking:
// delete llm-route, apply llm-llama-route, apply it again in another shape. From the
// moment its model is routed no request for it fails.
func TestGuideSteps(t *testing.T) {
	t.Parallel()
	const llama, phi, lora = "meta-llama/Llama-3.1-8B-Instruct", "microsoft/Phi-4-mini-instruct", "food-review-1"
	files := guideFiles(t, "base", elsewhere())
	files["route.yaml"] = readTestdata(t, "guides-steps/multiple-models-and-loras/0-llm-route.yaml")
	b := startBox(t, files, boxOptions{})
	served := func(model string) bool {
		a := post(t.Context(), b.URL+"/v1/chat/completions", "application/json", chat(model))
		return a.Status == 200 && a.Header.Get("x-demo-picker") == guideAnswers[model]
	}
	asking := askConstantly(t, b, llama)
	asking.more(t, 50)
	asking.none(t, "before anything changes")

	b.Remove("route.yaml")
	waitFor(t, "no route is left", func() bool { return !served(llama) })
	b.Write("route.yaml", readTestdata(t, "guides-steps/multiple-models-and-loras/1-httproute_bbr.yaml"))
	waitFor(t, "the first shape of llm-llama-route is there", func() bool { return served(llama) && served(phi) })
	for status, n := range asking.begin() {
		if status != 404 { // the guide's own gap: no route names anything
			t.Errorf("while no route was there, %d requests were answered %d; want 404 alone", n, status)
		}
	}
	asking.more(t, 100)

	// What kubectl apply does: llm-llama-route is replaced, llm-phi4-route stays.
	b.Write("route.yaml", readTestdata(t, "guides-steps/multiple-models-and-loras/2-httproute_bbr_lora.yaml")+"\n---\n"+readTestdata(t, "guides/multiple-models-and-loras/llm-phi4-route.yaml"))
	waitFor(t, "the second shape of llm-llama-route is there", func() bool { return served(lora) && served("movie-critique") && served(phi) })
	asking.more(t, 200)
	asking.none(t, "once the model was routed")
}

// asker sends requests for a model without a pause and counts the answers.
type asker struct {
	total    atomic.Int64
	mu       sync.Mutex
	failures map[int]int // by status; -1: no answer, -2: of another pool
	last     string
}

func askConstantly(t *testing.T, b *box, model string) *asker {
	a := &asker{failures: map[int]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				got := post(ctx, b.URL+"/v1/chat/completions", "application/json", chat(model))
				if ctx.Err() != nil {
					return
				}
				a.count(got, got.Header.Get("x-demo-picker") == guideAnswers[model])
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() }) // before the box stops
	return a
}

func (a *asker) count(got answer, rightPool bool) {
	a.total.Add(1)
	status := got.Status
	switch {
	case got.Err != nil:
		status = -1
	case status == 200 && rightPool:
		return
	case status == 200:
		status = -2
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failures[status]++
	a.last = fmt.Sprintf("%d %v %s", got.Status, got.Err, got.Body)
}

// more waits until n more requests were answered.
func (a *asker) more(t *testing.T, n int64) {
	t.Helper()
	until := a.total.Load() + n
	waitFor(t, fmt.Sprintf("%d more answers", n), func() bool { return a.total.Load() >= until })
}

// begin starts to count anew and returns the failures so far.
func (a *asker) begin() map[int]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.failures
	a.failures = map[int]int{}
	return before
}

// none checks that nothing has failed since begin.
func (a *asker) none(t *testing.T, when string) {
	t.Helper()
	if failures := a.begin(); len(failures) > 0 {
		t.Errorf("%s, requests failed, by status: %v; the last: %s", when, failures, a.last)
	}
}
