package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errFault = status.Error(codes.Unavailable, "test fault")

func at(ph phase, do func(*faultyStream) error) script {
	return script{At: map[phase]func(*faultyStream) error{ph: do}}
}

func eager(s script) script { s.Eager = true; return s }

// pickerFaults are what a picker that can be reached does wrong. GET says that it happens
// to a request without a body too; else that one is picked for.
var pickerFaults = []struct {
	name   string
	GET    bool
	script script
}{
	{"error at the headers", true, at(atHeaders, fails(errFault))},
	{"error at the end of the body", true, at(beforeAnswer, fails(errFault))},
	{"error after the headers", false, at(afterHeaders, fails(errFault))},
	{"error in the body", false, at(midBody, fails(errFault))},
	{"error in the body, piece by piece", false, eager(at(midBody, fails(errFault)))},
	{"OK before the headers", true, at(atHeaders, fails(errEnd))},
	{"OK at the end of the body", true, at(beforeAnswer, fails(errEnd))},
	{"OK after the headers", false, at(afterHeaders, fails(errEnd))},
	{"OK after the headers, at once", false, eager(at(afterHeaders, fails(errEnd)))},
	{"OK in the body", false, at(midBody, fails(errEnd))},
	{"OK in a body that it changes", false, script{Rewrite: longerModel, At: map[phase]func(*faultyStream) error{midBody: fails(errEnd)}}},
	{"a body reply that is not streamed", false, at(afterHeaders, says(bodyReply(&extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{}})))},
	{"a body reply as if BUFFERED", false, at(afterHeaders, says(bodyReply(&extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{
		BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: []byte("x")}}}})))},
	{"the body before the headers", true, at(beforeAnswer, says(bodyReply(piece(nil, true))))},
	{"an answer to response headers", true, at(beforeAnswer, says(&extprocv3.ProcessingResponse{
		Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}))},
	{"an empty message", true, at(beforeAnswer, says(&extprocv3.ProcessingResponse{}))},
	{"other processing modes", true, at(beforeAnswer, says(&extprocv3.ProcessingResponse{ModeOverride: &filterv3.ProcessingMode{},
		Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}))},
	{"an illegal header", true, script{Set: []*corev3.HeaderValueOption{setHeader("x-test", "a\r\nb: c")}}},
	{"two picks that differ", true, script{Endpoint: "127.0.0.1:1", Metadata: new("127.0.0.1:2")}},
}

func bodyReply(b *extprocv3.BodyResponse) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: b}}
}

// faultyHookup is two pools, open and close, with a faulty picker each.
func faultyHookup(t *testing.T) (h *hookup, open, closed *faultyPicker) {
	t.Helper()
	h = newHookup(t)
	open, closed = startFaulty(t, "open-epp", false), startFaulty(t, "close-epp", false)
	h.run(t, hookupPool{Name: "open", FailOpen: true, Pickers: []string{open.Address}},
		hookupPool{Name: "close", Pickers: []string{closed.Address}})
	return h, open, closed
}

