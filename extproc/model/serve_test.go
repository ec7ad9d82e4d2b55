package model

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// tape is a stream without gRPC, to see what the extractor itself costs: messages
// that are encoded already, and a count of the answers.
type tape struct {
	grpc.ServerStream
	messages []mem.BufferSlice
	next     int
	answers  int
}

func (*tape) Context() context.Context { return context.Background() }

func (s *tape) RecvMsg(m any) error {
	if s.next == len(s.messages) {
		return io.EOF
	}
	s.next++
	return m.(*request).UnmarshalBuffers(s.messages[s.next-1])
}

func (s *tape) SendMsg(any) error {
	s.answers++
	return nil
}

func record(tb testing.TB, chunks ...[]byte) *tape {
	tb.Helper()
	s := &tape{}
	add := func(m *extprocv3.ProcessingRequest) {
		wire, err := proto.Marshal(m)
		if err != nil {
			tb.Fatal(err)
		}
		s.messages = append(s.messages, pieces(wire, 16<<10)) // HTTP/2's frames
	}
	add(&extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			{Key: ":method", RawValue: []byte("POST")}, {Key: ":path", RawValue: []byte("/v1/chat/completions")}, {Key: "content-type", RawValue: []byte("application/json")}}}}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: extprocfilter.ProcessingMode_STREAMED, SendBodyWithoutWaitingForHeaderResponse: true},
	})
	for _, c := range chunks {
		add(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: c}}})
	}
	return s
}

// TestServeFlat: a body of 64 MiB passes, released and verified, in no more memory
// than its answers take, and each chunk is answered once.
func TestServeFlat(t *testing.T) {
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	const chunks = 4096
	s := record(t, []byte(`{"model":"llama"`), []byte(`,"a":"`+strings.Repeat("x", 16<<10)+`"`), []byte(`}`))
	again := slices.Repeat(s.messages[2:3], chunks-1)
	s.messages = slices.Insert(s.messages, 2, again...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = e.Serve(s)
	runtime.ReadMemStats(&after)
	if want := 1 + chunks + 2; err != nil || s.answers != want {
		t.Errorf("error %v, %d answers; want %d", err, s.answers, want)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("%d bytes were allocated", grown)
	}
}

func BenchmarkServe(b *testing.B) {
	e, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{300, 4 << 10, 32 << 10, 220 << 10, 1 << 20} {
		for _, first := range []bool{true, false} {
			body := chatBody(n, first)
			s := record(b, slices.Collect(slices.Chunk(body, 16<<10))...)
			b.Run(fmt.Sprintf("%d/first=%v", n, first), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(body)))
				for b.Loop() {
					s.next = 0
					if err := e.Serve(s); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
