package model

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"signalbox.dev/extproc/contract"
)

// pieces cuts b into buffers of n bytes, as gRPC's come.
func pieces(b []byte, n int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(b) > 0 {
		n := min(n, len(b))
		out = append(out, mem.SliceBuffer(b[:n]))
		b = b[n:]
	}
	return out
}

// sameRequest checks the hand decoder against the generated one.
func sameRequest(t *testing.T, m *extprocv3.ProcessingRequest, size int) {
	t.Helper()
	wire, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var r request
	if err := r.UnmarshalBuffers(pieces(wire, size)); err != nil {
		t.Fatalf("%v: %v", m, err)
	}
	defer r.release()
	want := otherPhase
	end, text := false, []byte(nil)
	switch m.Request.(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		want, end = headersPhase, m.GetRequestHeaders().EndOfStream
	case *extprocv3.ProcessingRequest_RequestBody:
		want, end, text = bodyPhase, m.GetRequestBody().EndOfStream, m.GetRequestBody().Body
	case *extprocv3.ProcessingRequest_RequestTrailers:
		want = trailersPhase
	}
	c := m.ProtocolConfig
	if r.phase != want || r.end != end || !bytes.Equal(bytes.Join(r.body, nil), text) || r.bodyLen != len(text) ||
		r.observability != m.ObservabilityMode || r.configured != (c != nil) || r.bodyMode != c.GetRequestBodyMode() ||
		r.withoutWait != c.GetSendBodyWithoutWaitingForHeaderResponse() {
		t.Fatalf("%v\nis read as %+v", m, &r)
	}
	if want != headersPhase {
		return
	}
	fields := map[string][]string{}
	for _, h := range m.GetRequestHeaders().GetHeaders().GetHeaders() {
		value := string(h.RawValue)
		if value == "" {
			value = h.Value
		}
		if h.Value == "" || len(h.RawValue) == 0 { // Envoy sets one of them
			fields[h.Key] = append(fields[h.Key], value)
		} else {
			return
		}
	}
	for key, got := range map[string][]byte{"content-type": r.contentType, "content-encoding": r.encoding, "content-length": r.length} {
		if values := fields[key]; len(values) == 1 && string(got) != values[0] {
			t.Fatalf("%s is %q; want %q", key, got, values[0])
		}
	}
}

// FuzzWire: whatever arrives is decoded as the generated code does, or refused.
func FuzzWire(f *testing.F) {
	for _, m := range []*extprocv3.ProcessingRequest{
		{},
		{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte("hello"), EndOfStream: true}}},
		{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}},
		{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: []byte("hello"), EndOfStream: true}}},
		{ObservabilityMode: true, MetadataContext: &corev3.Metadata{},
			ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: extprocfilter.ProcessingMode_STREAMED, SendBodyWithoutWaitingForHeaderResponse: true},
			Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{EndOfStream: true, Headers: &corev3.HeaderMap{
				Headers: []*corev3.HeaderValue{{Key: ":method", RawValue: []byte("POST")}, {Key: "content-type", Value: "a/b"}, {Key: "content-encoding", RawValue: []byte("gzip")}}}}}},
	} {
		wire, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, uint8(3))
	}
	f.Add([]byte("00"), uint8(3)) // the trailers' field, but a number
	f.Fuzz(func(t *testing.T, wire []byte, size uint8) {
		n := int(size) + 1
		var r request
		err := r.UnmarshalBuffers(pieces(wire, n))
		r.release()
		var m extprocv3.ProcessingRequest
		if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(wire, &m) != nil {
			return
		}
		if err != nil && !errors.Is(err, errWire) {
			t.Fatal(err)
		}
		sameRequest(t, &m, n)
	})
}

// TestRoute: every length of a model has its template.
func TestRoute(t *testing.T) {
	for n := 1; n <= maxModel; n++ {
		name := strings.Repeat("m", n)
		var got extprocv3.ProcessingResponse
		if err := proto.Unmarshal(route([]byte(name)), &got); err != nil {
			t.Fatal(err)
		}
		set := got.GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders()
		if len(set) != 1 || set[0].Header.Key != contract.HeaderModel || string(set[0].Header.RawValue) != name {
			t.Fatalf("model of %d bytes: %v", n, &got)
		}
	}
}

// brokenStream panics as a bug would.
type brokenStream struct{ grpc.ServerStream }

func (brokenStream) Context() context.Context { return context.Background() }
func (brokenStream) RecvMsg(any) error        { panic("a bug") }

// TestPanic: a bug ends one stream, as an error, so that Envoy refuses the request.
func TestPanic(t *testing.T) {
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Serve(brokenStream{}); status.Code(err) != codes.Internal {
		t.Errorf("%v; want Internal", err)
	}
	if n := e.inflight.Load(); n != 0 {
		t.Errorf("%d requests in flight", n)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{HoldLimit: -1}, {HoldLimit: MaxHoldLimit + 1}, {MaxConcurrent: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