// TestPickerFaults: whatever a picker does wrong, FailOpen loses nothing, FailClose lets
// nothing through, and no pod sees half a body.
func TestPickerFaults(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	for _, f := range pickerFaults {
		t.Run(f.name, func(t *testing.T) {
			toOpen, toClose := f.script, f.script
			if f.script.Endpoint == "" {
				toOpen.Endpoint, toClose.Endpoint = h.Open[0].Address, h.Close[0].Address
			}
			open.Do(toOpen)
			closed.Do(toClose)
			asked := open.asked.Load() + closed.asked.Load()
			atOpen, atClose := watchPods(h.Open...), watchPods(h.Close...)
			pools := []string{"open", "close"}
			replies := append(h.sendAll(t.Context(), pools), h.sendAll(t.Context(), pools, "Host", plainHost)...)
			leaks := int64(0)
			for _, r := range replies {
				switch {
				case r.Size == noBody && !f.GET && r.Pool == "open":
					r.picked(t, open.Name, h.Open[0])
				case r.Size == noBody && !f.GET:
					leaks++
					r.picked(t, closed.Name, h.Close[0])
				case r.Pool == "open":
					r.unpicked(t, h.Open)
				default:
					r.refused(t)
				}
			}
			atOpen(t, "open", int64(len(replies)/2))
			atClose(t, "close", leaks)
			if n := open.asked.Load() + closed.asked.Load() - asked; n != int64(len(replies)) {
				t.Errorf("pickers were asked %d times for %d requests", n, len(replies))
			}
		})
	}
	t.Run("right again", func(t *testing.T) {
		open.Do(script{Endpoint: h.Open[1].Address})
		closed.Do(script{Endpoint: h.Close[1].Address})
		for _, r := range h.sendAll(t.Context(), []string{"open", "close"}) {
			if r.Pool == "open" {
				r.picked(t, open.Name, h.Open[1])
			} else {
				r.picked(t, closed.Name, h.Close[1])
			}
		}
	})
	if n, _ := requests(h.Outsider); n != 0 {
		t.Errorf("%d requests reached a pod of no pool", n)
	}
}

// TestPicks: what counts as a pick, and what comes of one that the pool does not have.
func TestPicks(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	stranger := "10.255.255.1:8000" // in no pool
	tenKiB := strings.TrimSuffix(strings.Repeat(stranger+",", 10<<10/len(stranger)), ",")
	for _, c := range []struct {
		name   string
		script func(pod string) script
		picks  bool // the pod is served from
	}{
		{"header and metadata", func(pod string) script { return script{Endpoint: pod} }, true},
		{"header only", func(pod string) script { return script{Endpoint: pod, Metadata: new("")} }, true},
		{"metadata only", func(pod string) script { return script{Endpoint: pod, Header: new("")} }, true},
		{"piece by piece", func(pod string) script { return script{Endpoint: pod, Eager: true} }, true},
		{"list whose first is not in the pool", func(pod string) script { return script{Endpoint: stranger + "," + pod} }, true},
		{"list of 10 KiB, last one right", func(pod string) script { return script{Endpoint: tenKiB + "," + pod} }, true},
		{"list with empty items", func(pod string) script { return script{Endpoint: " , ," + pod + ","} }, true},
		{"nothing", func(string) script { return script{} }, false},
		{"unknown endpoint", func(string) script { return script{Endpoint: stranger} }, false},
		{"endpoint outside the pool", func(string) script { return script{Endpoint: h.Outsider.Address} }, false},
		{"address without port", func(string) script { return script{Endpoint: "127.0.0.1"} }, false},
		{"garbage", func(string) script { return script{Endpoint: "%s://\u00e9 no endpoint"} }, false},
		{"list of 10 KiB, none right", func(string) script { return script{Endpoint: tenKiB} }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			open.Do(c.script(h.Open[1].Address))
			closed.Do(c.script(h.Close[1].Address))
			atClose := watchPods(h.Close...)
			leaks := int64(0)
			for _, r := range h.sendAll(t.Context(), []string{"open", "close"}) {
				switch {
				case c.picks && r.Pool == "open":
					r.picked(t, open.Name, h.Open[1])
				case c.picks:
					leaks++
					r.picked(t, closed.Name, h.Close[1])
				case r.Pool == "open":
					if got, ok := r.podGot(t); ok && !slices.ContainsFunc(h.Open, func(p *pod) bool { return p.Name == got.Pod }) {
						t.Errorf("%v: served by %s", r, got.Pod)
					}
				case r.Err != nil || r.Status != 503:
					t.Errorf("%v: want 503", r)
				}
			}
			atClose(t, "close", leaks)
		})
	}
	if n, _ := requests(h.Outsider); n != 0 {
		t.Errorf("%d requests reached a pod of no pool", n)
	}
}

