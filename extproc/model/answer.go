package model

import (
	"bytes"
	"encoding/json"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	"signalbox.dev/extproc/contract"
)

// What is always the same is encoded once.
var (
	// untouched answers the headers of a request that cannot name a model.
	untouched = encode(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{}}}})

	// passOn releases one chunk of the body.
	passOn = encode(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
		RequestBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{}}}})

	// unreadable answers the headers of a request whose model cannot be read: the
	// host's routes decide what that means. refused ends a request whose headers are
	// on their way already.
	unreadable, refused = encodeFailures()

	// named answers the headers of a request whose model is known: by the length of
	// the model, an answer with zeros in its place. nameAt is where they are.
	named, nameAt = encodeNames()
)

// route answers the headers of a request for model.
func route(model []byte) response {
	out := bytes.Clone(named[len(model)])
	copy(out[nameAt[len(model)]:], model)
	return out
}

func encodeNames() (named [maxModel + 1]response, nameAt [maxModel + 1]int) {
	for n := 1; n <= maxModel; n++ {
		zeros := make([]byte, n)
		named[n] = setHeader(contract.HeaderModel, zeros)
		nameAt[n] = bytes.Index(named[n], zeros) // no other byte of it is zero
	}
	return named, nameAt
}

func encode(m *extprocv3.ProcessingResponse) response {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("a constant message does not encode: %v", err))
	}
	return b
}

func encodeFailures() (unreadable, refused map[contract.ErrorCode]response) {
	unreadable, refused = map[contract.ErrorCode]response{}, map[contract.ErrorCode]response{}
	for _, f := range contract.Failures {
		unreadable[f.Code] = setHeader(contract.HeaderModelError, []byte(f.Code))
		refused[f.Code] = refuse(f)
	}
	return unreadable, refused
}

// setHeader answers the headers of a request with one more and has Envoy choose the
// route again. Clients' values of it are removed before; should one be left, it is
// overwritten.
func setHeader(key string, value []byte) response {
	return encode(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{
			ClearRouteCache: true,
			HeaderMutation:  &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{headerOption(key, value)}},
		}}}})
}

func headerOption(key string, value []byte) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: key, RawValue: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// refuse ends the request with OpenAI's error shape.
func refuse(f contract.Failure) response {
	type openAIError struct {
		Message string             `json:"message"`
		Type    string             `json:"type"`
		Param   *string            `json:"param"`
		Code    contract.ErrorCode `json:"code"`
	}
	e := openAIError{Message: f.Message, Type: "invalid_request_error", Code: f.Code}
	switch f.Code {
	case contract.MissingModel, contract.DuplicateModel, contract.InvalidModel:
		e.Param = proto.String(modelKey)
	}
	body, err := json.Marshal(map[string]openAIError{"error": e})
	if err != nil {
		panic(fmt.Sprintf("a constant body does not encode: %v", err))
	}
	return encode(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(f.Status)},
			Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{headerOption("content-type", []byte("application/json"))}},
			Body:    body,
			Details: "signalbox_" + string(f.Code),
		}}})
}
