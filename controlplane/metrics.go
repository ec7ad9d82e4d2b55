package controlplane

import (
	"github.com/prometheus/client_golang/prometheus"

	"signalbox.dev/source"
)

// metrics are the control plane's own; xds/server and extproc have theirs.
type metrics struct {
	translate prometheus.Histogram
	problems  prometheus.Gauge
	objects   *prometheus.GaugeVec
	known     map[source.Ref]struct{} // owned by the loop
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		translate: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "signalbox_translate_seconds",
			Help: "How long one translation took.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)}),
		problems: prometheus.NewGauge(prometheus.GaugeOpts{Name: "signalbox_source_problems",
			Help: "Objects and files that cannot be read now; their last good content stays in force."}),
		objects: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "signalbox_objects",
			Help: "Objects that the control plane knows."}, []string{"kind"}),
		known: map[source.Ref]struct{}{},
	}
	r.MustRegister(m.translate, m.problems, m.objects)
	return m
}

// count keeps the number of objects by kind.
func (m *metrics) count(changes []source.Change) {
	for _, c := range changes {
		_, had := m.known[c.Ref]
		switch gauge := m.objects.WithLabelValues(string(c.Ref.Kind)); {
		case c.Object != nil && !had:
			m.known[c.Ref] = struct{}{}
			gauge.Inc()
		case c.Object == nil && had:
			delete(m.known, c.Ref)
			gauge.Dec()
		}
	}
}
