// Package contract holds the words that Envoy's configuration, made by the
// translator, says to the process beside Envoy (extproc): gRPC initial metadata,
// header names and error codes. It is the one thing that both sides import.
package contract

import (
	"encoding/base64"
	"fmt"
	"strings"
	"time"
)

// Keys of the gRPC initial metadata of an ext_proc stream. Values must not hold a
// '%': Envoy formats them like custom request headers.
const (
	KeyPart        = "x-signalbox-part"             // PartModel or PartPicker
	KeyHoldLimit   = "x-signalbox-hold-limit"       // bytes, decimal: the listener's buffer limit
	KeyPool        = "x-signalbox-pool"             // namespace/name
	KeyEndpoints   = "x-signalbox-picker-endpoints" // ip:port, comma-separated, may be empty
	KeyTLS         = "x-signalbox-picker-tls"       // TLSInsecure, TLSPlaintext or TLSVerify
	KeyServerName  = "x-signalbox-picker-server-name"
	KeyCA          = "x-signalbox-picker-ca" // base64 PEM; empty with TLSVerify: the system's roots
	KeyFailureMode = "x-signalbox-failure-mode"
	KeyResponse    = "x-signalbox-response"     // ResponseFull, ResponseHeaders or ResponseNone
	KeyPickTimeout = "x-signalbox-pick-timeout" // Go duration; absent: no bound
)

// Values of KeyPart.
const (
	PartModel  = "model"
	PartPicker = "picker"
)

// TLSMode says how a picker is dialled.
type TLSMode string

// Values of KeyTLS.
const (
	TLSInsecure  TLSMode = "insecure"  // TLS, certificate not verified: as pickers ship
	TLSPlaintext TLSMode = "plaintext" // HTTP/2 cleartext
	TLSVerify    TLSMode = "verify"    // TLS, verified against CA and ServerName
)

// ResponseMode says how much of the response the picker sees.
type ResponseMode string

// Values of KeyResponse.
const (
	ResponseFull    ResponseMode = "full"
	ResponseHeaders ResponseMode = "headers"
	ResponseNone    ResponseMode = "none"
)

// Headers that route. Clients' values are removed before anything reads them.
const (
	HeaderModel      = "x-gateway-model-name"
	HeaderBaseModel  = "x-gateway-base-model-name"
	HeaderModelError = "x-signalbox-model-error" // an ErrorCode; set by the extractor, removed on the way to the pod
)

// The Endpoint Picker Protocol's keys (GIE proposal 004).
const (
	MetadataLB         = "envoy.lb"
	MetadataSubsetHint = "envoy.lb.subset_hint"
	KeyDestination     = "x-gateway-destination-endpoint"
	KeySubset          = "x-gateway-destination-endpoint-subset"
	KeyServed          = "x-gateway-destination-endpoint-served"
)

// ErrorCode is why no model could be read from a body.
type ErrorCode string

// The codes, as they stand in error.code of the answer.
const (
	InvalidJSON                ErrorCode = "invalid_json"
	MissingModel               ErrorCode = "missing_model"
	DuplicateModel             ErrorCode = "duplicate_model"
	InvalidModel               ErrorCode = "invalid_model"
	InvalidMultipart           ErrorCode = "invalid_multipart"
	InvalidContentType         ErrorCode = "invalid_content_type"
	UnsupportedContentEncoding ErrorCode = "unsupported_content_encoding"
	BodyTooLarge               ErrorCode = "body_too_large"
	ModelNotFound              ErrorCode = "model_not_found"
)

// Failure is the answer to a body from which no model could be read.
type Failure struct {
	Code    ErrorCode
	Status  int    // HTTP
	Message string // for a person; no '%'
}

