package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"signalbox.dev/source"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// Admin is what the admin interface shows. It has no authentication: it belongs on a
// loopback address.
type Admin struct {
	Ready    func() bool
	Problems func() []source.Problem
	Statuses func() []translator.Status
	Envoys   func() any                           // per Envoy: node, group, versions, last NACK
	Served   func() map[xds.Group][]*xds.Resource // what each group is served
	Gatherer prometheus.Gatherer
	PProf    bool
}

// Health returns the part of the admin interface that is for everybody: whether the
// process is well, and its metrics.
func (a Admin) Health() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !a.Ready() {
			http.Error(w, "not ready: the sources are not read yet, or nothing has been served", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.Gatherer, promhttp.HandlerOpts{}))
	return mux
}

// Handler returns the admin interface's HTTP handler.
func (a Admin) Handler() http.Handler {
	mux := a.Health()
	mux.HandleFunc("GET /debug/xds", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.Envoys(), nil) })
	mux.HandleFunc("GET /debug/config", a.config)
	mux.HandleFunc("GET /debug/status", a.status)
	if a.PProf {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "signalbox\n\n/healthz\n/readyz\n/metrics\n/debug/xds\n/debug/config[?gateway=NAMESPACE/NAME]\n/debug/status\n")
	})
	return mux
}

// config shows what every group is served, or one with ?gateway=namespace/name.
func (a Admin) config(w http.ResponseWriter, r *http.Request) {
	var out translator.Output
	for group, resources := range a.Served() {
		for _, res := range resources {
			out.Resources = append(out.Resources, xds.Change{Group: group, Type: res.Type, Name: res.Name, Resource: res})
		}
	}
	dump, err := out.Dump(r.URL.Query().Get("gateway"))
	writeJSON(w, dump.Envoy, err)
}

// status shows every object's conditions, and what the sources cannot read.
func (a Admin) status(w http.ResponseWriter, _ *http.Request) {
	out := struct {
		Objects  []translator.ObjectStatus `json:"objects"`
		Problems []source.Problem          `json:"problems"`
	}{[]translator.ObjectStatus{}, append([]source.Problem{}, a.Problems()...)}
	for _, s := range a.Statuses() {
		d, err := s.Dump()
		if err != nil {
			writeJSON(w, nil, err)
			return
		}
		out.Objects = append(out.Objects, d)
	}
	writeJSON(w, out, nil)
}

func writeJSON(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the client has gone: nothing to do
}
