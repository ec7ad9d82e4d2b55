package picker

import (
	"errors"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"signalbox.dev/extproc/contract"
)

// response is the response half of an exchange. What the picker gives back goes to Envoy
// as it comes: tokens are waiting. Kept is only what it has not given back.
type response struct {
	half
	answered bool  // the headers went back to Envoy
	marks    []int // where the messages end that the picker was sent and has not answered
	whole    int   // where the last message ends that it has answered
	uneven   bool  // it answered a message with nothing
	changed  bool  // it changes the body, one message for one
	torn     bool  // it changes the body, and which part is not known
}

func (p *response) begun() bool { return p.headers != nil }

// responseHeaders begins the response. If it comes before the picker has answered, it is
// not the pod's but an error of Envoy's own, a timeout say: the client gets it at once.
func (s *stream) responseHeaders(m *fromEnvoy, h *extprocv3.HttpHeaders) {
	p := &s.resp
	if p.begun() {
		return
	}
	p.headers, p.meta = m, m.GetMetadataContext()
	// In the other modes the body stays with Envoy.
	p.bodyless = h.GetEndOfStream() || s.cfg.Response != contract.ResponseFull
	if !s.req.released {
		s.letGo()
		if s.req.headers != nil && !s.req.done {
			s.req.done = true
			s.count(resultAborted)
		}
	}
	if s.at == nil {
		s.passResponse()
	}
}

// responseBody takes a piece of the body, or with trailers its end.
func (s *stream) responseBody(m *fromEnvoy, b []byte, eof, trailers bool) {
	p := &s.resp
	switch {
	case !p.add(m, eof, trailers):
	case s.at == nil:
		p.give(s, b, eof)
	default:
		p.body.add(b)
	}
}

// next returns the next message for the picker.
func (p *response) next() *fromEnvoy {
	m := p.half.next()
	if m.GetResponseBody() == nil {
		return m
	}
	if p.torn {
		p.body.forget(p.body.sent)
	} else {
		p.marks = append(p.marks, p.body.sent)
	}
	return m
}

// awaited reports whether the picker owes an answer.
func (p *response) awaited() bool {
	return p.begun() && !p.done && (!p.answered || len(p.marks) > 0 || p.body.unsent() || p.body.sentEOF)
}

// owed reports whether the answer is one that takes no thought, nor more of the body.
func (p *response) owed() bool {
	return p.sent && !p.done && (!p.answered || p.body.sentEOF)
}

// answeredHeaders takes the picker's answer to the response headers.
func (s *stream) answeredHeaders(m *toEnvoy, r *extprocv3.CommonResponse) error {
	p := &s.resp
	if !p.sent || p.answered {
		return errors.New("it answered response headers that it was not sent")
	}
	if r.GetStatus() != extprocv3.CommonResponse_CONTINUE {
		return errors.New("it wants to replace the response")
	}
	f := fieldsOf(p.headers.GetResponseHeaders().GetHeaders())
	change, err := diff(f, r.GetHeaderMutation())
	if err != nil {
		return err
	}
	if !p.bodyless { // it may yet change the body
		change = withoutLength(f, change)
	}
	reply := p.side.headers(&extprocv3.CommonResponse{HeaderMutation: change})
	reply.DynamicMetadata = m.GetDynamicMetadata()
	s.queue(reply)
	p.answered, p.done = true, p.bodyless
	return nil
}

// answeredBody takes a piece of the body that the picker gives back.
func (s *stream) answeredBody(r *extprocv3.CommonResponse) error {
	p := &s.resp
	piece := r.GetBodyMutation().GetStreamedResponse()
	switch {
	case !p.answered:
		return errors.New("it gave back a response body before the headers")
	case piece == nil || r.GetStatus() != extprocv3.CommonResponse_CONTINUE:
		return errors.New("its reply to a response body is not streamed")
	case p.done:
		return errors.New("it gave back more after the end of the response")
	case piece.GetEndOfStream() && !p.body.sentEOF:
		return errors.New("it ended the response before the pod did")
	}
	p.took(piece.GetBody())
	p.give(s, piece.GetBody(), piece.GetEndOfStream())
	return nil
}

// took notes what b answers: the same bytes, or, from the first change on, one message.
// Pickers that rewrite a streamed response do so message by message; where that does not
// hold, the response can no longer be taken over from them.
func (p *response) took(b []byte) {
	switch {
	case p.torn:
	case !p.changed && p.body.match(b):
		p.uneven = p.uneven || len(b) == 0 && p.body.back < p.body.sent
		for len(p.marks) > 0 && p.marks[0] <= p.body.back {
			p.pop()
		}
	case len(p.marks) > 0 && (p.changed || p.body.back == p.whole && !p.uneven):
		p.changed = true
		p.body.back = p.pop()
	default:
		p.torn, p.marks = true, nil
		p.body.back = p.body.sent
	}
	p.body.forget(p.body.back)
}

func (p *response) pop() int {
	p.whole, p.marks = p.marks[0], p.marks[1:]
	return p.whole
}

// passResponse goes on without the picker, from where Envoy stands. It reports false if
// that is not known.
func (s *stream) passResponse() bool {
	p := &s.resp
	switch {
	case p.done:
		return true
	case p.torn:
		return false
	case !p.answered:
		s.queue(p.side.headers(&extprocv3.CommonResponse{}))
		p.answered, p.done = true, p.bodyless
	}
	if !p.done {
		p.giveAll(s, p.body.pieces(p.body.back, p.body.end), p.body.eof)
		p.body.forget(p.body.end)
	}
	return true
}
