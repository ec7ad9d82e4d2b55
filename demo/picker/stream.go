package picker

import (
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// The protocol's keys (proposal 004), and the headers that a request or a response
// may carry.
const (
	namespaceLB     = "envoy.lb"
	namespaceSubset = "envoy.lb.subset_hint"
	keyDestination  = "x-gateway-destination-endpoint"
	keySubset       = "x-gateway-destination-endpoint-subset"
	keyServed       = "x-gateway-destination-endpoint-served"

	headerModel     = "x-gateway-model-name"
	headerSelection = "test-epp-endpoint-selection"        // the conformance suite's: ip or ip:port, comma-separated; beats the subset
	headerServed    = "x-conformance-test-served-endpoint" // the conformance suite's
	headerDropped   = "x-llm-d-request-dropped-reason"
	sheddable       = "sheddable"
)

// objectiveHeaders name a request's objective, newest first.
var objectiveHeaders = []string{"x-llm-d-inference-objective", "x-gateway-inference-objective"}

// maxChunk keeps a message below the 64 KiB that some data planes accept; real pickers
// use the same number.
const maxChunk = 62000

// stream is the state of one HTTP request.
type stream struct {
	*Picker
	out                           extproc.ExternalProcessor_ProcessServer
	requestBodies, responseBodies filter.ProcessingMode_BodySendMode
	headers                       map[string]string // nil: not seen
	subset                        []string
	hinted                        bool
	body                          []byte
	picked, ended                 bool // the pick is out; the request's end was seen
	trip                          *trip
}

// errAnswered ends a stream whose request the picker answered itself.
var errAnswered = errors.New("answered")

// Process implements ext_proc.
func (p *Picker) Process(out extproc.ExternalProcessor_ProcessServer) error {
	s := &stream{Picker: p, out: out,
		requestBodies: filter.ProcessingMode_FULL_DUPLEX_STREAMED, responseBodies: filter.ProcessingMode_FULL_DUPLEX_STREAMED}
	defer func() { s.trip.end() }()
	for {
		m, err := out.Recv()
		if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
			return nil // the request is over
		}
		if err != nil {
			return err
		}
		if c := m.GetProtocolConfig(); c != nil {
			s.requestBodies, s.responseBodies = c.GetRequestBodyMode(), c.GetResponseBodyMode()
		}
		s.readSubset(m)
		if err := s.handle(m); errors.Is(err, errAnswered) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (s *stream) handle(m *extproc.ProcessingRequest) error {
	switch v := m.Request.(type) {
	case *extproc.ProcessingRequest_RequestHeaders:
		return s.requestHeaders(v.RequestHeaders)
	case *extproc.ProcessingRequest_RequestBody:
		return s.requestBody(v.RequestBody)
	case *extproc.ProcessingRequest_RequestTrailers:
		return s.requestTrailers()
	case *extproc.ProcessingRequest_ResponseHeaders:
		served := s.feedback(m)
		return s.out.Send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extproc.HeadersResponse{
			Response: set(headerServed, served, HeaderPicker, s.cfg.Name)}}})
	case *extproc.ProcessingRequest_ResponseBody:
		reply := func(c *extproc.CommonResponse) error {
			return s.out.Send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseBody{ResponseBody: &extproc.BodyResponse{Response: c}}})
		}
		if s.responseBodies != filter.ProcessingMode_FULL_DUPLEX_STREAMED {
			return reply(nil)
		}
		return chunks(v.ResponseBody.Body, v.ResponseBody.EndOfStream, reply)
	case *extproc.ProcessingRequest_ResponseTrailers:
		return s.out.Send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extproc.TrailersResponse{}}})
	}
	return status.Errorf(codes.InvalidArgument, "message of type %T", m.Request)
}

func (s *stream) requestHeaders(h *extproc.HttpHeaders) error {
	if s.headers != nil {
		return status.Error(codes.InvalidArgument, "request headers came twice")
	}
	s.headers = map[string]string{}
	for _, kv := range h.GetHeaders().GetHeaders() {
		value := kv.GetValue()
		if raw := kv.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		name := strings.ToLower(kv.GetKey())
		if old, ok := s.headers[name]; ok {
			value = old + "," + value
		}
		s.headers[name] = value
	}
	s.ended = h.GetEndOfStream()
	switch {
	case s.ended:
	case s.requestBodies == filter.ProcessingMode_FULL_DUPLEX_STREAMED:
		return nil // answered when the body is here
	case s.buffered():
		// Envoy holds the body until the headers are answered; the pick follows with it.
		return s.out.Send(&extproc.ProcessingResponse{Response: requestHeaders(nil)})
	}
	return s.answerHeaders()
}

