package picker

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"signalbox.dev/extproc/contract"
)

// tokens is a streamed response.
func tokens(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = bytesOf(100 + i)
	}
	return out
}

// nth calls f the nth time that a phase comes, counted from 0.
func nth(at string, n int, f func(s extprocv3.ExternalProcessor_ProcessServer) error) func(extprocv3.ExternalProcessor_ProcessServer, string) error {
	return func(s extprocv3.ExternalProcessor_ProcessServer, phase string) error {
		if phase != at {
			return nil
		}
		if n--; n == -1 {
			return f(s)
		}
		return nil
	}
}

// TestResponseOutlivesPicker: once the pod answers, nothing that a picker does costs a byte.
func TestResponseOutlivesPicker(t *testing.T) {
	hang := func(s extprocv3.ExternalProcessor_ProcessServer) error { return errHang }
	for name, f := range map[string]func(s extprocv3.ExternalProcessor_ProcessServer) error{
		"error":             endsWith(status.Error(codes.Unavailable, "test fault")),
		"OK":                endsWith(errOK),
		"hang":              hang,
		"not streamed":      says(responseSide.body(&extprocv3.BodyResponse{})),
		"request headers":   says(requestSide.headers(nil)),
		"request body":      says(requestSide.piece([]byte("x"), false)),
		"trailers":          says(responseSide.trailers()),
		"mode override":     says(&toEnvoy{Response: responseSide.headers(nil).Response, ModeOverride: &filterv3.ProcessingMode{}}),
		"an early end":      says(responseSide.piece(nil, true)),
		"replace":           says(responseSide.headers(&extprocv3.CommonResponse{Status: extprocv3.CommonResponse_CONTINUE_AND_REPLACE})),
		"an illegal header": says(responseSide.headers(&extprocv3.CommonResponse{HeaderMutation: again(fields{"a b": {"c"}}, nil)})),
		"headers once again": func(s extprocv3.ExternalProcessor_ProcessServer) error {
			_ = s.Send(responseSide.headers(nil))
			return says(responseSide.headers(nil))(s)
		},
	} {
		for at, n := range map[string]int{afterBody: 0, respHeaders: 0, respBody: 0, respBody + " later": 7} {
			switch {
			case at == afterBody && name == "hang":
				continue // it has answered all: nobody waits for it before the response
			case n == 7 && name == "an early end", at == respBody && name == "an early end":
				continue // when the whole body was sent to it, its end is as good as any
			}
			for _, failOpen := range []bool{true, false} {
				for _, trailers := range []bool{true, false} {
					t.Run(strings.Join([]string{name, at, map[bool]string{true: "FailOpen", false: "FailClose"}[failOpen],
						map[bool]string{true: "trailers", false: "no trailers"}[trailers]}, "/"), func(t *testing.T) {
						t.Parallel()
						l := newFreezer(t)
						p := &scripted{replyTo: nth(strings.TrimSuffix(at, " later"), n, func(s extprocv3.ExternalProcessor_ProcessServer) error {
							err := f(s)
							if errors.Is(err, errHang) {
								l.freeze()
								return nil
							}
							return err
						})}
						g := hurried(t, Config{})
						cfg := l.serve(t, p)
						cfg.FailOpen = failOpen
						x := post(bytesOf(3000))
						x.respBody, x.respTrailers = tokens(20), trailers
						o := g.do(t.Context(), t, cfg, x)
						if o.status() != 200 || !bytes.Equal(o.body, x.body) || !bytes.Equal(o.respBody, bytes.Join(x.respBody, nil)) || o.respTrailers != trailers {
							t.Errorf("status %d (%v), request %d bytes, response %d of %d", o.status(), o.err, len(o.body), len(o.respBody), len(bytes.Join(x.respBody, nil)))
						}
						if o.pick() != pod {
							t.Errorf("pick %q", o.pick())
						}
						g.settled(t)
					})
				}
			}
		}
	}
}

// torn answers more messages than there were, and dies.
func torn(s extprocv3.ExternalProcessor_ProcessServer) error {
	_ = s.Send(responseSide.piece([]byte("one"), false))
	_ = s.Send(responseSide.piece([]byte("two"), false))
	return errOK
}

