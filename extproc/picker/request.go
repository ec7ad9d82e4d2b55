package picker

import (
	"errors"
	"strings"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"signalbox.dev/extproc/contract"
)

// request is the request half of an exchange. From Envoy it collects headers, body and
// whether there are trailers; the picker is sent headers and body, and answers with the
// same. Released is when Envoy has got the headers back; normally all else in one go.
type request struct {
	half
	fields fields    // of the headers
	grpc   bool      // may be answered before it ends: nothing is held back
	ended  time.Time // when its end came in

	reply   *extprocv3.CommonResponse // the picker's answer to the headers, as a difference
	dynamic *structpb.Struct          // and its dynamic metadata
	picked  bool
	changed bool     // the body that it gives back is not the client's, or cannot be compared
	alt     [][]byte // that body, until it is released
	altSize int

	loose    bool // over the budget: nothing is kept
	released bool
}

func (q *request) size() int { return q.body.size + q.altSize }

// requestHeaders begins the exchange.
func (s *stream) requestHeaders(m *fromEnvoy, h *extprocv3.HttpHeaders) {
	q := &s.req
	if q.headers != nil {
		return
	}
	if c := m.GetProtocolConfig(); c != nil && c.GetRequestBodyMode() != filterv3.ProcessingMode_FULL_DUPLEX_STREAMED {
		s.ended, s.err = true, status.Errorf(codes.FailedPrecondition,
			"request_body_mode is %v; the pickers' ext_proc filter needs FULL_DUPLEX_STREAMED", c.GetRequestBodyMode())
		return
	}
	q.headers, q.meta, q.fields, q.bodyless = m, m.GetMetadataContext(), fieldsOf(h.GetHeaders()), h.GetEndOfStream()
	q.grpc = strings.HasPrefix(q.fields.first("content-type"), "application/grpc")
	if q.bodyless {
		q.body.eof, q.body.sentEOF, q.body.backEOF, q.ended = true, true, true, time.Now()
	}
	m.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_FULL_DUPLEX_STREAMED}
	if s.cfg.Response == contract.ResponseFull {
		m.ProtocolConfig.ResponseBodyMode = filterv3.ProcessingMode_FULL_DUPLEX_STREAMED
	}
	switch err := s.ask(); {
	case errors.Is(err, errGone):
		s.giveUp(reasonGone, err)
	case errors.Is(err, errDead):
		s.giveUp(reasonDead, err)
	case err != nil:
		s.giveUp(reasonConfig, err)
	}
}

// requestBody takes a piece of the body, or with trailers its end.
func (s *stream) requestBody(m *fromEnvoy, b []byte, eof, trailers bool) {
	q := &s.req
	if !q.add(m, eof, trailers) {
		return
	}
	if eof {
		q.ended = time.Now()
	}
	if s.at == nil && q.released {
		q.give(s, b, eof)
		return
	}
	q.body.add(b)
	if s.at == nil && eof {
		s.passRequest()
	}
}

// next returns the next message for the picker.
func (q *request) next() *fromEnvoy {
	m := q.half.next()
	if q.loose {
		q.body.forget(q.body.sent)
	}
	return m
}

// rewind begins again with another picker.
func (q *request) rewind() {
	q.body.rewind()
	q.body.sentEOF, q.body.backEOF = q.bodyless, q.bodyless
	q.sent, q.reply, q.dynamic, q.picked, q.changed, q.alt, q.altSize = false, nil, nil, false, q.loose, nil, 0
}

