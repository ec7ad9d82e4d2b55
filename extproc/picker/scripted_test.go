package picker

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"signalbox.dev/extproc/contract"
)

const pod = "10.0.0.1:8000"

// scripted is a picker that does as the pickers that ship do, but where a test says
// otherwise: it answers at the end of the body, sets all headers again from a map, and
// never answers trailers.
type scripted struct {
	streams, canceled, biggest atomic.Int64

	rewrite  func([]byte) []byte // of the request body
	respond  func([]byte) []byte // of each response message
	headers  map[string]string   // set besides those that came in
	atOnce   bool                // answers headers and each piece as they come
	seen     func(*fromEnvoy)
	replyTo  func(s extprocv3.ExternalProcessor_ProcessServer, phase string) error // non-nil ends the stream with it
	endpoint string
}

var (
	errOK   = errors.New("end with OK")
	errHang = errors.New("hang")
)

// phases in which replyTo is called, in order.
const (
	beforeHeaders = "before the headers are answered"
	afterHeaders  = "after the headers are answered"
	midBody       = "in the middle of the body"
	afterBody     = "after the request"
	respHeaders   = "at the response headers"
	respBody      = "at a piece of the response body"
)

func (p *scripted) process(s extprocv3.ExternalProcessor_ProcessServer) error {
	p.streams.Add(1)
	x := &scriptedStream{p: p, s: s}
	for {
		m, err := s.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				p.canceled.Add(1)
			}
			return nil
		}
		if p.seen != nil {
			p.seen(m)
		}
		if err := x.take(m); err != nil {
			if errors.Is(err, errOK) {
				return nil
			}
			return err
		}
	}
}

type scriptedStream struct {
	p       *scripted
	s       extprocv3.ExternalProcessor_ProcessServer
	headers fields
	body    []byte
	began   bool
}

func (x *scriptedStream) hook(phase string) error {
	if kind, at, _ := strings.Cut(x.headers.first("x-fault"), "@"); at == phase {
		return x.asked(kind)
	}
	if x.p.replyTo == nil {
		return nil
	}
	return x.p.replyTo(x.s, phase)
}

// asked does what the header x-fault says: kind@phase.
func (x *scriptedStream) asked(kind string) error {
	switch kind {
	case "error":
		return status.Error(codes.Internal, "test fault")
	case "close":
		return errOK
	case "garbage":
		_ = x.s.Send(requestSide.body(&extprocv3.BodyResponse{}))
	case "shed":
		_ = x.s.Send(&toEnvoy{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: 429}, Body: []byte("saturated"), Headers: again(nil, map[string]string{"x-dropped": "sheddable"})}}})
		return errOK
	}
	<-x.s.Context().Done() // think
	return errOK
}

func (x *scriptedStream) take(m *fromEnvoy) error {
	switch v := m.Request.(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		x.headers = fieldsOf(v.RequestHeaders.GetHeaders())
		if v.RequestHeaders.GetEndOfStream() || x.p.atOnce {
			return x.answer(!v.RequestHeaders.GetEndOfStream())
		}
		return nil
	case *extprocv3.ProcessingRequest_RequestBody:
		x.p.biggest.Store(max(x.p.biggest.Load(), int64(len(v.RequestBody.Body))))
		if x.began {
			if err := x.hook(midBody); err != nil {
				return err
			}
			return x.s.Send(requestSide.piece(v.RequestBody.Body, v.RequestBody.EndOfStream))
		}
		x.body = append(x.body, v.RequestBody.Body...)
		if !v.RequestBody.EndOfStream {
			return nil
		}
		if err := x.answer(true); err != nil {
			return err
		}
		return x.giveBack()
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		if err := x.hook(respHeaders); err != nil {
			return err
		}
		return x.s.Send(responseSide.headers(&extprocv3.CommonResponse{HeaderMutation: again(fieldsOf(v.ResponseHeaders.GetHeaders()),
			map[string]string{"x-went-into-resp-headers": "true"})}))
	case *extprocv3.ProcessingRequest_ResponseBody:
		if err := x.hook(respBody); err != nil {
			return err
		}
		b := v.ResponseBody.Body
		if x.p.respond != nil {
			b = x.p.respond(b)
		}
		return x.s.Send(responseSide.piece(b, v.ResponseBody.EndOfStream))
	}
	return nil // trailers: as the real ones, no answer
}

func (x *scriptedStream) answer(body bool) error {
	if err := x.hook(beforeHeaders); err != nil {
		return err
	}
	x.began = true
	if err := x.s.Send(picks(x.headers, x.p.headers, x.p.pick())); err != nil {
		return err
	}
	if !body {
		return x.hook(afterBody)
	}
	return x.hook(afterHeaders)
}

func (p *scripted) pick() string {
	if p.endpoint == "" {
		return pod
	}
	return p.endpoint
}

func (x *scriptedStream) giveBack() error {
	b := x.body
	if x.p.rewrite != nil {
		b = x.p.rewrite(b)
	}
	for i := 0; ; i++ {
		n := min(len(b), chunk)
		if i > 0 || n == len(b) {
			if err := x.hook(midBody); err != nil {
				return err
			}
		}
		if err := x.s.Send(requestSide.piece(b[:n], n == len(b))); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return x.hook(afterBody)
		}
	}
}

// again sets every header again, the last value of each, as a map holds them.
func again(f fields, more map[string]string) *extprocv3.HeaderMutation {
	m := &extprocv3.HeaderMutation{}
	for k, v := range f {
		if !strings.HasPrefix(k, ":") {
			m.SetHeaders = append(m.SetHeaders, option(k, v[len(v)-1]))
		}
	}
	for k, v := range more { // several values with | between
		for i, v := range strings.Split(v, "|") {
			if i == 0 {
				m.SetHeaders = append(m.SetHeaders, option(k, v))
			} else {
				m.SetHeaders = append(m.SetHeaders, appending(k, v))
			}
		}
	}
	return m
}

func option(k, v string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, RawValue: []byte(v)}}
}

func appending(k, v string) *corev3.HeaderValueOption {
	o := option(k, v)
	o.Append = wrapperspb.Bool(true) //nolint:staticcheck // deprecated, and what Envoy reads
	return o
}

// picks is the answer that names an endpoint.
func picks(f fields, more map[string]string, endpoint string) *toEnvoy {
	m := again(f, more)
	m.SetHeaders = append(m.SetHeaders, option(contract.KeyDestination, endpoint))
	r := requestSide.headers(&extprocv3.CommonResponse{HeaderMutation: m, ClearRouteCache: true})
	r.DynamicMetadata = pickedIn(endpoint)
	return r
}

func pickedIn(endpoint string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{contract.MetadataLB: structpb.NewStructValue(&structpb.Struct{
		Fields: map[string]*structpb.Value{contract.KeyDestination: structpb.NewStringValue(endpoint)}})}}
}

func gauge(m prometheus.Metric) float64 {
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		panic(err)
	}
	return out.GetGauge().GetValue() + out.GetCounter().GetValue()
}
