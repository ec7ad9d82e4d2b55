package model

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"signalbox.dev/extproc/contract"
)

// result is how a stream ended: one of these, or a contract.ErrorCode.
type result string

const (
	resultModel         result = "model"         // a model, verified before the request went on
	resultReleased      result = "released"      // a model, verified while the body went on
	resultUnread        result = "unread"        // a method without content
	resultCanceled      result = "canceled"      // the client or Envoy gave up
	resultOverloaded    result = "overloaded"    // Config.MaxConcurrent
	resultMisconfigured result = "misconfigured" // see setupError
	resultError         result = "error"         // a bug, or a broken stream
)

// metrics of the extractor. Labels are bounded: no value of a client's is one.
type metrics struct {
	requests        map[result]prometheus.Counter
	duration        prometheus.Histogram
	bodyBytes       prometheus.Histogram
	bytesUntilModel prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, inflight func() float64) (*metrics, error) {
	sizes := prometheus.ExponentialBuckets(256, 4, 10) // 256 B … 64 MiB
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "signalbox_extproc_requests_total",
		Help: "Requests that passed the extractor, by result: model, released, unread, canceled, overloaded, misconfigured, error, or the code of why no model could be read."}, []string{"result"})
	m := &metrics{
		requests: map[result]prometheus.Counter{},
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "signalbox_extproc_duration_seconds",
			Help: "Time from the start of a request's stream to its last answer, the client's upload included.", Buckets: prometheus.ExponentialBuckets(50e-6, 4, 10)}),
		bodyBytes: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "signalbox_extproc_body_bytes",
			Help: "Bytes of body that were read of a request.", Buckets: sizes}),
		bytesUntilModel: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "signalbox_extproc_bytes_until_model",
			Help: "Bytes of body until its model was known.", Buckets: sizes}),
	}
	gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "signalbox_extproc_inflight",
		Help: "Requests that are being read."}, inflight)
	results := []result{resultModel, resultReleased, resultUnread, resultCanceled, resultOverloaded, resultMisconfigured, resultError}
	for _, f := range contract.Failures {
		results = append(results, result(f.Code))
	}
	for _, res := range results {
		m.requests[res] = requests.WithLabelValues(string(res))
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{requests, m.duration, m.bodyBytes, m.bytesUntilModel, gauge} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(s *session, res result, took time.Duration) {
	m.requests[res].Inc()
	m.duration.Observe(took.Seconds())
	if s.scanner == nil {
		return
	}
	m.bodyBytes.Observe(float64(s.total))
	if s.scanner.model() != nil {
		m.bytesUntilModel.Observe(float64(s.scanner.modelOffset()))
	}
}
