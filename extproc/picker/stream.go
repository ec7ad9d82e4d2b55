package picker

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/status"

	"signalbox.dev/extproc/contract"
)

const (
	maxAttempts = 3       // endpoints of a picker that one request asks
	outWindow   = 1 << 20 // body bytes on their way to Envoy above which nothing more is read
)

// stream is one HTTP exchange. Only the goroutine in run touches it.
type stream struct {
	relay *Relay
	cfg   contract.Picker
	ctx   context.Context // ends when Envoy's stream does
	log   *zap.Logger
	in    chan *fromEnvoy // closed when Envoy has ended its side
	outc  chan *toEnvoy

	req  request
	resp response

	at      *attempt   // nil: no picker, and what Envoy sends passes unchanged
	pending *fromEnvoy // the next message to the picker
	tried   []string   // endpoints that were asked

	out      []*toEnvoy
	outBytes int
	lease    lease
	overdue  <-chan time.Time // fires when picking has taken too long
	slow     <-chan time.Time // fires when the picker should have let go of the response

	counted bool  // the result is in the metrics
	ended   bool  // nothing is read any more; run returns when out is empty
	err     error // what it returns then
}

// run is the whole life of the exchange.
func (s *stream) run() error {
	defer s.close()
	for !s.ended || len(s.out) > 0 {
		s.settle()
		var (
			in, recv = s.in, (chan *toEnvoy)(nil)
			out      chan *toEnvoy
			head     *toEnvoy
			send     chan *fromEnvoy
			died     <-chan struct{}
		)
		if s.ended || !s.hasRoom() {
			in = nil
		}
		if len(s.out) > 0 {
			out, head = s.outc, s.out[0]
		}
		if s.at != nil && !s.ended {
			if s.at.waits {
				died = s.at.died
			}
			if s.pending != nil {
				send = s.at.send
			}
			if s.outBytes < outWindow {
				recv = s.at.recv
			}
		}
		select {
		case m, ok := <-in:
			s.fromEnvoy(m, ok)
		case out <- head:
			s.outBytes -= bodyBytes(head)
			s.out = slices.Delete(s.out, 0, 1)
		case send <- s.pending:
			s.pending = nil
		case m, ok := <-recv:
			s.fromPicker(m, ok)
		case <-died:
			s.giveUp(reasonSilent, errors.New("it shows no sign of life"))
		case <-s.overdue:
			s.overdue = nil
			s.giveUp(reasonTimeout, errors.New("it took longer to pick than the pool allows"))
		case <-s.slow:
			s.slow = nil
			s.giveUp(reasonSlow, errors.New("it holds up the response"))
		case <-s.ctx.Done():
			return status.FromContextError(s.ctx.Err()).Err()
		}
	}
	return s.err
}

func (s *stream) close() {
	s.letGo()
	if s.req.headers != nil && !s.req.done {
		s.count(resultAborted)
	}
	s.lease.set(0)
}

// settle brings what follows from the state up to date, before each wait.
func (s *stream) settle() {
	if s.lease.set(int64(s.req.size() + s.resp.body.size + s.outBytes)) {
		s.degrade()
	}
	if s.at == nil || s.req.done {
		s.overdue = nil
	}
	if s.at == nil || !s.resp.owed() {
		s.slow = nil
	} else if s.slow == nil {
		s.slow = time.After(s.relay.remotes.timing.response)
	}
	if s.at == nil {
		return
	}
	if s.pending == nil {
		if s.pending = s.req.next(); s.pending == nil {
			s.pending = s.resp.next()
		}
	}
	s.at.wait(!s.req.done || s.resp.awaited())
	if s.overdue == nil && s.cfg.PickTimeout > 0 && s.req.body.eof && !s.req.done {
		s.overdue = time.After(s.cfg.PickTimeout)
	}
	if s.req.done && s.resp.done {
		s.letGo()
	}
}

// hasRoom reports whether more may come from Envoy. Not reading is the only back-pressure
// there is; it stops Envoy's stream, and Envoy buffers for it.
func (s *stream) hasRoom() bool {
	if s.outBytes >= outWindow {
		return false
	}
	return !s.req.loose || s.at == nil || s.pending == nil && !s.req.body.unsent()
}

