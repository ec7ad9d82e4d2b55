package picker

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// maxPools bounds the values of the label pool; further pools count as "other".
const maxPools = 1000

// How asking for an endpoint ended: the label result.
const (
	resultPicked    = "picked"
	resultNoPick    = "no_pick"   // answered without an endpoint; the pool's fallback decides
	resultImmediate = "immediate" // the picker answered the client itself
	resultFailOpen  = "fail_open"
	resultFailClose = "fail_close"
	resultCut       = "cut"     // ended by 503 after a part of the request was given on
	resultAborted   = "aborted" // the client or Envoy ended the request first
)

// reason is why a picker was given up: the label reason.
type reason string

const (
	reasonGone    reason = "no_endpoints"
	reasonDead    reason = "dead" // known before it was asked
	reasonSilent  reason = "not_alive"
	reasonError   reason = "grpc_error"
	reasonClosed  reason = "closed_early"
	reasonGarbage reason = "bad_message"
	reasonNoPick  reason = "no_pick"
	reasonTimeout reason = "pick_timeout"
	reasonSlow    reason = "slow_response"
	reasonBudget  reason = "body_budget"
	reasonConfig  reason = "bad_tls_config"
)

type metrics struct {
	requests *prometheus.CounterVec
	failures *prometheus.CounterVec
	seconds  prometheus.Histogram
	open     prometheus.Gauge

	mu    sync.Mutex
	pools map[string]bool
}

func newMetrics(reg prometheus.Registerer, b *budget) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_picker_requests_total",
			Help: "Requests for which an endpoint picker was asked, by pool and by how that ended."}, []string{"pool", "result"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_picker_failures_total",
			Help: "Times that an endpoint picker was given up, by reason; one request may give up several."}, []string{"reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "signalbox_picker_pick_duration_seconds",
			Help:    "Time from the end of a request's body to the picker's complete answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{Name: "signalbox_picker_streams_open",
			Help: "Requests and responses that are passing through now."}),
		pools: map[string]bool{},
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.failures, m.seconds, m.open, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "signalbox_picker_held_bytes", Help: "Body bytes that are held for endpoint pickers."},
			func() float64 { return float64(b.held.Load()) }))
	}
	return m
}

// result counts one request.
func (m *metrics) result(pool, result string) {
	m.mu.Lock()
	if !m.pools[pool] {
		if len(m.pools) < maxPools {
			m.pools[pool] = true
		} else {
			pool = "other"
		}
	}
	m.mu.Unlock()
	m.requests.WithLabelValues(pool, result).Inc()
}
