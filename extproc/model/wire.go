package model

import (
	"encoding/binary"
	"errors"

	extprocfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of envoy.service.ext_proc.v3, as far as they are read.
const (
	requestHeadersField    = 2 // of ProcessingRequest
	requestBodyField       = 4
	requestTrailersField   = 6
	observabilityModeField = 10
	protocolConfigField    = 11

	headersField    = 1 // of HttpHeaders: HeaderMap
	headersEndField = 3
	bodyField       = 1 // of HttpBody
	bodyEndField    = 2

	headerField   = 1 // of config.core.v3.HeaderMap: HeaderValue
	keyField      = 1 // of HeaderValue
	valueField    = 2
	rawValueField = 3

	bodyModeField    = 1 // of ProtocolConfiguration
	withoutWaitField = 3
)

// phase is which part of the HTTP exchange a message carries.
type phase uint8

const (
	otherPhase phase = iota // one of the response's, or none
	headersPhase
	bodyPhase
	trailersPhase
)

// request is a ProcessingRequest, decoded by hand: only what the extractor reads,
// and the body where it lies in gRPC's buffers. The generated type would copy every
// body once and make some sixty objects of the headers. Reused from message to message.
type request struct {
	phase         phase
	end           bool
	observability bool
	configured    bool // protocol_config is there
	bodyMode      extprocfilter.ProcessingMode_BodySendMode
	withoutWait   bool // send_body_without_waiting_for_header_response
	method        []byte
	contentType   []byte
	encoding      []byte // content-encoding
	length        []byte // content-length
	body          [][]byte
	bodyLen       int

	held   mem.BufferSlice // what body points into
	reader mem.Reader
	text   []byte // what the headers point into
}

var errWire = errors.New("malformed ProcessingRequest")

// UnmarshalBuffers decodes the next message; the one before it is gone then.
func (r *request) UnmarshalBuffers(data mem.BufferSlice) error {
	r.release()
	data.Ref()
	r.held = data
	r.reader.Reset(data)
	for r.reader.Remaining() > 0 {
		if err := r.field(); err != nil {
			return err
		}
	}
	return nil
}

// release gives the buffers back to gRPC.
func (r *request) release() {
	r.held.Free()
	_ = r.reader.Close()
	clear(r.body)
	*r = request{body: r.body[:0], text: r.text[:0]}
}

func (r *request) field() error {
	number, wireType, value, err := r.next()
	if err != nil {
		return err
	}
	switch number {
	case requestHeadersField:
		r.phase = headersPhase
		return r.message(wireType, value, r.headersMessage)
	case requestBodyField:
		r.phase = bodyPhase
		return r.message(wireType, value, r.bodyMessage)
	case requestTrailersField:
		r.phase = trailersPhase
		return r.message(wireType, value, r.skipField)
	case observabilityModeField:
		r.observability = value != 0
	case protocolConfigField:
		r.configured = true
		return r.message(wireType, value, r.configMessage)
	}
	return r.skip(wireType, value)
}

// next reads a field's tag and, of a varint, its value; of bytes, their number.
func (r *request) next() (protowire.Number, protowire.Type, uint64, error) {
	tag, err := binary.ReadUvarint(&r.reader)
	if err != nil {
		return 0, 0, 0, errWire
	}
	number, wireType := protowire.DecodeTag(tag)
	if wireType != protowire.VarintType && wireType != protowire.BytesType {
		return number, wireType, 0, nil
	}
	value, err := binary.ReadUvarint(&r.reader)
	if err != nil || wireType == protowire.BytesType && value > uint64(r.reader.Remaining()) {
		return 0, 0, 0, errWire
	}
	return number, wireType, value, nil
}

// skip passes over the rest of a field that nobody reads.
func (r *request) skip(wireType protowire.Type, value uint64) error {
	n := 0
	switch wireType {
	case protowire.VarintType:
	case protowire.BytesType:
		n = int(value)
	case protowire.Fixed32Type:
		n = 4
	case protowire.Fixed64Type:
		n = 8
	default:
		return errWire
	}
	if _, err := r.reader.Discard(n); err != nil {
		return errWire
	}
	return nil
}

// message calls read for every field of the next n bytes.
func (r *request) message(wireType protowire.Type, n uint64, read func(protowire.Number, protowire.Type, uint64) error) error {
	if wireType != protowire.BytesType {
		return errWire
	}
	rest := r.reader.Remaining() - int(n)
	for r.reader.Remaining() > rest {
		number, wireType, value, err := r.next()
		if err != nil {
			return err
		}
		if err := read(number, wireType, value); err != nil {
			return err
		}
	}
	if r.reader.Remaining() < rest {
		return errWire
	}
	return nil
}

func (r *request) skipField(_ protowire.Number, wireType protowire.Type, value uint64) error {
	return r.skip(wireType, value)
}

func (r *request) headersMessage(number protowire.Number, wireType protowire.Type, value uint64) error {
	switch number {
	case headersField:
		return r.message(wireType, value, func(number protowire.Number, wireType protowire.Type, value uint64) error {
			if number != headerField {
				return r.skip(wireType, value)
			}
			return r.header(wireType, value)
		})
	case headersEndField:
		r.end = value != 0
	}
	return r.skip(wireType, value)
}

// header reads one HeaderValue and keeps it if somebody reads it.
func (r *request) header(wireType protowire.Type, n uint64) error {
	var key, value []byte
	err := r.message(wireType, n, func(number protowire.Number, wireType protowire.Type, n uint64) error {
		if wireType != protowire.BytesType || number > rawValueField {
			return r.skip(wireType, n)
		}
		start := len(r.text)
		r.text = append(r.text, make([]byte, n)...)
		if _, err := r.reader.Read(r.text[start:]); err != nil && n > 0 {
			return errWire
		}
		if number == keyField {
			key = r.text[start:]
		} else if n > 0 { // value or raw_value: Envoy sets one of them
			value = r.text[start:]
		}
		return nil
	})
	switch string(key) {
	case ":method":
		r.method = value
	case "content-type":
		r.contentType = join(r.contentType, value)
	case "content-encoding":
		r.encoding = join(r.encoding, value)
	case "content-length":
		r.length = join(r.length, value)
	}
	return err
}

// join makes one field of two with the same name (RFC 9110 §5.3).
func join(a, b []byte) []byte {
	if a == nil {
		return b
	}
	return append(append(append([]byte(nil), a...), ", "...), b...)
}

func (r *request) bodyMessage(number protowire.Number, wireType protowire.Type, value uint64) error {
	switch {
	case number == bodyField && wireType == protowire.BytesType:
		var err error
		if r.body, err = r.reader.Peek(int(value), r.body[:0]); err != nil {
			return errWire
		}
		r.bodyLen = int(value)
	case number == bodyEndField:
		r.end = value != 0
	}
	return r.skip(wireType, value)
}

func (r *request) configMessage(number protowire.Number, wireType protowire.Type, value uint64) error {
	switch number {
	case bodyModeField:
		r.bodyMode = extprocfilter.ProcessingMode_BodySendMode(value)
	case withoutWaitField:
		r.withoutWait = value != 0
	}
	return r.skip(wireType, value)
}

// response is an encoded ProcessingResponse. gRPC still reads it after it was sent,
// so it is never changed.
type response []byte

// MarshalBuffers returns the message for gRPC's transport.
func (r *response) MarshalBuffers() mem.BufferSlice {
	return mem.BufferSlice{mem.SliceBuffer(*r)}
}