func (s *stream) buffered() bool {
	return s.requestBodies == filter.ProcessingMode_BUFFERED || s.requestBodies == filter.ProcessingMode_BUFFERED_PARTIAL
}

func (s *stream) requestBody(b *extproc.HttpBody) error {
	if s.ended { // a second end of stream (envoyproxy/envoy#46237): an answer to it would be spurious
		s.extraEnd.Inc()
		return nil
	}
	s.ended = b.GetEndOfStream()
	reply := func(c *extproc.CommonResponse) error {
		return s.out.Send(&extproc.ProcessingResponse{Response: requestBody(c)})
	}
	switch {
	case s.requestBodies == filter.ProcessingMode_FULL_DUPLEX_STREAMED:
		if s.headers == nil {
			return status.Error(codes.FailedPrecondition, "FULL_DUPLEX_STREAMED needs request_header_mode: SEND")
		}
		s.body = append(s.body, b.GetBody()...)
		if len(s.body) > s.cfg.MaxBody {
			return s.refuse(413, "request body too large", "")
		}
		if !s.ended {
			return nil
		}
		return s.flush()
	case s.buffered() && !s.picked:
		s.body = b.GetBody()
		common, metadata, err := s.pick()
		s.body = nil
		if err != nil {
			return err
		}
		return s.out.Send(&extproc.ProcessingResponse{Response: requestBody(common), DynamicMetadata: metadata})
	}
	return reply(nil)
}

// requestTrailers end a body that had no end of its own.
func (s *stream) requestTrailers() error {
	s.ended = true
	trailers := &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestTrailers{RequestTrailers: &extproc.TrailersResponse{}}}
	switch {
	case s.picked:
	case s.requestBodies == filter.ProcessingMode_FULL_DUPLEX_STREAMED:
		s.ended = false // the end of the stream is the trailers', not the last chunk's
		if err := s.flush(); err != nil {
			return err
		}
		s.ended = true
	default: // headers were answered long ago; metadata can still be said
		_, metadata, err := s.pick()
		if err != nil {
			return err
		}
		trailers.DynamicMetadata = metadata
	}
	return s.out.Send(trailers)
}

// flush answers the headers and gives the collected body back.
func (s *stream) flush() error {
	if err := s.answerHeaders(); err != nil {
		return err
	}
	body := s.body
	s.body = nil
	if len(body) == 0 && !s.ended {
		return nil
	}
	return chunks(body, s.ended, func(c *extproc.CommonResponse) error {
		return s.out.Send(&extproc.ProcessingResponse{Response: requestBody(c)})
	})
}

// answerHeaders picks and answers the headers with the pick.
func (s *stream) answerHeaders() error {
	common, metadata, err := s.pick()
	if err != nil {
		return err
	}
	return s.out.Send(&extproc.ProcessingResponse{Response: requestHeaders(common), DynamicMetadata: metadata})
}

// pick chooses. Without a choice it answers the request and returns errAnswered.
func (s *stream) pick() (*extproc.CommonResponse, *structpb.Struct, error) {
	candidates := s.cfg.Endpoints.Get()
	if want := s.headers[headerSelection]; want != "" {
		candidates = match(candidates, split(want))
	} else if s.hinted {
		candidates = match(candidates, s.subset)
	}
	if len(candidates) == 0 {
		return nil, nil, s.refuse(503, "no ready endpoint", "rejected-no-endpoints")
	}
	ranked, saturated := s.fleet.rank(candidates, s.model())
	if saturated && s.sheddable() {
		return nil, nil, s.refuse(429, "every endpoint is saturated and the request is sheddable", "rejected-saturated")
	}
	s.picked = true
	s.trip = s.fleet.begin(ranked[0], s.model())
	s.picks.WithLabelValues(ranked[0]).Inc()
	list := strings.Join(ranked[:min(len(ranked), s.cfg.MaxEndpoints)], ",")
	s.cfg.Logger.Debug("picked", zap.String("picker", s.cfg.Name), zap.String("endpoints", list))
	common := set(keyDestination, list)
	common.ClearRouteCache = true // every real picker does
	return common, &structpb.Struct{Fields: map[string]*structpb.Value{
		namespaceLB: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{keyDestination: structpb.NewStringValue(list)}}),
	}}, nil
}

