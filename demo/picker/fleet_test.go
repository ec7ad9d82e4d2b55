package picker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"signalbox.dev/demo/modelserver"
)

func TestRank(t *testing.T) {
	const a, b, c = "a", "b", "c"
	adapters := func(names ...string) map[string]bool {
		m := map[string]bool{}
		for _, n := range names {
			m[n] = true
		}
		return m
	}
	for _, tt := range []struct {
		name      string
		loads     map[string]load
		sent      map[string][]string // models of requests on their way, by endpoint
		model     string
		want      string // the best
		saturated bool
	}{
		{name: "least waiting", loads: map[string]load{a: {waiting: 2}, b: {waiting: 1, running: 9}, c: {waiting: 3}}, want: b},
		{name: "then least running", loads: map[string]load{a: {running: 2}, b: {running: 3}, c: {running: 1}}, want: c},
		{name: "what was sent counts at once", sent: map[string][]string{a: {"m"}, b: {"m"}}, want: c},
		{name: "but not twice", loads: map[string]load{a: {running: 1}, b: {running: 2}, c: {running: 2}}, sent: map[string][]string{a: {"m"}}, want: a},
		{name: "gone comes last", loads: map[string]load{a: {down: true}, b: {waiting: 4}, c: {down: true}}, want: b},
		{name: "affinity", loads: map[string]load{b: {waiting: 3, adapters: adapters("x", "y")}}, model: "y", want: b},
		{name: "affinity ends at the limit", loads: map[string]load{a: {waiting: 6}, b: {waiting: 5, adapters: adapters("y")}}, model: "y", want: c},
		{name: "affinity to what was sent", loads: map[string]load{a: {base: "base"}, b: {base: "base"}, c: {base: "base"}}, sent: map[string][]string{b: {"y"}}, model: "y", want: b},
		{name: "no affinity to the base", loads: map[string]load{a: {base: "base"}, b: {base: "base", running: 1}, c: {base: "base", running: 1}}, sent: map[string][]string{b: {"base"}}, model: "base", want: a},
		{name: "saturated", loads: map[string]load{a: {waiting: 5}, b: {waiting: 7}, c: {waiting: 8}}, want: a, saturated: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(5)
			f.observe(tt.loads)
			for e, models := range tt.sent {
				for _, m := range models {
					f.begin(e, m)
				}
			}
			for range 3 { // whoever's turn it is
				got, saturated := f.rank([]string{a, b, c}, tt.model)
				if got[0] != tt.want || saturated != tt.saturated || len(got) != 3 {
					t.Errorf("ranked %v, saturated %t; want %s first, %t", got, saturated, tt.want, tt.saturated)
				}
			}
		})
	}
	t.Run("equals take turns", func(t *testing.T) {
		f, got := newFleet(5), ""
		for range 6 {
			ranked, _ := f.rank([]string{a, b, c}, "")
			got += ranked[0]
		}
		if got != "bcabca" {
			t.Error(got)
		}
	})
	t.Run("nothing is left behind", func(t *testing.T) {
		f := newFleet(5)
		x, y := f.begin(a, "m"), f.begin(a, "m")
		x.moveTo(b)
		x.end()
		y.end()
		(*trip)(nil).end()
		if len(f.trips) != 0 {
			t.Errorf("%v", f.trips)
		}
	})
}

func TestParseMetrics(t *testing.T) {
	got, err := parseMetrics(strings.NewReader(`# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \"quoted\", name}"} 3.0
vllm:num_requests_running{engine="1",model_name="a \"quoted\", name}"} 1
vllm:num_requests_waiting{engine="0"} 2.0 1700000000000
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters="c"} 1.8e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="older",waiting_lora_adapters=""} 1.6e+09
vllm:no_labels 7
vllm:broken{x="y 1
vllm:broken{x} 1
vllm:broken{x="y"}
vllm:broken
process_cpu_seconds_total 5
`))
	want := load{running: 4, waiting: 2, base: `a "quoted", name}`, adapters: map[string]bool{"a": true, "b": true, "c": true}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(load{})); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := parseMetrics(strings.NewReader("vllm:" + strings.Repeat("x", 2<<20))); err == nil {
		t.Error("a line without end was read")
	}
}

// serveModels runs simulated pods and returns their endpoints.
func serveModels(t *testing.T, n int) []string {
	t.Helper()
	var endpoints []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- modelserver.Serve(ctx, modelserver.Config{Pod: "pod", Models: []string{"base", "lora"}, MaxRunning: 1}, l)
		}()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		endpoints = append(endpoints, l.Addr().String())
	}
	return endpoints
}