// TestDeadPick: a pod of the pool that does not listen is a pick like any other: 503, also
// with a list that names others behind it, since no route asks for retries.
func TestDeadPick(t *testing.T) {
	t.Parallel()
	h := newHookup(t)
	p := startFaulty(t, "epp", false)
	dead := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	h.run(t, hookupPool{Name: "open", FailOpen: true, Pickers: []string{p.Address}}, hookupPool{Name: "close", Pickers: []string{p.Address}})
	p.Do(script{Endpoint: strings.Join([]string{dead, h.Open[0].Address, h.Close[0].Address}, ",")})
	h.Write("dead.yaml", yamlSlice("dead-open", "app: open", dead)+yamlSlice("dead-close", "app: close", dead))
	pools := []string{"open", "close"}
	waitFor(t, "the dead pod is in the pools", func() bool {
		return h.send(t.Context(), "open", noBody).Status == 503 && h.send(t.Context(), "close", noBody).Status == 503
	})
	atOpen, atClose := watchPods(h.Open...), watchPods(h.Close...)
	for _, r := range h.sendAll(t.Context(), pools) {
		if r.Err != nil || r.Status != 503 {
			t.Errorf("%v: want 503", r)
		}
	}
	atOpen(t, "open", 0)
	atClose(t, "close", 0)
}

// TestPickerAnswersItself: an ImmediateResponse goes to the client as it is.
func TestPickerAnswersItself(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	for _, c := range []struct {
		status int
		script script
	}{
		{429, script{Own: ownAnswer(429, "rejected-saturated", "system saturated, sheddable request dropped")}},
		{503, script{Own: ownAnswer(503, "rejected-no-endpoints", "failed to find endpoint candidates")}},
		{400, script{Own: ownAnswer(400, "bad", "model not found in the request body"), Eager: true}},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			open.Do(c.script)
			closed.Do(c.script)
			atOpen, atClose := watchPods(h.Open...), watchPods(h.Close...)
			reason := string(c.script.Own.Headers.SetHeaders[0].Header.RawValue)
			for _, r := range h.sendAll(t.Context(), []string{"open", "close"}) {
				if r.Err != nil || r.Status != c.status || r.Body != string(c.script.Own.Body) || r.Header.Get("X-Llm-D-Request-Dropped-Reason") != reason {
					t.Errorf("%v %v: want the picker's %d", r, r.Header, c.status)
				}
			}
			atOpen(t, "open", 0)
			atClose(t, "close", 0)
		})
	}
}

// What requests may take whose picker fails, with what a busy machine adds.
const (
	// soon is for failures that show at once; less than what it takes to miss two probes.
	soon = 2 * time.Second
	// hungBound is for a picker which shows no sign of life: two probes of a second, the
	// first a quarter of a second after the request.
	hungBound = 5 * time.Second
)