// pickedHeaders takes the picker's answer to the request headers.
func (s *stream) pickedHeaders(m *toEnvoy, r *extprocv3.CommonResponse) error {
	q := &s.req
	if q.reply != nil || q.done || q.headers == nil {
		return errors.New("it answered the request headers twice")
	}
	if r.GetStatus() != extprocv3.CommonResponse_CONTINUE {
		return errors.New("it wants to replace the message")
	}
	pick, err := pickOf(r.GetHeaderMutation(), m.GetDynamicMetadata())
	if err != nil {
		return err
	}
	change, err := diff(q.fields, r.GetHeaderMutation())
	if err != nil {
		return err
	}
	if pick == "" && !s.cfg.FailOpen {
		s.giveUp(reasonNoPick, errors.New("it answered without an endpoint"))
		return nil
	}
	if pick != "" {
		if change == nil {
			change = &extprocv3.HeaderMutation{}
		}
		change.SetHeaders = append(change.SetHeaders, overwrite(contract.KeyDestination, pick))
	}
	q.reply = &extprocv3.CommonResponse{HeaderMutation: change}
	q.dynamic, q.picked = withPick(m.GetDynamicMetadata(), pick), pick != ""
	if q.bodyless || q.grpc || q.loose {
		s.release()
	}
	return nil
}

// pickedBody takes a piece of the body that the picker gives back.
func (s *stream) pickedBody(r *extprocv3.CommonResponse) error {
	q := &s.req
	piece := r.GetBodyMutation().GetStreamedResponse()
	switch {
	case q.reply == nil:
		return errors.New("it gave back a body before the headers")
	case piece == nil || r.GetStatus() != extprocv3.CommonResponse_CONTINUE:
		return errors.New("its reply to a body is not streamed")
	case q.done || q.body.backEOF:
		return errors.New("it gave back more after the end of the body")
	case piece.GetEndOfStream() && !q.body.sentEOF:
		return errors.New("it ended the body before the client did")
	}
	b := piece.GetBody()
	q.body.backEOF = piece.GetEndOfStream()
	was := q.changed
	same := !q.changed && q.body.match(b)
	q.changed = !same || q.body.backEOF && q.body.back < q.body.end
	switch {
	case q.released:
		q.give(s, b, q.body.backEOF)
		q.body.forget(q.body.back)
		return nil
	case q.changed && !was:
		q.alt = q.body.pieces(0, q.body.back)
	}
	if q.changed && !same {
		q.alt = append(q.alt, b)
		q.altSize += len(b)
	}
	if q.body.backEOF {
		s.release()
	}
	return nil
}

// release gives Envoy the answer to the headers and what came back of the body.
func (s *stream) release() {
	q := &s.req
	q.released = true
	if q.changed || !q.body.backEOF {
		q.reply.HeaderMutation = withoutLength(q.fields, q.reply.HeaderMutation)
	}
	m := q.side.headers(q.reply)
	m.DynamicMetadata = q.dynamic
	s.queue(m)
	if q.picked {
		s.count(resultPicked)
	} else {
		s.count(resultNoPick)
	}
	if q.bodyless {
		q.done = true
		return
	}
	pieces := q.alt
	if !q.changed {
		pieces = q.body.pieces(0, q.body.back)
	}
	q.giveAll(s, pieces, q.body.backEOF)
	q.alt, q.altSize = nil, 0
	q.body.forget(q.body.back)
}

// known reports whether what Envoy lacks of the request is certain.
func (q *request) known() bool {
	if q.released {
		return !q.changed && q.body.start <= q.body.back
	}
	return q.body.start == 0
}

// passRequest goes on without a picker, from where Envoy stands. What can be kept is given
// on at its end, as with a picker: Envoy 1.38 gets stuck now and then if a body comes back
// while more of it is still coming through the extractor.
func (s *stream) passRequest() {
	q := &s.req
	if !q.released && !q.body.eof && !q.grpc && !q.loose {
		return
	}
	from := q.body.back
	if !q.released {
		from = 0
		s.queue(q.side.headers(&extprocv3.CommonResponse{}))
		q.released = true
	}
	if q.bodyless {
		q.done = true
		return
	}
	q.giveAll(s, q.body.pieces(from, q.body.end), q.body.eof)
	q.alt, q.altSize = nil, 0
	q.body.forget(q.body.end)
}

// loosen stops keeping the request: it is over the budget. What comes back is given on as
// it comes, and cannot be compared any more.
func (s *stream) loosen() {
	q := &s.req
	s.log.Debug("request is not kept for another picker or FailOpen: body budget")
	q.loose = true
	if q.reply != nil && !q.released {
		s.release()
	}
	q.changed = true
	q.body.forget(q.body.sent)
}
