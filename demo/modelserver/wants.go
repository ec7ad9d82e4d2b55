package modelserver

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What a client may ask of an answer, by request headers.
const (
	WantStatus     = "x-demo-want-status"      // answer with this HTTP status (200–599)
	WantDelay      = "x-demo-want-delay"       // wait before the first byte of the answer; a Go duration
	WantTokenDelay = "x-demo-want-token-delay" // wait between two tokens; a Go duration
	WantSize       = "x-demo-want-size"        // echo: answer with that many bytes instead (x-demo-answer-sha256 is their digest)
	WantHeader     = "x-demo-want-header"      // "name: value" to send as a header; repeatable
	WantTrailer    = "x-demo-want-trailer"     // "name: value" to send as a trailer; repeatable
)

// wants is what a request asked of its answer.
type wants struct {
	status            int // 0: not asked
	delay, tokenDelay time.Duration
	size              int64 // -1: not asked
	headers, trailers [][2]string
}

func (s *Server) readWants(h http.Header) (wants, error) {
	w := wants{delay: s.cfg.FirstToken, tokenDelay: s.cfg.PerToken, size: -1}
	var err error
	if v := h.Get(WantStatus); v != "" {
		if w.status, err = strconv.Atoi(v); err != nil || w.status < 200 || w.status > 599 {
			return w, fmt.Errorf("%s is %q: want a number from 200 to 599", WantStatus, v)
		}
	}
	for name, into := range map[string]*time.Duration{WantDelay: &w.delay, WantTokenDelay: &w.tokenDelay} {
		if v := h.Get(name); v != "" {
			if *into, err = time.ParseDuration(v); err != nil {
				return w, fmt.Errorf("%s is %q: want a duration such as 20ms", name, v)
			}
		}
	}
	if v := h.Get(WantSize); v != "" {
		if w.size, err = strconv.ParseInt(v, 10, 64); err != nil || w.size < 0 {
			return w, fmt.Errorf("%s is %q: want a number of bytes", WantSize, v)
		}
	}
	for name, into := range map[string]*[][2]string{WantHeader: &w.headers, WantTrailer: &w.trailers} {
		for _, v := range h.Values(name) {
			key, value, ok := strings.Cut(v, ":")
			if !ok || key == "" {
				return w, fmt.Errorf("%s is %q: want name: value", name, v)
			}
			*into = append(*into, [2]string{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return w, nil
}

// begin waits as asked, then sets the headers asked for and announces the trailers.
// It reports whether the client still listens.
func (w wants) begin(ctx context.Context, h http.Header) bool {
	if !sleep(ctx, w.delay) {
		return false
	}
	for _, kv := range w.headers {
		h.Add(kv[0], kv[1])
	}
	for _, kv := range w.trailers {
		h.Add("Trailer", kv[0])
	}
	return true
}

// end sends the trailers asked for, after the body.
func (w wants) end(h http.Header) {
	for _, kv := range w.trailers {
		h.Add(kv[0], kv[1])
	}
}

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
