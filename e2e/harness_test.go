// Package e2e holds the tests of the real thing: the signalbox binary, a real Envoy,
// the real extractor and real pickers, through the front door. A test writes YAML into
// a folder, runs `signalbox run` on it and sends HTTP requests.
//
// The environment says what to use: SIGNALBOX is the binary (make build), ENVOY the
// Envoy. `make e2e` sets both.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"signalbox.dev/source"
)

// patience is how long a test waits for something that should happen at once.
const patience = 30 * time.Second

// binary returns the path in an environment variable, or fails saying how to get it.
func binary(t testing.TB, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s is not set: run these tests with `make e2e`", variable)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// box is a running `signalbox run` on a folder of YAML.
type box struct {
	t      testing.TB
	Dir    string // the folder
	URL    string // http://127.0.0.1:PORT, for the listener on port 80
	Admin  string // http://127.0.0.1:PORT
	Ports  map[int]int
	cmd    *exec.Cmd
	output *lockedBuffer
	ready  chan string // "ready …" lines
	exited chan error
}

// boxOptions change how a box is run.
type boxOptions struct {
	Listeners []int    // listener ports to bind; default 80
	Ready     int      // ready lines to wait for; default len(Listeners)
	Args      []string // more arguments
	Problems  bool     // the files may have problems at the start
}

// startBox writes files (name → YAML) into a folder, runs signalbox on it and waits
// until its listeners are ready. It is drained and stopped at the end of the test.
func startBox(t testing.TB, files map[string]string, o boxOptions) *box {
	t.Helper()
	b := &box{t: t, Dir: t.TempDir(), output: &lockedBuffer{}, ready: make(chan string, 64), exited: make(chan error, 1), Ports: map[int]int{}}
	for name, text := range files {
		b.Write(name, text)
	}
	if len(o.Listeners) == 0 {
		o.Listeners = []int{80}
	}
	if o.Ready == 0 {
		o.Ready = len(o.Listeners)
	}
	admin := freePort(t)
	args := []string{"run", b.Dir, "--envoy", binary(t, "ENVOY"), "--admin", fmt.Sprintf("127.0.0.1:%d", admin), "--log-level", "debug"}
	for _, l := range o.Listeners {
		b.Ports[l] = freePort(t)
		args = append(args, "--port", fmt.Sprintf("%d=%d", l, b.Ports[l]))
	}
	b.URL = fmt.Sprintf("http://127.0.0.1:%d", b.Ports[o.Listeners[0]])
	b.Admin = fmt.Sprintf("http://127.0.0.1:%d", admin)
	b.cmd = exec.Command(binary(t, "SIGNALBOX"), append(args, o.Args...)...)
	b.cmd.Stderr = b.output
	stdout, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	go func() {
		for s := bufio.NewScanner(stdout); s.Scan(); {
			fmt.Fprintln(b.output, "stdout:", s.Text())
			if strings.HasPrefix(s.Text(), "ready ") {
				b.ready <- s.Text()
			}
		}
		b.exited <- b.cmd.Wait()
		close(b.exited)
	}()
	for range o.Ready {
		b.waitReady()
	}
	if p := b.problems(); len(p) > 0 && !o.Problems {
		t.Fatalf("the test's own YAML is wrong: %v", p)
	}
	return b
}

// waitExit waits until signalbox has ended and checks its exit status.
func (b *box) waitExit(want int) {
	b.t.Helper()
	select {
	case <-b.exited:
		if got := b.cmd.ProcessState.ExitCode(); got != want {
			b.t.Errorf("signalbox ended with exit status %d; want %d", got, want)
		}
	case <-time.After(2 * patience):
		b.t.Fatalf("signalbox did not end within %v", 2*patience)
	}
}

// waitReady waits for the next ready line and returns it.
func (b *box) waitReady() string {
	b.t.Helper()
	select {
	case line := <-b.ready:
		return line
	case err := <-b.exited:
		b.t.Fatalf("signalbox ended: %v\n%s", err, b.output)
	case <-time.After(patience):
		b.t.Fatalf("no listener became ready within %v\n%s", patience, b.output)
	}
	return ""
}

// stop asks signalbox to drain and end, and shows its output if the test has failed.
func (b *box) stop() {
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.exited:
	case <-time.After(patience):
		b.t.Errorf("signalbox did not end within %v of SIGTERM", patience)
		_ = b.cmd.Process.Kill()
		<-b.exited
	}
	if b.t.Failed() {
		b.t.Logf("signalbox said:\n%s", b.output.tail(200))
	}
}

