package extproc

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// codec lets messages that know their own encoding use it (the extractor's, which
// read only what they need), and has protobuf do the rest: on the wire all is the same.
type codec struct{}

var protobuf = encoding.GetCodecV2(proto.Name)

type marshaler interface{ MarshalBuffers() mem.BufferSlice }

type unmarshaler interface {
	UnmarshalBuffers(data mem.BufferSlice) error
}

// Name implements encoding.CodecV2.
func (codec) Name() string { return proto.Name }

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(marshaler); ok {
		return m.MarshalBuffers(), nil
	}
	return protobuf.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(unmarshaler); ok {
		return m.UnmarshalBuffers(data)
	}
	return protobuf.Unmarshal(data, v)
}