// degrade is called while more is held than the budget allows.
func (s *stream) degrade() {
	switch {
	case s.req.done || s.req.loose:
	case s.at != nil:
		s.loosen()
	case s.req.headers != nil && !s.req.released:
		s.req.loose = true
		s.passRequest()
	}
	if s.at != nil && s.resp.body.size > fairShare {
		s.log.Debug("response is not kept for its endpoint picker: body budget")
		s.giveUp(reasonBudget, errors.New("it holds back more of the response than the body budget allows"))
	}
}

// queue puts a reply on its way to Envoy.
func (s *stream) queue(m *toEnvoy) {
	s.out = append(s.out, m)
	s.outBytes += bodyBytes(m)
}

func (s *stream) fromEnvoy(m *fromEnvoy, ok bool) {
	if !ok { // Envoy has nothing more to say
		s.ended = true
		return
	}
	switch v := m.Request.(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		s.requestHeaders(m, v.RequestHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		s.requestBody(m, v.RequestBody.GetBody(), v.RequestBody.GetEndOfStream(), false)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		s.requestBody(m, nil, true, true)
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		s.responseHeaders(m, v.ResponseHeaders)
	case *extprocv3.ProcessingRequest_ResponseBody:
		s.responseBody(m, v.ResponseBody.GetBody(), v.ResponseBody.GetEndOfStream(), false)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		s.responseBody(m, nil, true, true)
	}
	s.endWhenDone()
}

// endWhenDone ends the stream once Envoy will send nothing more that needs an answer, so
// that a long response does not hold it open.
func (s *stream) endWhenDone() {
	switch s.cfg.Response {
	case contract.ResponseNone:
		s.ended = s.ended || s.req.done
	case contract.ResponseHeaders:
		s.ended = s.ended || s.req.done && s.resp.done
	}
}

// fromPicker takes a message of the picker, or the end of its stream.
func (s *stream) fromPicker(m *toEnvoy, ok bool) {
	if !ok {
		if err := s.at.err; errors.Is(err, io.EOF) {
			s.giveUp(reasonClosed, errors.New("it closed its stream"))
		} else {
			s.giveUp(reasonError, err)
		}
		return
	}
	s.slow = nil
	if err := s.accept(m); err != nil {
		s.giveUp(reasonGarbage, err)
	}
	s.endWhenDone()
}

// accept returns an error for a message that does not belong where it came.
func (s *stream) accept(m *toEnvoy) error {
	if m.GetModeOverride() != nil {
		return errors.New("it asks for other processing modes")
	}
	switch v := m.Response.(type) {
	case *extprocv3.ProcessingResponse_RequestHeaders:
		return s.pickedHeaders(m, v.RequestHeaders.GetResponse())
	case *extprocv3.ProcessingResponse_RequestBody:
		return s.pickedBody(v.RequestBody.GetResponse())
	case *extprocv3.ProcessingResponse_ResponseHeaders:
		return s.answeredHeaders(m, v.ResponseHeaders.GetResponse())
	case *extprocv3.ProcessingResponse_ResponseBody:
		return s.answeredBody(v.ResponseBody.GetResponse())
	case *extprocv3.ProcessingResponse_ImmediateResponse:
		return s.immediate(m, v.ImmediateResponse)
	}
	if m.Response == nil && m.GetOverrideMessageTimeout() != nil {
		return nil // it asks for time; it has all it wants
	}
	return errors.New("it sent a message of an unknown kind, or trailers that it was not asked about")
}

// immediate is the picker's own answer to the client: 429, 503, 400.
func (s *stream) immediate(m *toEnvoy, r *extprocv3.ImmediateResponse) error {
	if _, _, err := apply(nil, r.GetHeaders()); err != nil {
		return err
	}
	s.queue(&toEnvoy{Response: m.Response, DynamicMetadata: m.DynamicMetadata})
	if !s.req.done {
		s.req.done = true
		s.count(resultImmediate)
	}
	s.letGo()
	s.ended = true
	return nil
}

// ask opens a stream to the healthiest endpoint that was not asked yet.
func (s *stream) ask() error {
	if len(s.cfg.Endpoints) == 0 {
		return errGone
	}
	if len(s.tried) == maxAttempts {
		return errDead
	}
	r, err := s.relay.remotes.choose(s.cfg, s.tried)
	if err != nil {
		return err
	}
	s.tried = append(s.tried, r.key.endpoint)
	s.at = r.attempt(s.ctx)
	return nil
}

var (
	errGone = errors.New("the endpoint picker has no ready endpoint")
	errDead = errors.New("no other endpoint of the picker is in use")
)

// choose returns the endpoint with the fewest waiting requests among those alive.
func (rs *remotes) choose(p contract.Picker, tried []string) (best *remote, err error) {
	least := 0
	from := rand.IntN(len(p.Endpoints))
	for i := range p.Endpoints {
		endpoint := p.Endpoints[(from+i)%len(p.Endpoints)]
		if slices.Contains(tried, endpoint) {
			continue
		}
		r, err := rs.get(endpoint, p)
		if err != nil {
			return nil, err
		}
		n, alive := r.load()
		if !alive || best != nil && n >= least {
			rs.put(r)
			continue
		}
		if best != nil {
			rs.put(best)
		}
		best, least = r, n
	}
	if best == nil {
		return nil, errDead
	}
	return best, nil
}

// letGo ends the part of the picker in this exchange.
func (s *stream) letGo() {
	if s.at == nil {
		return
	}
	s.at.end()
	s.relay.remotes.put(s.at.remote)
	s.at, s.pending = nil, nil
}

// giveUp goes on without the picker that was asked: with another one, with none, or not
// at all.
func (s *stream) giveUp(why reason, err error) {
	s.relay.metrics.failures.WithLabelValues(string(why)).Inc()
	var endpoint string
	if s.at != nil {
		endpoint = s.at.remote.key.endpoint
	}
	s.log.Debug("endpoint picker given up", zap.String("endpoint", endpoint), zap.String("reason", string(why)),
		zap.Bool("response", s.resp.begun()), zap.Error(err))
	s.letGo()
	if s.resp.begun() && !s.passResponse() {
		s.cut("endpoint picker failed after it had changed a part of the response")
		return
	}
	if s.req.headers == nil || s.req.done {
		return
	}
	retry := why != reasonTimeout && why != reasonNoPick && !s.req.released && !s.resp.begun() && s.req.body.start == 0
	switch {
	case retry && s.ask() == nil:
		s.req.rewind()
	case s.cfg.FailOpen && s.req.known():
		s.count(resultFailOpen)
		s.passRequest()
	case s.resp.begun():
		s.cut("endpoint picker failed before the end of the request")
	default:
		s.refuse(why)
	}
}

// refuse answers 503. Where Envoy has a part of the request already, that ends it: the pod
// never gets a complete body.
func (s *stream) refuse(why reason) {
	if s.req.released {
		s.count(resultCut)
	} else {
		s.count(resultFailClose)
	}
	s.req.done = true
	s.queue(unavailable(string(why), s.req.grpc))
	s.ended = true
}

// cut ends an exchange whose response has begun: Envoy resets it, so that nobody takes
// what has arrived for complete. An error of the stream would not do: with
// failure_mode_allow Envoy ends the body as if it were whole.
func (s *stream) cut(why string) {
	s.log.Debug("exchange cut", zap.String("why", why))
	s.count(resultCut)
	s.req.done = true
	s.queue(unavailable("cut", s.req.grpc))
	s.ended = true
}

// count puts the result of asking into the metrics, once.
func (s *stream) count(result string) {
	if s.counted {
		return
	}
	s.counted = true
	s.relay.metrics.result(s.cfg.Pool, result)
	if result == resultPicked && !s.req.ended.IsZero() {
		s.relay.metrics.seconds.Observe(time.Since(s.req.ended).Seconds())
	}
}