// Failures lists every failure that the extractor can report in HeaderModelError
// or answer itself, in a fixed order.
var Failures = []Failure{
	{InvalidJSON, 400, "The request body is not one valid JSON object."},
	{MissingModel, 400, "You must provide a model parameter."},
	{DuplicateModel, 400, "The request body names more than one model."},
	{InvalidModel, 400, "The model must be a string of 1 to 256 printable ASCII characters without space, comma or quote."},
	{InvalidMultipart, 400, "The multipart form is malformed, or one of its parts breaks a limit."},
	{InvalidContentType, 400, "The content type must be application/json or multipart/form-data."},
	{UnsupportedContentEncoding, 415, "The request body must not be compressed."},
	{BodyTooLarge, 413, "No model was found within the part of the request body that the gateway can hold; put the model parameter first."},
}

// Picker is how to reach the endpoint picker of one pool, and what to do without it.
type Picker struct {
	Pool        string   // namespace/name
	Endpoints   []string // ip:port of the ready endpoints; empty: known to be gone
	TLS         TLSMode
	ServerName  string
	CA          []byte // PEM
	FailOpen    bool
	Response    ResponseMode
	PickTimeout time.Duration // 0: no bound
}

// Metadata returns p as gRPC initial metadata, key and value, in a fixed order.
func (p Picker) Metadata() [][2]string {
	mode := "FailClose"
	if p.FailOpen {
		mode = "FailOpen"
	}
	out := [][2]string{{KeyPart, PartPicker}, {KeyPool, p.Pool}, {KeyEndpoints, strings.Join(p.Endpoints, ",")},
		{KeyTLS, string(p.TLS)}, {KeyFailureMode, mode}, {KeyResponse, string(p.Response)}}
	if p.ServerName != "" {
		out = append(out, [2]string{KeyServerName, p.ServerName})
	}
	if len(p.CA) > 0 {
		out = append(out, [2]string{KeyCA, base64.StdEncoding.EncodeToString(p.CA)})
	}
	if p.PickTimeout > 0 {
		out = append(out, [2]string{KeyPickTimeout, p.PickTimeout.String()})
	}
	return out
}

// ParsePicker is the inverse of Picker.Metadata; get returns the value of a key, or "".
// An error names the key: it means that Envoy was not configured by this project.
func ParsePicker(get func(key string) string) (Picker, error) {
	p := Picker{Pool: get(KeyPool), TLS: TLSMode(get(KeyTLS)), ServerName: get(KeyServerName), Response: ResponseMode(get(KeyResponse))}
	if p.Pool == "" {
		return p, fmt.Errorf("initial metadata %s is missing", KeyPool)
	}
	if e := get(KeyEndpoints); e != "" {
		p.Endpoints = strings.Split(e, ",")
	}
	switch p.TLS {
	case TLSInsecure, TLSPlaintext, TLSVerify:
	default:
		return p, fmt.Errorf("initial metadata %s is %q; want %s, %s or %s", KeyTLS, p.TLS, TLSInsecure, TLSPlaintext, TLSVerify)
	}
	switch p.Response {
	case ResponseFull, ResponseHeaders, ResponseNone:
	default:
		return p, fmt.Errorf("initial metadata %s is %q; want %s, %s or %s", KeyResponse, p.Response, ResponseFull, ResponseHeaders, ResponseNone)
	}
	switch m := get(KeyFailureMode); m {
	case "FailOpen":
		p.FailOpen = true
	case "FailClose":
	default:
		return p, fmt.Errorf("initial metadata %s is %q; want FailOpen or FailClose", KeyFailureMode, m)
	}
	var err error
	if ca := get(KeyCA); ca != "" {
		if p.CA, err = base64.StdEncoding.DecodeString(ca); err != nil {
			return p, fmt.Errorf("initial metadata %s: %w", KeyCA, err)
		}
	}
	if d := get(KeyPickTimeout); d != "" {
		if p.PickTimeout, err = time.ParseDuration(d); err != nil {
			return p, fmt.Errorf("initial metadata %s: %w", KeyPickTimeout, err)
		}
	}
	return p, nil
}
