package picker

import (
	"bytes"
	"strings"
	"testing"

	"signalbox.dev/extproc/contract"
)

// TestPassesThrough is the way of a request that nothing happens to.
func TestPassesThrough(t *testing.T) {
	for name, x := range map[string]exchange{
		"GET":                        {},
		"POST empty":                 post(nil),
		"POST 300 B":                 post(bytesOf(300)),
		"POST 1 MiB":                 post(bytesOf(1 << 20)),
		"POST 8 MiB in one message":  {body: bytesOf(8 << 20), hasBody: true, piece: 8 << 20},
		"POST 3 KB byte by byte":     {body: bytesOf(3000), hasBody: true, piece: 1},
		"trailers":                   {body: bytesOf(1000), hasBody: true, trailers: true},
		"trailers without a body":    {trailers: true},
		"a second end":               {body: bytesOf(300), hasBody: true, twiceEOF: true},
		"response in pieces":         {body: bytesOf(300), hasBody: true, respBody: [][]byte{bytesOf(10), bytesOf(200000), bytesOf(3)}},
		"response with trailers":     {body: bytesOf(300), hasBody: true, respBody: [][]byte{bytesOf(10)}, respTrailers: true},
		"response of trailers alone": {respTrailers: true},
		"gRPC":                       {headers: [][2]string{{"content-type", "application/grpc"}}, body: bytesOf(200000), hasBody: true, respBody: [][]byte{bytesOf(10)}, respTrailers: true},
	} {
		for _, mode := range []contract.ResponseMode{contract.ResponseFull, contract.ResponseHeaders, contract.ResponseNone} {
			for _, atOnce := range []bool{false, true} {
				t.Run(strings.Join([]string{name, string(mode), map[bool]string{true: "at once", false: "at the end"}[atOnce]}, "/"), func(t *testing.T) {
					p := &scripted{atOnce: atOnce}
					g := newGateway(t, Config{})
					cfg := at(listen(t, p.process))
					cfg.Response = mode
					o := g.do(t.Context(), t, cfg, x)
					if o.status() != 200 || !bytes.Equal(o.body, x.body) || !o.whole || o.trailers != x.trailers {
						t.Fatalf("status %d, %d of %d bytes, whole %v, trailers %v, err %v", o.status(), len(o.body), len(x.body), o.whole, o.trailers, o.err)
					}
					if o.pick() != pod || len(o.set(contract.KeyDestination)) != 1 {
						t.Errorf("pick: metadata %q, header %q", o.pick(), o.set(contract.KeyDestination))
					}
					if mode == contract.ResponseFull && (!bytes.Equal(o.respBody, bytes.Join(x.respBody, nil)) || o.respTrailers != x.respTrailers) {
						t.Errorf("response: %d bytes, trailers %v", len(o.respBody), o.respTrailers)
					}
					if mode == contract.ResponseNone != (o.resp == nil) {
						t.Errorf("response headers: %v", o.resp)
					}
					if p.biggest.Load() > chunk {
						t.Errorf("the picker got a message of %d bytes", p.biggest.Load())
					}
					g.settled(t)
				})
			}
		}
	}
}