// model is what the request asks for: the body's model, else what the gateway read.
func (s *stream) model() string {
	var body struct {
		Model string `json:"model"`
	}
	if len(s.body) > 0 && json.Unmarshal(s.body, &body) == nil && body.Model != "" {
		return body.Model
	}
	return s.headers[headerModel]
}

func (s *stream) sheddable() bool {
	for _, name := range objectiveHeaders {
		if v, ok := s.headers[name]; ok {
			return v == sheddable
		}
	}
	return false
}

// refuse answers the request and ends the stream.
func (s *stream) refuse(code int32, message, dropped string) error {
	s.refused.WithLabelValues(strconv.Itoa(int(code))).Inc()
	answer := &extproc.ImmediateResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode(code)}, Body: []byte(message + "\n"), Details: "demo_picker"}
	kv := []string{HeaderPicker, s.cfg.Name}
	if dropped != "" {
		kv = append(kv, headerDropped, dropped)
	}
	answer.Headers = set(kv...).GetHeaderMutation()
	if err := s.out.Send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ImmediateResponse{ImmediateResponse: answer}}); err != nil {
		return err
	}
	return errAnswered
}

// readSubset reads the gateway's hint, a list or a string, from whichever message
// brings it first.
func (s *stream) readSubset(m *extproc.ProcessingRequest) {
	v, ok := m.GetMetadataContext().GetFilterMetadata()[namespaceSubset].GetFields()[keySubset]
	if !ok || s.hinted {
		return
	}
	s.hinted = true
	s.subset = split(v.GetStringValue())
	for _, e := range v.GetListValue().GetValues() {
		s.subset = append(s.subset, split(e.GetStringValue())...)
	}
}

// feedback takes in which endpoint served, and returns it or, in the conformance
// suite's words, what is missing.
func (s *stream) feedback(m *extproc.ProcessingRequest) string {
	lb := m.GetMetadataContext().GetFilterMetadata()[namespaceLB]
	if lb == nil {
		return "fail: missing envoy lb metadata"
	}
	v, ok := lb.GetFields()[keyServed]
	if !ok {
		return "fail: missing destination endpoint served metadata"
	}
	s.served.WithLabelValues(v.GetStringValue()).Inc()
	s.trip.moveTo(v.GetStringValue())
	return v.GetStringValue()
}

func requestHeaders(c *extproc.CommonResponse) *extproc.ProcessingResponse_RequestHeaders {
	return &extproc.ProcessingResponse_RequestHeaders{RequestHeaders: &extproc.HeadersResponse{Response: c}}
}

func requestBody(c *extproc.CommonResponse) *extproc.ProcessingResponse_RequestBody {
	return &extproc.ProcessingResponse_RequestBody{RequestBody: &extproc.BodyResponse{Response: c}}
}

// set returns a response that sets headers: name, value, name, value, …
func set(kv ...string) *extproc.CommonResponse {
	m := &extproc.HeaderMutation{}
	for i := 0; i < len(kv); i += 2 {
		m.SetHeaders = append(m.SetHeaders, &core.HeaderValueOption{
			Header:       &core.HeaderValue{Key: kv[i], RawValue: []byte(kv[i+1])},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return &extproc.CommonResponse{HeaderMutation: m}
}

// chunks cuts b into streamed body responses; only the last one carries the end.
func chunks(b []byte, end bool, send func(*extproc.CommonResponse) error) error {
	for {
		n := min(len(b), maxChunk)
		last := n == len(b)
		err := send(&extproc.CommonResponse{BodyMutation: &extproc.BodyMutation{Mutation: &extproc.BodyMutation_StreamedResponse{
			StreamedResponse: &extproc.StreamedBodyResponse{Body: b[:n], EndOfStream: end && last}}}})
		if err != nil || last {
			return err
		}
		b = b[n:]
	}
}