// TestUnreachablePicker: pickers that cannot be talked to at all.
func TestUnreachablePicker(t *testing.T) {
	t.Parallel()
	h := newHookup(t)
	plain, secure := startFaulty(t, "plain", true), startFaulty(t, "secure", false)
	stopped := startPickerProcess(t, "stopped", "127.0.0.1:1")
	stopped.Signal(syscall.SIGSTOP)
	cases := []struct {
		name        string
		picker      []string
		annotations string
		policy      string // the CA of a BackendTLSPolicy
		bound       time.Duration
	}{
		{"none", nil, "", "", soon},
		{"refused", []string{fmt.Sprintf("127.0.0.1:%d", freePort(t))}, "", "", soon},
		{"blackhole", []string{blackhole(t)}, "", "", hungBound},
		{"silent", []string{rawServer(t, "")}, "", "", hungBound},
		{"smtp", []string{rawServer(t, "220 mail.test ESMTP ready\r\n")}, "", "", hungBound},
		{"stopped", []string{stopped.Address}, "", "", hungBound},
		{"plaintext", []string{plain.Address}, "", "", soon},
		{"tls", []string{secure.Address}, `signalbox.dev/picker-tls: plaintext`, "", soon},
		{"other-ca", []string{secure.Address}, "", startFaulty(t, "other", false).CA, soon},
	}
	var pools []hookupPool
	for _, c := range cases {
		for _, open := range []bool{true, false} {
			p := hookupPool{Name: c.name + map[bool]string{true: "-open", false: "-close"}[open], FailOpen: open, Pickers: c.picker, Annotations: c.annotations}
			pools = append(pools, p)
		}
	}
	files := hookupFiles(h.Open, h.Close, pools)
	for i, p := range pools {
		if ca := cases[i/2].policy; ca != "" {
			files["policy-"+p.Name+".yaml"] = yamlPolicy(p.Name+"-epp", ca)
		}
	}
	h.box = startBox(t, files, boxOptions{})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			atOpen, atClose := watchPods(h.Open...), watchPods(h.Close...)
			for _, bound := range []time.Duration{c.bound, soon} { // the second time it is known
				slowest := time.Duration(0)
				for _, r := range h.sendAll(t.Context(), []string{c.name + "-open", c.name + "-close"}) {
					if strings.HasSuffix(r.Pool, "-open") {
						r.unpicked(t, h.Open)
					} else {
						r.refused(t)
					}
					if slowest = max(slowest, r.Took); r.Size <= 300 && r.Took > bound {
						t.Errorf("%v: later than %v", r, bound)
					}
				}
				t.Logf("slowest %v", slowest)
			}
			atOpen(t, "open", int64(2*len(hookupSizes)))
			atClose(t, "close", 0)
		})
	}
	if n := plain.asked.Load() + secure.asked.Load(); n != 0 {
		t.Errorf("pickers that could not be trusted were asked %d times", n)
	}
}

// yamlPolicy has a Service's certificate verified, for the name picker.test.
func yamlPolicy(service, ca string) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: %[1]s, namespace: default}
spec:
  targetRefs: [{group: "", kind: Service, name: %[1]s}]
  validation:
    hostname: picker.test
    caCertificateRefs: [{group: "", kind: ConfigMap, name: %[1]s-ca}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: %[1]s-ca, namespace: default}
data:
  ca.crt: |
    %[2]s
`, service, strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n    "))
}

// TestVerifiedPicker: with a BackendTLSPolicy on its Service a picker is asked only if its
// certificate is right, and a change of the CA is honoured at once.
func TestVerifiedPicker(t *testing.T) {
	t.Parallel()
	h, open, closed := faultyHookup(t)
	open.Do(script{Endpoint: h.Open[0].Address})
	closed.Do(script{Endpoint: h.Close[0].Address})
	other := startFaulty(t, "other", false).CA
	for _, right := range []bool{true, false, true} {
		openCA, closeCA := open.CA, closed.CA
		if !right {
			openCA, closeCA = other, other
		}
		h.Write("policy-open.yaml", yamlPolicy("open-epp", openCA))
		h.Write("policy-close.yaml", yamlPolicy("close-epp", closeCA))
		waitFor(t, "the policies are in use", func() bool {
			return (h.send(t.Context(), "close", noBody).Status == 200) == right &&
				(h.send(t.Context(), "open", noBody).decode(t).header(headerPicker) != "") == right
		})
		for _, r := range h.sendAll(t.Context(), []string{"open", "close"}) {
			switch {
			case right && r.Pool == "open":
				r.picked(t, open.Name, h.Open[0])
			case right:
				r.picked(t, closed.Name, h.Close[0])
			case r.Pool == "open":
				r.unpicked(t, h.Open)
			default:
				r.refused(t)
			}
		}
	}
}

// blackhole is an address where connections neither succeed nor fail: the queue of its
// socket is full.
func blackhole(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}

// rawServer accepts connections, says what it is told to, and nothing more.
func rawServer(t *testing.T, says string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close() // at the end, so for as long as the test
			_, _ = c.Write([]byte(says))
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return l.Addr().String()
}
