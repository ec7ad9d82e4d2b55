package picker

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"pgregory.net/rapid"

	"signalbox.dev/extproc/contract"
)

// Steps of a picker that says anything at any time.
const (
	waitRequest = iota // until the request has ended
	waitResponse
	waitResponseEnd
	sayHeaders
	sayHeadersWithoutPick
	sayPiece // of what it was sent of the request
	sayAll
	sayAllAndEnd
	sayOther // bytes that it was not sent
	sayEnd
	sayResponseHeaders
	sayResponsePiece
	sayResponseAll
	sayResponseAllAndEnd
	sayResponseOther
	sayResponseEnd
	sayNotStreamed
	sayTrailers
	sayNothing // an empty message
	closeOK
	closeError
	steps
)

// player plays scripts of steps, which come in the header x-script, and keeps what it gave.
type player struct {
	mu    sync.Mutex
	given map[string][]byte // by script
}

// side is what the player knows of one half of an exchange.
type side struct {
	got     []byte
	given   int
	ended   chan struct{}
	begun   chan struct{}
	already bool
}

func (d *side) take(b []byte, eof bool) {
	d.got = append(d.got, b...)
	if eof && !d.already {
		d.already = true
		close(d.ended)
	}
}

func (p *player) process(s extprocv3.ExternalProcessor_ProcessServer) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	script := fieldsOf(m.GetRequestHeaders().GetHeaders()).first("x-script")
	var mu sync.Mutex
	req, resp := &side{ended: make(chan struct{})}, &side{ended: make(chan struct{}), begun: make(chan struct{})}
	req.take(nil, m.GetRequestHeaders().GetEndOfStream())
	go func() {
		for {
			m, err := s.Recv()
			if err != nil {
				return
			}
			mu.Lock()
			switch v := m.Request.(type) {
			case *extprocv3.ProcessingRequest_RequestBody:
				req.take(v.RequestBody.Body, v.RequestBody.EndOfStream)
			case *extprocv3.ProcessingRequest_ResponseHeaders:
				close(resp.begun)
				resp.take(nil, v.ResponseHeaders.EndOfStream)
			case *extprocv3.ProcessingRequest_ResponseBody:
				resp.take(v.ResponseBody.Body, v.ResponseBody.EndOfStream)
			}
			mu.Unlock()
		}
	}()
	for _, step := range strings.Fields(script) {
		n, _ := strconv.Atoi(step)
		if err := p.play(s, n, script, &mu, req, resp); err != nil {
			if errors.Is(err, errOK) {
				return nil
			}
			return err
		}
	}
	return nil
}

func (p *player) play(s extprocv3.ExternalProcessor_ProcessServer, step int, script string, mu *sync.Mutex, req, resp *side) error {
	await := func(c chan struct{}) error {
		select {
		case <-c:
			return nil
		case <-s.Context().Done():
			return errOK
		}
	}
	// rest is what was sent and not given back; n bounds it.
	rest := func(d *side, n int) []byte {
		mu.Lock()
		defer mu.Unlock()
		b := d.got[d.given:]
		b = b[:min(len(b), n)]
		d.given += len(b)
		return b
	}
	give := func(b []byte, eof bool) error {
		p.mu.Lock()
		p.given[script] = append(p.given[script], b...)
		p.mu.Unlock()
		return s.Send(requestSide.piece(b, eof))
	}
	const all = 1 << 30
	switch step {
	case waitRequest:
		return await(req.ended)
	case waitResponse:
		return await(resp.begun)
	case waitResponseEnd:
		return await(resp.ended)
	case sayHeaders:
		return s.Send(picks(nil, nil, pod))
	case sayHeadersWithoutPick:
		return s.Send(requestSide.headers(nil))
	case sayPiece:
		return give(rest(req, 1000), false)
	case sayAll:
		return give(rest(req, all), false)
	case sayAllAndEnd:
		return give(rest(req, all), true)
	case sayOther:
		return give([]byte("other"), false)
	case sayEnd:
		return give(nil, true)
	case sayResponseHeaders:
		return s.Send(responseSide.headers(nil))
	case sayResponsePiece:
		return s.Send(responseSide.piece(rest(resp, 1000), false))
	case sayResponseAll:
		return s.Send(responseSide.piece(rest(resp, all), false))
	case sayResponseAllAndEnd:
		return s.Send(responseSide.piece(rest(resp, all), true))
	case sayResponseOther:
		return s.Send(responseSide.piece([]byte("other"), false))
	case sayResponseEnd:
		return s.Send(responseSide.piece(nil, true))
	case sayNotStreamed:
		return s.Send(requestSide.body(nil))
	case sayTrailers:
		return s.Send(requestSide.trailers())
	case sayNothing:
		return s.Send(&toEnvoy{})
	case closeOK:
		return errOK
	}
	return broken
}

