package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"signalbox.dev/xds"
)

// metrics are what the server counts, by short type name ("clusters", …).
type metrics struct {
	clients     prometheus.Gauge
	acks        *prometheus.CounterVec
	nacks       *prometheus.CounterVec
	lastNack    *prometheus.GaugeVec
	pushes      *prometheus.CounterVec
	convergence prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		clients: prometheus.NewGauge(prometheus.GaugeOpts{Name: "signalbox_xds_connected_clients",
			Help: "Envoys that have an ADS stream open."}),
		acks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_xds_ack_total",
			Help: "Responses that Envoys took."}, []string{"type"}),
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_xds_nack_total",
			Help: "Responses that Envoys refused, wholly or in part."}, []string{"type"}),
		lastNack: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "signalbox_xds_last_nack_timestamp_seconds",
			Help: "When an Envoy last refused a response, in seconds since 1970."}, []string{"type"}),
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_xds_pushes_total",
			Help: "Responses sent to Envoys."}, []string{"type"}),
		convergence: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "signalbox_xds_convergence_seconds",
			Help:    "From a change until one Envoy has answered all that follows from it, removals aside.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}),
	}
	for _, t := range xds.Types {
		m.acks.WithLabelValues(t.Short())
		m.nacks.WithLabelValues(t.Short())
		m.pushes.WithLabelValues(t.Short())
	}
	if r != nil {
		r.MustRegister(m.clients, m.acks, m.nacks, m.lastNack, m.pushes, m.convergence)
	}
	return m
}

func (m *metrics) answered(t xds.Type, refused bool) {
	if !refused {
		m.acks.WithLabelValues(t.Short()).Inc()
		return
	}
	m.nacks.WithLabelValues(t.Short()).Inc()
	m.lastNack.WithLabelValues(t.Short()).SetToCurrentTime()
}
