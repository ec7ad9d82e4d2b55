package cluster

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The pool that must serve each model of the guides; "": none, since no route names it.
var pools = map[string]string{
	"meta-llama/Llama-3.1-8B-Instruct": "vllm-llama3-8b-instruct",
	"food-review-1":                    "vllm-llama3-8b-instruct",
	"microsoft/Phi-4-mini-instruct":    "vllm-phi4-mini-instruct",
	"movie-critique":                   "vllm-deepseek-r1",
	"ski-resorts":                      "",
	"chatbot":                          "gemma3",
	"recommender":                      "deepseek-r1",
}

// applied says which file of ours a guide means by a URL's last part: its own text, or the
// simulation of what needs a GPU.
var applied = map[string]string{
	"httproute_bbr.yaml":      "testdata/guides-steps/multiple-models-and-loras/1-httproute_bbr.yaml",
	"httproute_bbr_lora.yaml": "testdata/guides/multiple-models-and-loras/httproute_bbr_lora.yaml",
	"vllm-phi4-mini.yaml":     "deploy/demo/vllm-phi4-mini-instruct.yaml",
	"sim-deployment-1.yaml":   "deploy/demo/vllm-deepseek-r1.yaml",
}

// guides sets up what the guides presuppose, then types every command of theirs.
func guides(t *testing.T) {
	kubectl(t, "delete", "gateways,httproutes,inferencepools", "--all", "--wait") // of a run that was cut off
	kubectl(t, "apply", "-f", "testdata/guides/base/gateway.yaml", "-f", "testdata/guides-steps/multiple-models-and-loras/0-llm-route.yaml")
	files, err := filepath.Glob(filepath.Join(checkout, "deploy/demo/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, ourImages(t, string(b)), "apply", "-f", "-")
	}
	kubectl(t, "wait", "gateway/inference-gateway", "--for=condition=Programmed", "--timeout", patience.String())
	kubectl(t, "wait", "deployments", "--all", "--for=condition=Available", "--timeout", patience.String())

	t.Run("multiple models and LoRAs", func(t *testing.T) { typed(t, "multiple-models-and-loras", 11) })
	t.Run("multiple models", func(t *testing.T) {
		kubectl(t, "apply", "-f", "testdata/guides/multiple-models/routes-to-llms.yaml")
		typed(t, "multiple-models", 4)
	})
}

var (
	blocks = regexp.MustCompile("(?ms)^ *```bash\n(.*?)^ *```")
	remote = regexp.MustCompile(`https://\S+/([\w.-]+\.yaml)`)
)

// typed runs the commands of a guide in their order: kubectl as it stands, but for URLs
// whose files are here; curl as it stands. helm, which the guides use for the body-based
// router and for pickers, is not: the one is built in, the others came with the demo.
func typed(t *testing.T, guide string, wantCurls int) {
	text, err := os.ReadFile(filepath.Join(checkout, "testdata/guides", guide, "guide.md"))
	if err != nil {
		t.Fatal(err)
	}
	curls := 0
	address := ""
	for _, block := range blocks.FindAllStringSubmatch(string(text), -1) {
		command := strings.TrimSpace(block[1])
		switch {
		case strings.HasPrefix(command, "kubectl "):
			command = remote.ReplaceAllStringFunc(command, func(url string) string {
				file, ok := applied[url[strings.LastIndex(url, "/")+1:]]
				if !ok {
					t.Fatalf("%s: %s is not here", guide, url)
				}
				return file
			})
			if out, err := run(t, "", "sh", "-c", command); err != nil {
				t.Errorf("%s\n%s%v", command, out, err)
			}
			if strings.HasPrefix(command, "kubectl apply") {
				routesAccepted(t)
			}
		case strings.HasPrefix(command, "IP="):
			out, err := run(t, "", "sh", "-c", command+"; echo $IP $PORT")
			if err != nil {
				t.Fatal(err)
			}
			address = strings.TrimSpace(out)
		case strings.HasPrefix(command, "curl "):
			curls++
			curl(t, command, address)
		}
	}
	if curls < wantCurls {
		t.Errorf("only %d curl commands were found in the guide, not %d", curls, wantCurls)
	}
}

// routesAccepted waits until every route is accepted with its references resolved.
func routesAccepted(t *testing.T) {
	t.Helper()
	kubectl(t, "wait", "httproutes", "--all", "--timeout", patience.String(),
		`--for=jsonpath={.status.parents[0].conditions[?(@.type=="Accepted")].status}=True`)
	kubectl(t, "wait", "httproutes", "--all", "--timeout", patience.String(),
		`--for=jsonpath={.status.parents[0].conditions[?(@.type=="ResolvedRefs")].status}=True`)
}

// curl runs a command of a guide and judges the answer.
func curl(t *testing.T, command, address string) {
	t.Helper()
	ip, port, _ := strings.Cut(address, " ")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
	cmd.Env = append(os.Environ(), "IP="+ip, "PORT="+port)
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%s with IP=%s PORT=%s: %v", command, ip, port, err)
		return
	}
	head, body, _ := bytes.Cut(out, []byte("\r\n\r\n"))
	asked := regexp.MustCompile(`"model": "([^"]+)"`).FindStringSubmatch(command)[1]
	pool, known := pools[asked]
	if !known {
		t.Fatalf("which pool must serve %s?", asked)
	}
	var answer struct {
		Model string
		Error struct{ Code string }
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Errorf("%s: %v in\n%s", command, err, out)
		return
	}
	picker, pod := header(head, "x-demo-picker"), header(head, "x-demo-pod")
	switch status := string(bytes.Fields(head)[1]); {
	case pool == "" && (status != "404" || answer.Error.Code != "model_not_found" || pod != ""):
		t.Errorf("model %s, which no route names, got %s %s from pod %q", asked, status, answer.Error.Code, pod)
	case pool != "" && (status != "200" || answer.Model != asked || picker != "default/"+pool || !strings.HasPrefix(pod, pool+"-")):
		t.Errorf("model %s got %s from model %q, picker %q, pod %q:\n%s", asked, status, answer.Model, picker, pod, out)
	}
}

func header(head []byte, name string) string {
	for line := range strings.SplitSeq(string(head), "\r\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && http.CanonicalHeaderKey(k) == http.CanonicalHeaderKey(name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
