package modelserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// maxBody bounds a body that must be held to be parsed. The echo holds nothing.
const maxBody = 64 << 20

var errTooLarge = errors.New("the request body is larger than this simulator holds (64 MiB)")

// routingPrefixes are the headers that gateways and endpoint pickers route by: those
// of the Endpoint Picker Protocol, of body-based routing, of this project's
// extractor, and of prefill/decode disaggregation, which clients could otherwise
// forge.
var routingPrefixes = []string{"X-Gateway-", "X-Signalbox-", "X-Llm-D-", "X-Prefiller-", "X-Encoder", "X-Data-Parallel-", "X-Kv-Cache-"}

// Echo is what the echo reports about a request.
type Echo struct {
	Pod      string      `json:"pod"`
	Method   string      `json:"method"`
	Proto    string      `json:"proto"`
	Host     string      `json:"host"`
	URI      string      `json:"uri"` // path and query, as they arrived
	Headers  http.Header `json:"headers"`
	Trailers http.Header `json:"trailers,omitempty"`
	Body     EchoBody    `json:"body"`
}

// EchoBody is the body of a request.
type EchoBody struct {
	SHA256 string `json:"sha256"` // hexadecimal
	Length int64  `json:"length"` // bytes
}

// echo reports the request as an Echo, whatever its method and path.
func (s *Server) echo(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		s.cfg.Logger.Debug("body broke off", zap.String("pod", s.cfg.Pod), zap.Int64("bytes", n), zap.Error(err))
		return // the client is gone: there is nobody to answer
	}
	want, err := s.readWants(r.Header)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error(), nil)
		return
	}
	report(w, r, sum, n)
	if !want.begin(r.Context(), w.Header()) {
		return
	}
	defer want.end(w.Header())
	status := max(want.status, http.StatusOK)
	if want.size >= 0 {
		pattern := sha256.New()
		io.Copy(pattern, answer(want.size)) //nolint:errcheck // a hash takes everything
		w.Header().Set("x-demo-answer-sha256", hex.EncodeToString(pattern.Sum(nil)))
		w.Header().Set("Content-Type", "application/octet-stream")
		w.WriteHeader(status)
		io.Copy(w, answer(want.size)) //nolint:errcheck // the client left
		return
	}
	writeJSON(w, status, Echo{Pod: s.cfg.Pod, Method: r.Method, Proto: r.Proto, Host: r.Host, URI: r.RequestURI,
		Headers: r.Header, Trailers: r.Trailer, Body: EchoBody{SHA256: hex.EncodeToString(sum.Sum(nil)), Length: n}})
}

// readBody reads a whole body and reports it in the headers of the answer. An error
// that is not errTooLarge means that the client is gone.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	sum := sha256.New()
	var body bytes.Buffer
	n, err := io.Copy(io.MultiWriter(sum, &body), io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if n > maxBody {
		return nil, errTooLarge
	}
	report(w, r, sum, n)
	return body.Bytes(), nil
}

// report sets the headers that say what arrived. The body must have been read to its
// end: trailers are known only then.
func report(w http.ResponseWriter, r *http.Request, sum hash.Hash, length int64) {
	h := w.Header()
	h.Set("x-demo-body-sha256", hex.EncodeToString(sum.Sum(nil)))
	h.Set("x-demo-body-length", strconv.FormatInt(length, 10))
	for name, values := range r.Header {
		if isRouting(name) {
			h["X-Demo-Header-"+name] = values
		}
	}
	for name, values := range r.Trailer {
		if len(values) > 0 { // announced, never sent
			h["X-Demo-Trailer-"+name] = values
		}
	}
}

func isRouting(name string) bool {
	for _, p := range routingPrefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// answer returns n bytes that are the same every time and never repeat in step with
// any buffer's size.
func answer(n int64) io.Reader { return io.LimitReader(&pattern{}, n) }

type pattern struct{ at uint32 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at % 251)
		p.at++
	}
	return len(b), nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the client left
}
