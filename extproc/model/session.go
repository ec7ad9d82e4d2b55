package model

import (
	"errors"
	"io"
	"strconv"

	extprocfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"signalbox.dev/extproc/contract"
)

// scanner reads a body chunk by chunk.
type scanner interface {
	// feed reads a chunk and returns the error found so far, if any.
	feed(chunk []byte) contract.ErrorCode
	// end returns the verdict on a body that is over.
	end() contract.ErrorCode
	// done says that the object or form is complete and valid, and names a model.
	done() bool
	// model returns the model, nil as long as it is unknown.
	model() []byte
	// modelOffset returns how many bytes it took to know the model.
	modelOffset() int64
}

// session is the life of one stream. Sessions are pooled: all a request needs is here.
type session struct {
	request   request
	json      jsonScanner
	form      formScanner
	scanner   scanner // &json or &form; nil: the body is not read
	holdLimit int
	length    int  // of the body by content-length; -1: unknown
	total     int  // bytes of body received
	chunks    int  // received and not answered
	released  bool // the headers were answered, the body is being verified
	answer    response
}

func (s *session) reset() {
	s.request.release()
	s.scanner, s.length, s.total, s.chunks, s.released, s.answer = nil, 0, 0, 0, false, nil
}

// run serves the stream. A result comes without an error only after an answer.
func (s *session) run(stream grpc.ServerStream) (result, error) {
	if err := s.receive(stream); err != nil {
		return "", err
	}
	if err := s.checkSetup(); err != nil {
		return "", err
	}
	if res, answered := s.begin(); answered {
		return res, s.send(stream, s.answer)
	}
	for {
		if err := s.receive(stream); err != nil {
			return "", err
		}
		switch s.request.phase {
		case bodyPhase:
			s.total += s.request.bodyLen
			s.chunks++
			// Envoy often says in a message of its own that the body is over; by then
			// a server that counts bytes would have had all of them.
			s.request.end = s.request.end || s.total == s.length
		case trailersPhase:
			s.request.end = true
		default:
			return "", setupError("a message that is neither body nor trailers of a request; set every response mode of processing_mode to SKIP or NONE")
		}
		if res, over, err := s.step(stream); over || err != nil {
			return res, err
		}
	}
}

// receive reads the next message. The end of the stream is an error: it comes after
// the last answer, and then nobody receives any more.
func (s *session) receive(stream grpc.ServerStream) error {
	err := stream.RecvMsg(&s.request)
	if errors.Is(err, io.EOF) {
		return status.Error(codes.Canceled, "the stream was closed before the end of the body")
	}
	return err
}

// checkSetup refuses an Envoy whose filter is not as the extractor needs it, in the
// first message, rather than let requests hang or go unread.
func (s *session) checkSetup() error {
	r := &s.request
	switch {
	case r.phase != headersPhase:
		return setupError("the first message is not the request's headers; set processing_mode.request_header_mode to SEND")
	case r.observability:
		return setupError("observability_mode ignores what the extractor answers; unset it")
	case !r.configured:
		return setupError("no protocol_config in the first message; Envoy is too old to route by a model in the body")
	case r.bodyMode != extprocfilter.ProcessingMode_STREAMED:
		return setupError("processing_mode.request_body_mode is " + r.bodyMode.String() + "; set it to STREAMED")
	case !r.withoutWait:
		return setupError("set send_body_without_waiting_for_header_response to true, otherwise Envoy and the extractor wait for each other")
	case len(r.method) == 0:
		return setupError("no :method among the headers; forward_rules must allow :method, content-type and content-encoding")
	}
	return nil
}

// begin judges the headers; if they are all there is to judge, the answer is set.
func (s *session) begin() (res result, answered bool) {
	r := &s.request
	s.length = -1
	if n, err := strconv.Atoi(string(r.length)); err == nil {
		s.length = n
	}
	if !hasBody(r.method) {
		s.answer = untouched
		return resultUnread, true
	}
	var code contract.ErrorCode
	switch kind := kindOf(r.contentType); {
	case r.end:
		code = contract.MissingModel
	case !identity(r.encoding):
		code = contract.UnsupportedContentEncoding
	case kind == kindJSON:
		s.json.reset()
		s.scanner = &s.json
	case kind == kindForm:
		boundary, ok := parseBoundary(string(r.contentType))
		if !ok {
			code = contract.InvalidMultipart
			break
		}
		s.form.reset(boundary)
		s.scanner = &s.form
	default:
		code = contract.InvalidContentType
	}
	s.answer = unreadable[code]
	return result(code), code != ""
}

// step judges the body as far as it came, and answers what can be answered.
func (s *session) step(stream grpc.ServerStream) (res result, over bool, err error) {
	code := s.scan()
	switch {
	case code != "" && s.released:
		return result(code), true, s.send(stream, refused[code])
	case code != "":
		return result(code), true, s.send(stream, unreadable[code])
	case s.released:
		return resultReleased, s.scanner.done(), s.passOn(stream)
	case !s.scanner.done() && s.total < s.holdLimit:
		return "", false, nil
	case s.scanner.model() == nil || s.scanner.modelOffset() > int64(s.holdLimit):
		// Envoy would stop reading before the model comes, and both would wait. Where
		// it happened to read further, the verdict is the same.
		return result(contract.BodyTooLarge), true, s.send(stream, unreadable[contract.BodyTooLarge])
	case s.scanner.done():
		return resultModel, true, s.send(stream, route(s.scanner.model()))
	}
	s.released = true
	if err := s.send(stream, route(s.scanner.model())); err != nil {
		return "", true, err
	}
	return resultReleased, false, s.passOn(stream)
}

// scan feeds the message to the scanner.
func (s *session) scan() contract.ErrorCode {
	for _, chunk := range s.request.body {
		if code := s.scanner.feed(chunk); code != "" {
			return code
		}
	}
	if !s.request.end {
		return ""
	}
	if s.total == 0 {
		return contract.MissingModel // as if the headers had ended the request
	}
	return s.scanner.end()
}

// passOn answers each chunk that was received: exactly one answer a chunk.
func (s *session) passOn(stream grpc.ServerStream) error {
	for ; s.chunks > 0; s.chunks-- {
		if err := s.send(stream, passOn); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) send(stream grpc.ServerStream, r response) error {
	s.answer = r
	return stream.SendMsg(&s.answer)
}
