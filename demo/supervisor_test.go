package demo

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"signalbox.dev/demo/modelserver"
)

// freePorts returns ports of 127.0.0.1 that nobody listens on.
func freePorts(t *testing.T, n int) (ports []any) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

const (
	livePods = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pods, labels: {app: a}, annotations: {signalbox.dev/demo: model-server, signalbox.dev/demo-models: "%s"}}
addressType: IPv4
ports: [{port: %d}]
endpoints: [{addresses: [127.0.0.1]}]`
	livePicker = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: epp-1, labels: {kubernetes.io/service-name: epp}}
addressType: IPv4
ports: [{name: grpc, port: %d}]
endpoints: [{addresses: [127.0.0.1]}]`
)

// supervise returns a function that updates a supervisor with YAML and returns the error.
func supervise(t *testing.T) func(docs ...string) error {
	t.Helper()
	s := NewSupervisor(zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		cancel()
	})
	return func(docs ...string) error { return s.Update(ctx, decode(t, strings.Join(docs, "\n---\n"))) }
}

// models asks a model server for its models; "" if nobody listens.
func models(t *testing.T, port any) string {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Get(fmt.Sprintf("http://127.0.0.1:%d/v1/models", port))
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ask asks a picker once; it returns the pick, or the status that it answered with.
func ask(t *testing.T, port any) string {
	t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", port), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := extproc.NewExternalProcessorClient(conn).Process(t.Context())
	if err != nil {
		return ""
	}
	s.Send(&extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: &core.HeaderMap{}, EndOfStream: true}}})
	m, err := s.Recv()
	if err != nil {
		return ""
	}
	if m.GetImmediateResponse() != nil {
		return m.GetImmediateResponse().GetStatus().GetCode().String()
	}
	return m.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()["x-gateway-destination-endpoint"].GetStringValue()
}

// The parts follow the objects: they come, change and go with them.
func TestSupervisor(t *testing.T) {
	update := supervise(t)
	p := freePorts(t, 3)
	first, second := fmt.Sprintf(livePods, "base", p[0]), fmt.Sprintf(livePods, "other,lora", p[1])
	epp := fmt.Sprintf(livePicker, p[2])

	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(update(first))
	if got := models(t, p[0]); !strings.Contains(got, `"id":"base"`) {
		t.Errorf("models %q", got)
	}
	must(update(first, pool, service, epp))
	if got := ask(t, p[2]); got != fmt.Sprintf("127.0.0.1:%d", p[0]) {
		t.Errorf("picked %q", got)
	}
	must(update(second, pool, service, epp)) // the picker stays and learns
	if got := models(t, p[0]); got != "" {
		t.Errorf("still there: %q", got)
	}
	if got := models(t, p[1]); !strings.Contains(got, `"id":"lora"`) {
		t.Errorf("models %q", got)
	}
	if got := ask(t, p[2]); got != fmt.Sprintf("127.0.0.1:%d", p[1]) {
		t.Errorf("picked %q", got)
	}
	must(update(pool, service, epp))
	if got := ask(t, p[2]); got != "ServiceUnavailable" {
		t.Errorf("picked %q though no pod is left", got)
	}
	must(update())
	if got := ask(t, p[2]); got != "" {
		t.Errorf("the picker is still there: %q", got)
	}
}

// New models on the same address: the address changes hands at once, and an answer that
// runs goes on to its end.
func TestSupervisorReplaces(t *testing.T) {
	update := supervise(t)
	port := freePorts(t, 1)[0]
	if err := update(fmt.Sprintf(livePods, "base", port)); err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest(http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/v1/completions", port), strings.NewReader(`{"prompt":"x","stream":true}`))
	req.Header.Set(modelserver.WantTokenDelay, "20ms")
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := update(fmt.Sprintf(livePods, "new", port)); err != nil {
		t.Fatal(err)
	}
	if got := models(t, port); !strings.Contains(got, `"id":"new"`) {
		t.Errorf("models %q", got)
	}
	var last string
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if lines.Text() != "" {
			last = lines.Text()
		}
	}
	if last != "data: [DONE]" {
		t.Errorf("the running answer ended with %q", last)
	}
}

// What cannot start is told, costs no other, and is tried again with the next update.
func TestSupervisorRetries(t *testing.T) {
	update := supervise(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken, free := any(l.Addr().(*net.TCPAddr).Port), freePorts(t, 1)[0]
	docs := []string{fmt.Sprintf(livePods, "base", taken), strings.Replace(fmt.Sprintf(livePods, "base", free), "name: pods", "name: free", 1),
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {signalbox.dev/demo: picker}}"}
	err = update(docs...)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"EndpointSlice/default/pods: ", "another program has this port", "Pod/default/p: annotation signalbox.dev/demo has no effect"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %q", want, err)
		}
	}
	if got := models(t, free); !strings.Contains(got, "base") {
		t.Errorf("the other server answers %q", got)
	}
	l.Close()
	if err := update(docs[:2]...); err != nil {
		t.Error(err)
	}
	if got := models(t, taken); !strings.Contains(got, "base") {
		t.Errorf("models %q", got)
	}
}
