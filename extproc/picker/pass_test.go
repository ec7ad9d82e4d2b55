package picker

import (
	"bytes"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/metadata"
)

// TestPassedWhole: without a picker too, Envoy is given nothing of a request before all of
// it has come, unless the body budget forbids to keep it.
func TestPassedWhole(t *testing.T) {
	for name, budget := range map[string]int64{"kept": 0, "over the budget": 1000} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, Config{StreamBudget: budget})
			ctx := t.Context()
			for _, kv := range open(at()).Metadata() {
				ctx = metadata.AppendToOutgoingContext(ctx, kv[0], kv[1])
			}
			s, err := g.client.Process(ctx)
			if err != nil {
				t.Fatal(err)
			}
			replies := make(chan *toEnvoy, 1000)
			go func() {
				defer close(replies)
				for m, err := s.Recv(); err == nil; m, err = s.Recv() {
					replies <- m
				}
			}()
			body := bytesOf(200000)
			send := func(m *fromEnvoy) {
				t.Helper()
				if err := s.Send(m); err != nil {
					t.Fatal(err)
				}
			}
			send(&fromEnvoy{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: headerMap([][2]string{{":method", "POST"}})}})
			send(requestSide.send(&extprocv3.HttpBody{Body: body[:100000]}))
			if budget > 0 {
				if m := <-replies; m.GetRequestHeaders() == nil {
					t.Errorf("the first reply is %v; want one to the headers", m)
				}
				if m := <-replies; m.GetRequestBody() == nil {
					t.Errorf("the second reply is %v; want one to the body", m)
				}
				return
			}
			for tick := time.NewTicker(time.Millisecond); g.budget.held.Load() < 100000; {
				select {
				case m := <-replies:
					t.Fatalf("half a body came in, and the reply was %v", m)
				case <-tick.C:
				}
			}
			send(requestSide.send(&extprocv3.HttpBody{Body: body[100000:], EndOfStream: true}))
			if m := <-replies; m.GetRequestHeaders() == nil {
				t.Errorf("the first reply is %v; want one to the headers", m)
			}
			var got []byte
			for m := range replies {
				piece := m.GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse()
				if got = append(got, piece.GetBody()...); piece.GetEndOfStream() {
					break
				}
			}
			if !bytes.Equal(got, body) {
				t.Errorf("%d bytes came back of %d", len(got), len(body))
			}
		})
	}
}
