package picker

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
)

type (
	fromEnvoy = extprocv3.ProcessingRequest
	toEnvoy   = extprocv3.ProcessingResponse
)

// direction builds the messages of one half of an HTTP exchange, which the protocol
// spells twice.
type direction struct {
	headers  func(*extprocv3.CommonResponse) *toEnvoy
	body     func(*extprocv3.BodyResponse) *toEnvoy
	trailers func() *toEnvoy
	send     func(*extprocv3.HttpBody) *fromEnvoy
}

var requestSide = direction{
	headers: func(c *extprocv3.CommonResponse) *toEnvoy {
		return &toEnvoy{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: c}}}
	},
	body: func(b *extprocv3.BodyResponse) *toEnvoy {
		return &toEnvoy{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: b}}
	},
	trailers: func() *toEnvoy {
		return &toEnvoy{Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}}
	},
	send: func(b *extprocv3.HttpBody) *fromEnvoy {
		return &fromEnvoy{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: b}}
	},
}

var responseSide = direction{
	headers: func(c *extprocv3.CommonResponse) *toEnvoy {
		return &toEnvoy{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{Response: c}}}
	},
	body: func(b *extprocv3.BodyResponse) *toEnvoy {
		return &toEnvoy{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: b}}
	},
	trailers: func() *toEnvoy {
		return &toEnvoy{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}}
	},
	send: func(b *extprocv3.HttpBody) *fromEnvoy {
		return &fromEnvoy{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: b}}
	},
}

// piece is the reply that hands one piece of a body to Envoy.
func (d direction) piece(b []byte, eof bool) *toEnvoy {
	return d.body(&extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: &extprocv3.StreamedBodyResponse{Body: b, EndOfStream: eof}}}}})
}

// unavailableBody is the answer in OpenAI's error shape, so that its clients raise their
// usual error and retry.
const unavailableBody = `{"error":{"message":"No endpoint can be picked for this request: the endpoint picker of its pool is unavailable.","type":"server_error","param":null,"code":"endpoint_picker_unavailable"}}` + "\n"

// unavailable ends a request with 503; details goes to Envoy's %RESPONSE_CODE_DETAILS%.
func unavailable(details string, grpc bool) *toEnvoy {
	r := &extprocv3.ImmediateResponse{
		Status:  &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{overwrite("content-type", "application/json")}},
		Body:    []byte(unavailableBody),
		Details: "endpoint_picker_unavailable{" + details + "}",
	}
	if grpc {
		r.Headers = nil
		r.Body = []byte("the endpoint picker is unavailable")
		r.GrpcStatus = &extprocv3.GrpcStatus{Status: uint32(codes.Unavailable)}
	}
	return &toEnvoy{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: r}}
}

func overwrite(key, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: key, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// bodyBytes is how much body a message to Envoy carries.
func bodyBytes(m *toEnvoy) int {
	b := m.GetRequestBody()
	if b == nil {
		b = m.GetResponseBody()
	}
	return len(b.GetResponse().GetBodyMutation().GetStreamedResponse().GetBody())
}