// TestResponseChanged: a picker that rewrites the response, message by message, may die as
// well; one that does it in a way that cannot be followed ends the response visibly.
func TestResponseChanged(t *testing.T) {
	// inStep makes the pod wait until the picker got the piece before, up to piece n.
	inStep := func(x *exchange, p *scripted, n int) {
		got := make(chan struct{}, 100)
		p.seen = func(m *fromEnvoy) {
			if m.GetResponseBody() != nil {
				got <- struct{}{}
			}
		}
		x.respond = func(i int) {
			if i > 0 && i <= n {
				<-got
			}
		}
	}
	upper := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("1"), []byte("one")) }
	t.Run("lives", func(t *testing.T) {
		g := newGateway(t, Config{})
		x := post(bytesOf(300))
		x.respHeaders, x.respBody = [][2]string{{"content-length", "2190"}}, tokens(20)
		o := g.do(t.Context(), t, at(listen(t, (&scripted{respond: upper}).process)), x)
		if want := upper(bytes.Join(x.respBody, nil)); !bytes.Equal(o.respBody, want) {
			t.Errorf("got %d bytes; want %d", len(o.respBody), len(want))
		}
		if got := o.resp.GetResponse().GetHeaderMutation().GetRemoveHeaders(); len(got) != 1 || got[0] != "content-length" {
			t.Errorf("removed %v", got)
		}
	})
	t.Run("dies between messages", func(t *testing.T) {
		g := newGateway(t, Config{})
		x := post(bytesOf(300))
		x.respBody = tokens(20)
		p := &scripted{respond: upper, replyTo: nth(respBody, 7, endsWith(errOK))}
		inStep(&x, p, 7)
		o := g.do(t.Context(), t, at(listen(t, p.process)), x)
		want := append(upper(bytes.Join(x.respBody[:7], nil)), bytes.Join(x.respBody[7:], nil)...)
		if o.status() != 200 || !bytes.Equal(o.respBody, want) {
			t.Errorf("status %d, got %d bytes; want %d", o.status(), len(o.respBody), len(want))
		}
	})
	t.Run("dies where it cannot be followed", func(t *testing.T) {
		g := newGateway(t, Config{})
		x := post(bytesOf(300))
		x.respBody = tokens(20)
		p := &scripted{respond: func(b []byte) []byte { return b[:len(b)-1] }, replyTo: nth(respBody, 7, torn)}
		inStep(&x, p, 7)
		o := g.do(t.Context(), t, at(listen(t, p.process)), x)
		if o.resp == nil || o.respWhole || o.immediate == nil {
			t.Errorf("%+v: not cut", o)
		}
		g.settled(t)
	})
}

// TestImmediateResponse: the picker's own answers reach the client as they are.
func TestImmediateResponse(t *testing.T) {
	for _, at2 := range []string{beforeHeaders, afterHeaders, respHeaders} {
		for _, code := range []typev3.StatusCode{429, 503, 400} {
			m := &toEnvoy{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
				Status: &typev3.HttpStatus{Code: code}, Body: []byte("saturated"), Details: "shed",
				Headers: again(nil, map[string]string{"x-llm-d-request-dropped-reason": "rejected-saturated"})}}}
			for _, failOpen := range []bool{true, false} {
				g := newGateway(t, Config{})
				cfg := replies(at2, func(s extprocv3.ExternalProcessor_ProcessServer) error { _ = s.Send(m); return errOK })(t)
				cfg.FailOpen = failOpen
				o := g.do(t.Context(), t, cfg, post(bytesOf(100000)))
				if o.status() != int(code) || string(o.immediate.GetBody()) != "saturated" || o.immediate.GetDetails() != "shed" || len(o.immediate.GetHeaders().GetSetHeaders()) != 1 {
					t.Errorf("%s: %v (%v)", at2, o.immediate, o.err)
				}
				if at2 != respHeaders && o.released {
					t.Errorf("%s: the pod got the request", at2)
				}
				if want := map[bool]string{true: resultPicked, false: resultImmediate}[at2 == respHeaders]; gauge(g.metrics.requests.WithLabelValues("ns/pool", want)) != 1 {
					t.Errorf("%s: result %s not counted", at2, want)
				}
				g.settled(t)
			}
		}
	}
}

// TestResponseBeforePick: an answer of Envoy's own (a timeout) reaches the client although
// the picker hangs in thought, and the picker is told.
func TestResponseBeforePick(t *testing.T) {
	for _, mode := range []contract.ResponseMode{contract.ResponseFull, contract.ResponseHeaders} {
		canceled := make(chan struct{})
		asked := make(chan struct{})
		g := newGateway(t, Config{})
		cfg := at(listen(t, (&scripted{replyTo: func(s extprocv3.ExternalProcessor_ProcessServer, phase string) error {
			close(asked)
			<-s.Context().Done()
			close(canceled)
			return errOK
		}}).process))
		cfg.Response = mode
		stream := g.open(t.Context(), t, cfg)
		x := &envoy{cfg: cfg, x: exchange{respBody: [][]byte{[]byte("upstream timeout")}}, stream: stream}
		x.request()
		<-asked
		x.response()
		x.out.whole, x.out.released = true, true // as far as the reader below cares
		for x.out.resp == nil || mode == contract.ResponseFull && !x.out.respWhole {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if err := x.reply(m); err != nil {
				t.Fatal(err)
			}
		}
		<-canceled
		_ = stream.CloseSend()
		g.settled(t)
	}
}

// TestNoRequest: an answer that another filter gave before the pickers' filter saw the
// request passes, and no picker is asked.
func TestNoRequest(t *testing.T) {
	p := &scripted{}
	g := newGateway(t, Config{})
	cfg := at(listen(t, p.process))
	stream := g.open(t.Context(), t, cfg)
	x := &envoy{cfg: cfg, x: exchange{respBody: tokens(3)}, stream: stream}
	x.response()
	for !x.out.respWhole {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if err := x.reply(m); err != nil {
			t.Fatal(err)
		}
	}
	if p.streams.Load() != 0 || !bytes.Equal(x.out.respBody, bytes.Join(tokens(3), nil)) {
		t.Errorf("%d pickers asked, %d bytes", p.streams.Load(), len(x.out.respBody))
	}
	_ = stream.CloseSend()
	g.settled(t)
}