// scripts are random, but often enough those of a picker that behaves for a while.
func scripts() *rapid.Generator[[]int] {
	anything := rapid.IntRange(0, steps-1)
	good := rapid.SampledFrom([][]int{
		{waitRequest, sayHeaders, sayAllAndEnd, waitResponse, sayResponseHeaders, waitResponseEnd, sayResponseAllAndEnd},
		{sayHeaders, sayPiece, sayPiece, waitRequest, sayAllAndEnd, waitResponse, sayResponseHeaders, sayResponsePiece, sayResponseAll, waitResponseEnd, sayResponseAllAndEnd},
		{waitRequest, sayHeaders, sayPiece, sayOther, sayEnd, waitResponse, sayResponseHeaders, sayResponseOther, waitResponseEnd, sayResponseOther, sayResponseEnd},
	})
	return rapid.Custom(func(t *rapid.T) []int {
		s := good.Draw(t, "good")
		s = s[:rapid.IntRange(0, len(s)).Draw(t, "of it")]
		return append(append([]int{}, s...), rapid.SliceOfN(anything, 0, 6).Draw(t, "then")...)
	})
}

// sequences says: whatever a picker says, Envoy gets legal replies in their order, a pod
// gets the client's body or the one that the picker gave, whole, once, or never the end
// of one; and the client the pod's response.
func sequences(g *gateway, p *player, addr string) func(*rapid.T) {
	return func(t *rapid.T) {
		var words []string
		has := map[int]bool{}
		for _, n := range scripts().Draw(t, "script") {
			words = append(words, strconv.Itoa(n))
			has[n] = true
		}
		words = append(words, fmt.Sprintf("%d", closeOK))
		script := strings.Join(words, " ")
		size := rapid.SampledFrom([]int{0, 10, 3000, 200000}).Draw(t, "size")
		x := exchange{headers: [][2]string{{"x-script", script}}, body: bytesOf(size), hasBody: rapid.Bool().Draw(t, "body"),
			piece: rapid.SampledFrom([]int{50, 5000, 62000}).Draw(t, "piece"), twiceEOF: rapid.Bool().Draw(t, "twice")}
		if x.twiceEOF = x.twiceEOF && x.hasBody; !x.hasBody {
			x.body = nil
		} else if x.trailers = !x.twiceEOF && rapid.Bool().Draw(t, "trailers"); size > 10000 {
			x.piece = 62000
		}
		grpc := rapid.Bool().Draw(t, "grpc")
		if grpc {
			x.headers = append(x.headers, [2]string{"content-type", "application/grpc"})
		}
		x.respBody, x.respTrailers = tokens(rapid.IntRange(0, 4).Draw(t, "tokens")), rapid.Bool().Draw(t, "response trailers")
		if len(x.respBody) == 0 {
			x.respBody = nil
		}
		cfg := at(addr)
		cfg.PickTimeout = 50 * time.Millisecond // scripts wait for what does not come
		cfg.FailOpen = rapid.Bool().Draw(t, "FailOpen")
		p.mu.Lock()
		p.given = map[string][]byte{}
		p.mu.Unlock()
		o := g.do(t.Context(), t, cfg, x)
		p.mu.Lock()
		given := p.given[script]
		p.mu.Unlock()
		checkSequence(t, o, x, cfg, given, has, grpc)
	}
}

func checkSequence(t *rapid.T, o *outcome, x exchange, cfg contract.Picker, given []byte, has map[int]bool, grpc bool) {
	if o.err != nil {
		t.Fatalf("stream error: %v", o.err)
	}
	if o.immediate != nil && o.resp == nil {
		if o.whole || o.released && !grpc {
			t.Fatalf("503, and the pod got headers %v, whole %v", o.released, o.whole)
		}
		return
	}
	// A picker that ends the body says which bytes are the last; what it says after is nothing.
	if !o.whole || !bytes.Equal(o.body, x.body) && !bytes.HasPrefix(given, o.body) || o.trailers != x.trailers {
		t.Fatalf("the pod got %d bytes; the client sent %d, the picker gave %d; whole %v", len(o.body), len(x.body), len(given), o.whole)
	}
	if !cfg.FailOpen && o.pick() != pod {
		t.Fatal("FailClose, and no pick")
	}
	if has[sayResponseOther] {
		return
	}
	want := bytes.Join(x.respBody, nil)
	ended := has[sayResponseEnd] || has[sayResponseAllAndEnd]
	if o.immediate != nil || !o.respWhole || !bytes.Equal(o.respBody, want) && (!ended || !bytes.HasPrefix(want, o.respBody)) || o.respTrailers != x.respTrailers {
		t.Fatalf("the client got %d bytes of %d, whole %v, trailers %v", len(o.respBody), len(want), o.respWhole, o.respTrailers)
	}
}

func TestSequences(t *testing.T) {
	p := &player{}
	g := newGateway(t, Config{})
	g.remotes.timing.response = 50 * time.Millisecond
	rapid.Check(t, sequences(g, p, listen(t, p.process)))
	g.settled(t)
}

func FuzzSequences(f *testing.F) {
	p := &player{}
	g := newGateway(f, Config{})
	g.remotes.timing.response = 50 * time.Millisecond
	f.Fuzz(rapid.MakeFuzz(sequences(g, p, listen(f, p.process))))
}