// program is another process that a test runs: a part of signalbox alone, or an Envoy.
type program struct {
	name   string
	cmd    *exec.Cmd
	output *lockedBuffer // stdout and stderr
	exited chan struct{} // closed when it has ended
	err    error         // then: how
}

// startProgram starts a process. It is asked to end, by SIGTERM, at the end of the test,
// and its output is shown if the test has failed.
func startProgram(t testing.TB, path string, args ...string) *program {
	t.Helper()
	p := &program{name: filepath.Base(path), cmd: exec.Command(path, args...), output: &lockedBuffer{}, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.stop(t)
		if t.Failed() {
			t.Logf("%s %s said:\n%s", p.name, strings.Join(args, " "), p.output.tail(100))
		}
	})
	return p
}

// stop asks the process to end and waits until it has.
func (p *program) stop(t testing.TB) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(patience):
		t.Errorf("%s did not end within %v of SIGTERM", p.name, patience)
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// waitOutput waits until the process has printed text.
func (p *program) waitOutput(t testing.TB, text string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%s prints %q", p.name, text), func() bool {
		select {
		case <-p.exited:
			if !strings.Contains(p.output.String(), text) {
				t.Fatalf("%s ended (%v) without %q", p.name, p.err, text)
			}
		default:
		}
		return strings.Contains(p.output.String(), text)
	})
}

// Write puts a file into the folder, whole, as an editor would: under another name first.
func (b *box) Write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		b.t.Fatal(err)
	}
}

// Remove takes a file out of the folder.
func (b *box) Remove(name string) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.Dir, name)); err != nil {
		b.t.Fatal(err)
	}
}

// adminJSON reads a JSON page of the admin interface.
func (b *box) adminJSON(path string, into any) {
	b.t.Helper()
	resp, err := http.Get(b.Admin + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("GET %s: %s %v\n%s", path, resp.Status, err, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		b.t.Fatalf("GET %s: %v\n%s", path, err, body)
	}
}

// problems returns what signalbox cannot read now.
func (b *box) problems() []source.Problem {
	b.t.Helper()
	var page struct{ Problems []source.Problem }
	b.adminJSON("/debug/status", &page)
	return page.Problems
}

// waitFor polls until done says true: for what is visible only from the outside.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// answer is what came back for a request, read to its end.
type answer struct {
	Status int
	Header http.Header
	Body   string
	Err    error
}

// post sends a body and reads the whole answer.
func post(ctx context.Context, url, contentType string, body []byte, header ...string) answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer{Err: err}
	}
	req.Header.Set("Content-Type", contentType)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return do(sharedClient, req)
}

// get sends a GET.
func get(ctx context.Context, url string, header ...string) answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{Err: err}
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return do(sharedClient, req)
}

// sharedClient speaks HTTP/1.1 and keeps its connections, so that many requests at a
// time do not use up the machine's ports.
var sharedClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}}

// protocols are what clients speak to Envoy. Tests that are about what is on the wire
// run with each of them.
var protocols = []string{"HTTP/1.1", "h2c"}

// newClient returns a client of its own connections that speaks one of the protocols:
// HTTP/1.1, or HTTP/2 without TLS and without an upgrade (prior knowledge).
func newClient(t testing.TB, protocol string) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, ExpectContinueTimeout: patience, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(protocol == "HTTP/1.1")
	tr.Protocols.SetUnencryptedHTTP2(protocol == "h2c")
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// do sends a request and reads the whole answer.
func do(client *http.Client, req *http.Request) answer {
	resp, err := client.Do(req)
	if err != nil {
		return answer{Err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{Status: resp.StatusCode, Header: resp.Header, Body: string(b), Err: err}
}

// chat returns a chat completion request for a model.
func chat(model string) []byte {
	return fmt.Appendf(nil, `{"model":%q,"messages":[{"role":"user","content":"hello"}],"max_tokens":5}`, model)
}

// freePort returns a TCP port of 127.0.0.1 that nobody uses now, for a process that is
// started next. It is below the range from which systems take the ports of outgoing
// connections and of listeners that do not care, so that none of those takes it before.
func freePort(t testing.TB) int {
	t.Helper()
	const first, count = 10_000, 20_000
	for range count {
		port := first + int(nextPort.Add(1))%count
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port on 127.0.0.1")
	return 0
}

// nextPort starts anywhere, so that two runs at a time do not meet.
var nextPort = func() *atomic.Uint32 {
	var n atomic.Uint32
	n.Store(rand.Uint32N(1 << 16))
	return &n
}()

// lockedBuffer collects output of several writers.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) tail(lines int) string {
	all := strings.Split(l.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