// The picker reads the very metrics that the simulated servers have: it leaves the pod
// that is busy, and seeks the one that runs the adapter.
func TestReadsMetrics(t *testing.T) {
	pods := serveModels(t, 3)
	endpoints, err := NewEndpoints(append(pods, nobody[0])...)
	if err != nil {
		t.Fatal(err)
	}
	conn, p := startPicker(t, Config{Endpoints: endpoints, MaxEndpoints: 4})
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan struct{}, 2)
	transport := &http.Transport{}
	t.Cleanup(func() { cancel(); <-left; <-left; transport.CloseIdleConnections() })
	for range 2 { // one runs, one waits
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+pods[1]+"/v1/completions", strings.NewReader(`{"model":"lora"}`))
		req.Header.Set(modelserver.WantDelay, "1h")
		go func() {
			if resp, err := (&http.Client{Transport: transport}).Do(req); err == nil {
				resp.Body.Close()
			}
			left <- struct{}{}
		}()
	}
	awaitLoads(t, p, func(loads map[string]load) bool {
		return loads[pods[1]].waiting == 1 && loads[pods[1]].running == 1 && loads[pods[0]].base == "base" && loads[nobody[0]].down
	})
	if got := open(t, conn).send(withHeaders(true)).pick(); got[2] != pods[1] || got[3] != nobody[0] {
		t.Errorf("ranked %v: want the busy pod third, %s, and the dead one last", got, pods[1])
	}
	if got := open(t, conn).send(withHeaders(false), withBody(`{"model":"lora"}`, true)).pick(); got[0] != pods[1] {
		t.Errorf("ranked %v: want the pod that runs the adapter first, %s", got, pods[1])
	}
	if got := open(t, conn).send(withHeaders(true, headerModel, "lora")).pick(); got[0] != pods[1] {
		t.Errorf("ranked %v: the gateway's header names the adapter as well", got)
	}
	if err := endpoints.Set(pods[:1]); err != nil {
		t.Fatal(err)
	}
	awaitLoads(t, p, func(loads map[string]load) bool { return len(loads) == 1 })
}

// awaitLoads waits until the picker's knowledge is as wanted.
func awaitLoads(t *testing.T, p *Picker, ok func(map[string]load) bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		p.fleet.mu.Lock()
		loads := p.fleet.loads
		p.fleet.mu.Unlock()
		if ok(loads) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the picker knows %+v", loads)
		}
		<-time.After(p.cfg.ScrapeInterval)
	}
}

func TestEndpoints(t *testing.T) {
	e := &Endpoints{}
	for _, bad := range []string{"", "10.0.0.1", "host:80", "10.0.0.1:99999", "::1:80"} {
		if err := e.Set([]string{"10.0.0.1:80", bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if _, known := e.get(); known {
		t.Error("a refused list counts as known")
	}
	if err := e.Set(nil); err != nil {
		t.Error(err)
	}
	if _, known := e.get(); !known {
		t.Error("an empty list is known")
	}
	news := e.changed()
	if err := e.Set([]string{}); err != nil {
		t.Error(err)
	}
	select {
	case <-news:
		t.Error("the same list is no news")
	default:
	}
	if err := e.Set([]string{"[::1]:80", "10.0.0.1:80", "10.0.0.1:80"}); err != nil {
		t.Error(err)
	}
	<-news
	if diff := cmp.Diff([]string{"10.0.0.1:80", "[::1]:80"}, e.Get()); diff != "" {
		t.Error(diff)
	}
}

func TestWatchFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "endpoints")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		e := &Endpoints{}
		go e.watch(ctx, path, zap.NewNop())
		write := func(text string, want ...string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Second) // of the bubble's clock
			synctest.Wait()
			if diff := cmp.Diff(want, e.Get()); diff != "" {
				t.Errorf("%q: %s", text, diff)
			}
		}
		write("10.0.0.1:80 10.0.0.2:80 # two\n", "10.0.0.1:80", "10.0.0.2:80")
		write("nonsense", "10.0.0.1:80", "10.0.0.2:80")
		write("#none\n10.0.0.3:80", "10.0.0.3:80")
	})
}

func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	if _, err := certificate(dir); err == nil {
		t.Error("no error without files")
	}
	made, err := certificate("")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: made.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := certificate(dir)
	if err != nil || !cmp.Equal(made.Certificate, got.Certificate) {
		t.Errorf("loaded another certificate, %v", err)
	}
}

// Run serves what is configured: health and metrics on ports of their own.
func TestRun(t *testing.T) {
	if err := Run(context.Background(), Config{Name: "p"}); err == nil {
		t.Error("no error without endpoints")
	}
	if err := Run(context.Background(), Config{EndpointsFile: "x"}); err == nil {
		t.Error("no error without a name")
	}
	endpoints, _ := NewEndpoints(nobody...)
	if err := Run(context.Background(), Config{Name: "p", Endpoints: endpoints, Listen: "127.0.0.1:0", CertDir: t.TempDir()}); err == nil {
		t.Error("no error without the certificate that was asked for")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := l.Addr().String()
	for name, cfg := range map[string]Config{"main": {Listen: taken}, "health": {Listen: "127.0.0.1:0", HealthListen: taken}, "metrics": {Listen: "127.0.0.1:0", MetricsListen: taken}} {
		cfg.Name, cfg.Endpoints = "p", endpoints
		if err := Run(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Name: "p", Endpoints: endpoints, Listen: "127.0.0.1:0", HealthListen: "127.0.0.1:0", MetricsListen: taken})
	}()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, err := (&http.Client{Transport: transport}).Get("http://" + taken + "/metrics")
		if err == nil {
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !strings.Contains(string(b), "demo_picker_second_end_of_stream_total 0") {
				t.Errorf("metrics: %s", b)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
