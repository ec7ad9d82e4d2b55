package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sigs.k8s.io/yaml"
)

// ran is how a command ended.
type ran struct {
	code           int
	stdout, stderr string
}

// runCommand runs signalbox with arguments, variables of the environment (NAME=VALUE)
// and a standard input, until it ends.
func runCommand(t testing.TB, environment []string, stdin string, args ...string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t, "SIGNALBOX"), args...)
	cmd.Env = append(os.Environ(), environment...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Errorf("signalbox %s did not end within %v\n%s", strings.Join(args, " "), patience, &stderr)
	}
	return ran{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// TestExitStatus: 0 ok, 1 failed, 2 wrong usage; the words say what to mend.
func TestExitStatus(t *testing.T) {
	t.Parallel()
	envoy := binary(t, "ENVOY")
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(broken, []byte("a: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken := strings.TrimPrefix(startPod(t, "taken").Address, "http://")
	for _, c := range []struct {
		args   string
		code   int
		stderr string // a part of it
	}{
		{"", 0, ""},
		{"--help", 0, ""},
		{"version", 0, ""},
		{"completion bash", 0, ""},
		{"completion zsh", 0, ""},
		{"completion fish", 0, ""},
		{"completion powershell", 0, ""},
		{"translate ../testdata/guides", 0, ""},
		{"bootstrap --gateway default/gw", 0, ""},

		{"translate /nowhere", 1, "/nowhere"},
		{"translate " + broken, 1, broken + ":"},
		{"translate ../testdata/guides --gateway default/nowhere", 1, `no Gateway "default/nowhere"`},
		{"run /nowhere --admin 127.0.0.1:0 --envoy " + envoy, 1, "/nowhere"},
		{"serve --source dir:/nowhere --admin 127.0.0.1:0 --xds 127.0.0.1:0", 1, "/nowhere"},
		{"serve --source dir:../testdata/guides --xds 127.0.0.1:0 --admin " + taken, 1, "address already in use"},
		{"extproc --metrics= --listen " + taken, 1, "address already in use"},
		{"extproc --metrics= --listen 0.0.0.0:9004", 1, "not a loopback address"},

		{"nonsense", 2, `"nonsense"`},
		{"run", 2, "at least 1 arg"},
		{"run --nonsense", 2, "--nonsense"},
		{"run ../testdata/guides --envoy /nowhere", 2, "--envoy"},
		{"run ../testdata/guides --port 80 --envoy " + envoy, 2, "LISTENER=BOUND"},
		{"run ../testdata/guides --bind localhost --envoy " + envoy, 2, "--bind"},
		{"run ../testdata/guides --log-level loud --envoy " + envoy, 2, "--log-level"},
		{"run ../testdata/guides --log-format xml --envoy " + envoy, 2, "--log-format"},
		{"serve", 2, "--source"},
		{"serve --source ../testdata/guides", 2, "dir:PATH"},
		{"serve --source dir:../testdata/guides --extproc nowhere", 2, "--extproc"},
		{"serve extra", 2, `"extra"`},
		{"extproc --listen nowhere", 2, "--listen"},
		{"translate", 2, "at least 1 arg"},
		{"translate -o xml -", 2, "yaml or json"},
		{"translate --only nonsense -", 2, "the sections are"},
		{"bootstrap", 2, "namespace/name"},
		{"bootstrap --gateway gw", 2, "namespace/name"},
		{"bootstrap --gateway default/gw --xds localhost:18000", 2, "numeric host"},
		{"demo nonsense", 2, `"nonsense"`},
		{"demo picker", 2, "--endpoints"},
		{"demo model-server", 2, "--models"},
		{"completion nonsense", 2, `"nonsense"`},
	} {
		got := runCommand(t, nil, "", strings.Fields(c.args)...)
		if got.code != c.code || !strings.Contains(got.stderr, c.stderr) {
			t.Errorf("signalbox %s: exit status %d; want %d and %q\n%s", c.args, got.code, c.code, c.stderr, got.stderr)
		}
		if c.code != 0 && strings.Contains(got.stderr, "goroutine ") {
			t.Errorf("signalbox %s panics:\n%s", c.args, got.stderr)
		}
	}
}

var (
	commandInHelp = regexp.MustCompile(`(?m)^  ([a-z-]+) +\S`)
	flagInHelp    = regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)(?: (string|strings|stringArray|int|duration))? `)
)

// walkCommands calls f for every command with the types of its flags, as --help tells
// them.
func walkCommands(t *testing.T, f func(command []string, flags map[string]string), command ...string) {
	t.Helper()
	help := runCommand(t, nil, "", append(command, "--help")...)
	if help.code != 0 || help.stderr != "" {
		t.Fatalf("%v --help: exit status %d\n%s", command, help.code, help.stderr)
	}
	_, list, _ := strings.Cut(help.stdout, "\nFlags:\n")
	flags := map[string]string{}
	for _, m := range flagInHelp.FindAllStringSubmatch(list, -1) {
		if m[1] != "help" {
			flags[m[1]] = m[2]
		}
	}
	f(command, flags)
	if _, list, ok := strings.Cut(help.stdout, "\nAvailable Commands:\n"); ok {
		list, _, _ = strings.Cut(list, "\n\n")
		for _, m := range commandInHelp.FindAllStringSubmatch(list, -1) {
			if m[1] != "help" {
				walkCommands(t, f, append(slices.Clone(command), m[1])...)
			}
		}
	}
}

// wrongValues are, for flags of text, values that no command takes, with what it says;
// "": every text is right.
var wrongValues = map[string]string{
	"admin": "nowhere", "bind": "nowhere", "envoy": "/nowhere", "envoy-admin": "nowhere", "extproc": "nowhere",
	"gateway": "nowhere", "listen": "nowhere", "log-format": "nowhere", "log-level": "nowhere", "metrics": "nowhere",
	"only": "nowhere", "output": "nowhere", "port": "nowhere", "source": "nowhere", "xds": "nowhere", "endpoints": "nowhere",
}

// needed are the arguments without which a command says nothing of its flags.
var needed = map[string][]string{
	"run":               {"../testdata/guides"},
	"serve":             {"--source", "dir:/nowhere"},
	"translate":         {"../testdata/guides"},
	"bootstrap":         {"--gateway", "default/gw"},
	"demo model-server": {"--models", "m"},
	"demo picker":       {"--endpoints", "127.0.0.1:1"},
}

// TestEnvironment sets the twin of every flag of every command to what cannot be: each
// says so as it would say of the flag. Flags for which every text is right are looked
// at below.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	tried := 0
	walkCommands(t, func(command []string, flags map[string]string) {
		for name, typ := range flags {
			value := "nowhere"
			if strings.HasPrefix(typ, "string") {
				if value = wrongValues[name]; value == "" {
					continue
				}
			}
			twin := "SIGNALBOX_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
			var args []string
			args = append(args, command...)
			if n := needed[strings.Join(command, " ")]; len(n) == 0 || n[0] != "--"+name {
				args = append(args, n...)
			}
			got := runCommand(t, []string{twin + "=" + value, "SIGNALBOX_TEST=1"}, "", args...)
			if got.code == 0 || !strings.Contains(got.stderr, "nowhere") {
				t.Errorf("%s=%s signalbox %s: exit status %d\n%s", twin, value, strings.Join(args, " "), got.code, got.stderr)
			}
			tried++
		}
	})
	if tried < 30 {
		t.Errorf("only %d flags were found in the commands' help", tried)
	}
}

// TestEnvironmentValues: twins are taken, a flag wins, and a repeatable flag's twin
// holds several values.
func TestEnvironmentValues(t *testing.T) {
	t.Parallel()
	environment := []string{"SIGNALBOX_GATEWAY=default/gw", "SIGNALBOX_ID=twin", "SIGNALBOX_STATE_OF_THE_WORLD=true"}
	got := runCommand(t, environment, "", "bootstrap")
	for _, want := range []string{`id: "twin"`, `cluster: "default/gw"`, "api_type: GRPC\n"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("no %q in the bootstrap:\n%s%s", want, got.stdout, got.stderr)
		}
	}
	if got := runCommand(t, environment, "", "bootstrap", "--id", "flag"); !strings.Contains(got.stdout, `id: "flag"`) {
		t.Errorf("the flag does not win over the environment:\n%s", got.stdout)
	}
	two := yamlGateway + "  - {name: second, port: 81, protocol: HTTP}\n"
	two = strings.Replace(two, "  listeners: [{name: http, port: 80, protocol: HTTP}]", "  listeners:\n  - {name: http, port: 80, protocol: HTTP}", 1)
	got = runCommand(t, []string{"SIGNALBOX_PORT=80=8080,81=8081", "SIGNALBOX_ONLY=listeners", "SIGNALBOX_OUTPUT=json"}, two, "translate", "-")
	if got.code != 0 || !strings.Contains(got.stdout, `"portValue": 8080`) || !strings.Contains(got.stdout, `"portValue": 8081`) || strings.Contains(got.stdout, `"status"`) {
		t.Errorf("translate with SIGNALBOX_PORT, _ONLY and _OUTPUT: exit status %d\n%.2000s%s", got.code, got.stdout, got.stderr)
	}
}

// TestCompletion asks as a shell does.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ typed, want string }{
		{"tr", "translate"}, {"demo ", "model-server"}, {"run --dr", "--drain-timeout"}, {"completion ", "zsh"},
	} {
		words := strings.Split(c.typed, " ")
		if got := runCommand(t, nil, "", append([]string{"__complete"}, words...)...); !strings.Contains(got.stdout, c.want) {
			t.Errorf("completing %q: %q; want %s", c.typed, got.stdout, c.want)
		}
	}
	if bash, err := exec.LookPath("bash"); err == nil {
		script := runCommand(t, nil, "", "completion", "bash").stdout
		if out, err := exec.Command(bash, "-n", "-c", script).CombinedOutput(); err != nil {
			t.Errorf("bash does not take its completion: %v\n%s", err, out)
		}
	}
}

// TestVersion prints one line.
func TestVersion(t *testing.T) {
	t.Parallel()
	if got := runCommand(t, nil, "", "version"); !regexp.MustCompile(`^signalbox .*go1\..* \w+/\w+\n$`).MatchString(got.stdout) {
		t.Errorf("version prints %q", got.stdout)
	}
}

// TestLogFormat: each line is one of JSON where that is asked for.
func TestLogFormat(t *testing.T) {
	t.Parallel()
	b := startBare(t, map[string]string{"gateway.yaml": yamlGateway}, "--log-format", "json", "--log-level", "debug")
	waitFor(t, "/readyz", func() bool { return get(t.Context(), b.admin+"/readyz").Status == 200 })
	b.serve.stop(t)
	lines := strings.Split(strings.TrimSpace(b.serve.output.String()), "\n")
	for _, line := range lines {
		var entry struct{ Level, Msg string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Level == "" || entry.Msg == "" {
			t.Errorf("not a log entry in JSON: %v\n%s", err, line)
		}
	}
	if len(lines) < 2 || b.serve.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("%d lines, exit status %d", len(lines), b.serve.cmd.ProcessState.ExitCode())
	}
}

// TestTranslate prints the same from a directory, from files and from the standard
// input, in both formats, and parts of it.
func TestTranslate(t *testing.T) {
	t.Parallel()
	const guides = "../testdata/guides"
	var files []string
	var all strings.Builder
	err := filepath.WalkDir(guides, func(path string, d os.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".yaml" {
			files = append(files, path)
			text, err := os.ReadFile(path)
			all.WriteString("---\n" + string(text) + "\n")
			return err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	whole := runCommand(t, nil, "", "translate", guides)
	if whole.code != 0 || whole.stderr != "" {
		t.Fatalf("translate %s: exit status %d\n%s", guides, whole.code, whole.stderr)
	}
	for name, got := range map[string]ran{
		"files":          runCommand(t, nil, "", append([]string{"translate"}, files...)...),
		"standard input": runCommand(t, nil, all.String(), "translate", "-"),
		"twice":          runCommand(t, nil, "", "translate", guides),
		"gateway":        runCommand(t, nil, "", "translate", "--gateway", "default/inference-gateway", guides),
	} {
		if got.stdout != whole.stdout {
			t.Errorf("%s: translates differently from the directory\n%s", name, got.stderr)
		}
	}
	fromJSON, err := yaml.JSONToYAML([]byte(runCommand(t, nil, "", "translate", "-o", "json", guides).stdout))
	if err != nil || string(fromJSON) != whole.stdout {
		t.Errorf("-o json says other things than -o yaml: %v", err)
	}
	for _, section := range []string{"listeners", "routes", "clusters", "endpoints", "status"} {
		var got struct {
			Envoy  map[string]map[string][]any
			Status []any
		}
		out := runCommand(t, nil, "", "translate", "--only", section, "-o", "json", guides)
		if err := json.Unmarshal([]byte(out.stdout), &got); err != nil {
			t.Fatal(err)
		}
		sections := got.Envoy["default/inference-gateway"]
		if section == "status" && (len(got.Status) == 0 || len(sections) > 0) || section != "status" && (len(got.Status) > 0 || len(sections) != 1 || len(sections[section]) == 0) {
			t.Errorf("--only %s prints %d statuses and %d sections", section, len(got.Status), len(sections))
		}
	}
}

// TestTranslateProblems: what cannot be read is told with its place, and the rest is
// printed.
func TestTranslateProblems(t *testing.T) {
	t.Parallel()
	wrong := strings.Replace(yamlRoute("wrong", rule(toService("pod"), onPath("/"))), "parentRefs", "parentRef", 1)
	deployment := "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: ignored}\n"
	got := runCommand(t, nil, yamlGateway+wrong+deployment, "translate", "-")
	if got.code != 1 || !regexp.MustCompile(`(?m)^stdin:\d+:\d+: HTTPRoute/default/wrong .*parentRef`).MatchString(got.stderr) {
		t.Errorf("exit status %d, stderr:\n%s", got.code, got.stderr)
	}
	if !strings.Contains(got.stderr, "Deployment ignored") && !strings.Contains(got.stderr, "Deployment default/ignored") {
		t.Errorf("the Deployment is not told of:\n%s", got.stderr)
	}
	if !strings.Contains(got.stdout, "kind: Gateway\n") {
		t.Errorf("the Gateway is not translated:\n%s", got.stdout)
	}
}

// envoyPIDs returns the processes of the Envoys that a box started, in order.
func (b *box) envoyPIDs() []int {
	var out []int
	for _, m := range regexp.MustCompile(`Envoy started\t.*"pid": (\d+)`).FindAllStringSubmatch(b.output.String(), -1) {
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			b.t.Fatal(err)
		}
		out = append(out, pid)
	}
	return out
}

// alive says whether a process is there.
func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// TestRunDrains stops signalbox while a slow token stream runs: the stream ends as it
// should, the exit status is 0, and nothing is left.
func TestRunDrains(t *testing.T) {
	t.Parallel()
	for name, signal := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLockstep(5)
			b := newStreamWorld(t, startPodWith(t, "pod", l.ServeHTTP))
			pids := b.envoyPIDs()
			if len(pids) != 1 || !alive(pids[0]) {
				t.Fatalf("the Envoys are %v", pids)
			}
			resp, _ := openStream(t, newClient(t, "HTTP/1.1"), b.URL+"/pool")
			events := newEvents(resp)
			nextEvent(t, events)
			if err := b.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "new connections are refused", func() bool {
				return get(t.Context(), b.URL, "Connection", "close").Err != nil
			})
			for range 4 {
				l.next <- struct{}{}
				nextEvent(t, events)
			}
			l.next <- struct{}{}
			if got := nextEvent(t, events); got != "[DONE]" {
				t.Errorf("the stream ends with %s", got)
			}
			b.waitExit(0)
			if alive(pids[0]) {
				t.Error("the Envoy lives on")
			}
		})
	}
}

// TestRunStopsOnlyInTime cuts what takes longer than --drain-timeout.
func TestRunStopsOnlyInTime(t *testing.T) {
	t.Parallel()
	l := newLockstep(5)
	p := startPodWith(t, "pod", l.ServeHTTP)
	b := startBox(t, map[string]string{
		"gateway.yaml": yamlGateway, "service.yaml": yamlService("pod", p), "route.yaml": yamlRoute("r", rule(toService("pod"), onPath("/"))),
	}, boxOptions{Args: []string{"--drain-timeout", "200ms"}})
	resp, _ := openStream(t, newClient(t, "HTTP/1.1"), b.URL)
	nextEvent(t, newEvents(resp))
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.waitExit(0)
	waitClosed(t, l.gone, "the pod sees that the stream was cut")
}

// TestEnvoyKilled: an Envoy that dies is reported and comes back.
func TestEnvoyKilled(t *testing.T) {
	t.Parallel()
	b := startBox(t, map[string]string{"gateway.yaml": yamlGateway}, boxOptions{})
	first := b.envoyPIDs()[0]
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its death is reported", func() bool { return strings.Contains(b.output.String(), "Envoy died; starting it again") })
	waitFor(t, "another answers", func() bool { return get(t.Context(), b.URL).Status == 404 })
	if pids := b.envoyPIDs(); len(pids) < 2 || pids[len(pids)-1] == first {
		t.Errorf("the Envoys were %v", pids)
	}
}

// TestSignalboxKilled: an Envoy does not outlive a signalbox that was killed.
func TestSignalboxKilled(t *testing.T) {
	t.Parallel()
	b := startBox(t, map[string]string{"gateway.yaml": yamlGateway}, boxOptions{})
	pid := b.envoyPIDs()[0]
	if err := b.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the Envoy ends", func() bool { return !alive(pid) })
}

// TestGatewaysComeAndGo runs one Envoy for each Gateway that is there.
func TestGatewaysComeAndGo(t *testing.T) {
	t.Parallel()
	_, gateway, _ := strings.Cut(yamlGateway, "---\n")
	b := startBox(t, map[string]string{"gateway.yaml": yamlGateway}, boxOptions{Listeners: []int{80, 81}, Ready: 1})
	b.Write("second.yaml", strings.NewReplacer("name: gw", "name: second", "port: 80", "port: 81").Replace(gateway))
	if line, want := b.waitReady(), fmt.Sprintf("ready http://127.0.0.1:%d gateway=default/second listener=http", b.Ports[81]); line != want {
		t.Errorf("stdout says %q; want %q", line, want)
	}
	pids := b.envoyPIDs()
	if len(pids) != 2 {
		t.Fatalf("the Envoys are %v", pids)
	}
	b.Remove("second.yaml")
	waitFor(t, "the second Envoy ends", func() bool { return !alive(pids[1]) })
	if get(t.Context(), b.URL).Status != 404 || !alive(pids[0]) {
		t.Error("the first Gateway does not answer any more")
	}
}

// TestWatchedDirectory edits files as people do: what is right is followed, what is
// wrong keeps what was last good and is reported with its place.
func TestWatchedDirectory(t *testing.T) {
	t.Parallel()
	p := startPod(t, "pod")
	route := func(path string) string { return yamlRoute("r", rule(toService("pod"), onPath(path))) }
	b := startBox(t, map[string]string{"gateway.yaml": yamlGateway, "service.yaml": yamlService("pod", p), "sub/route.yaml": route("/a")}, boxOptions{})
	serves := func(path string) bool { return get(t.Context(), b.URL+path).Status == 200 }
	if !serves("/a") {
		t.Error("/a is not served at the start")
	}
	b.Write("sub/route.yaml", route("/b"))
	waitFor(t, "an edit is followed", func() bool { return serves("/b") && !serves("/a") })
	b.Write("sub/more.yaml", strings.Replace(route("/c"), "name: r,", "name: more,", 1))
	waitFor(t, "a new file is followed", func() bool { return serves("/c") })

	file := filepath.Join(b.Dir, "sub/route.yaml")
	for _, c := range []struct{ name, text, where, message string }{
		{"not YAML", "a: 1\nb: [\n", `:[23]:\d+$`, ""},
		{"unknown field", strings.Replace(route("/d"), "rules:", "rulez:", 1), `:7:3$`, "rulez"},
		{"refused by the CRD", strings.Replace(route("/d"), "PathPrefix", "Nonsense", 1), `:8:\d+$`, "Nonsense"},
	} {
		b.Write("sub/route.yaml", c.text)
		place := regexp.MustCompile("^" + regexp.QuoteMeta(file) + c.where)
		waitFor(t, c.name+" is reported", func() bool {
			problems := b.problems()
			return len(problems) == 1 && place.MatchString(problems[0].Where) && strings.Contains(problems[0].Message, c.message)
		})
		if where := b.problems()[0].Where; !strings.Contains(b.output.String(), where) {
			t.Errorf("%s: stderr does not say %s", c.name, where)
		}
		if !serves("/b") || serves("/d") || !serves("/c") {
			t.Errorf("%s: what was last good is not served", c.name)
		}
	}
	b.Write("sub/route.yaml", route("/e"))
	waitFor(t, "the mended file is followed", func() bool { return serves("/e") && !serves("/b") && len(b.problems()) == 0 })
	b.Remove("sub/more.yaml")
	waitFor(t, "a file that is gone is followed", func() bool { return !serves("/c") })
	if err := os.Rename(file, filepath.Join(b.Dir, "renamed.yaml")); err != nil {
		t.Fatal(err)
	}
	b.Write("sub/other.yaml", strings.Replace(route("/f"), "name: r,", "name: other,", 1))
	waitFor(t, "a file after a rename is followed", func() bool { return serves("/f") })
	if !serves("/e") {
		t.Error("a renamed file is not served any more")
	}
}
