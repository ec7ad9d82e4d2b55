package load

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"signalbox.dev/demo/modelserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func server(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func config(url string) Config {
	return Config{URL: url, Models: []string{"base", "adapter"}, Rate: 1000, Workers: 4, Duration: 200 * time.Millisecond, Timeout: 10 * time.Second}
}

func TestAllIsWell(t *testing.T) {
	s, err := modelserver.New(modelserver.Config{Pod: "pod-0", Models: []string{"base", "adapter"}})
	if err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), config(server(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	if report.Failed > 0 || report.Requests < 8 || report.Pods["pod-0"] != report.Requests || report.P50 <= 0 || report.Max < report.P99 {
		t.Errorf("%+v", report)
	}
}

// Each way in which an answer is wrong is noticed.
func TestWhatIsWrong(t *testing.T) {
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"status": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no healthy upstream", http.StatusServiceUnavailable)
		}, "503 no healthy upstream"},
		"torn": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("{"))
		}, "torn after 1 bytes"},
		"other model":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"model":"other"}`)) }, `an answer of model "other"`},
		"endless":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"model":"base"}`)) }, "a stream without its end"},
		"no connection": {nil, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			url := unused(t)
			if tt.handler != nil {
				url = server(t, tt.handler)
			}
			cfg := config(url)
			cfg.Models = []string{"base"}
			report, err := Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, f := range report.Failures {
				found = found || strings.Contains(f.What, tt.want) && f.Model == "base"
			}
			if !found || report.Failed == 0 || len(report.Failures) > mostFailures {
				t.Errorf("%+v", report)
			}
		})
	}
}

func unused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// The end of the context ends the load, not the requests under way.
func TestRequestsAreSeenThrough(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	url := server(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		_, _ = w.Write([]byte(`{"model":"base"}`))
	}))
	cfg := config(url)
	cfg.Models, cfg.Duration, cfg.Workers = []string{"base"}, 0, 1
	report, err := Run(ctx, cfg)
	if err != nil || report.Requests == 0 || report.Failed > 0 {
		t.Errorf("%+v %v", report, err)
	}
}

func TestWhatCannotBeSent(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.Models = nil },
		func(c *Config) { c.Rate = 0 },
		func(c *Config) { c.Workers = 0 },
		func(c *Config) { c.URL = "http://a b" },
	} {
		cfg := config("http://127.0.0.1:1")
		change(&cfg)
		if _, err := Run(t.Context(), cfg); err == nil {
			t.Errorf("%+v was sent", cfg)
		}
	}
}
