package picker

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// half is what the request and the response of an exchange have in common.
type half struct {
	side     direction
	headers  *fromEnvoy       // nil: not begun
	meta     *corev3.Metadata // of Envoy's last message
	body     tape
	bodyless bool // the headers end it
	trailers bool // there are some; they never leave Envoy
	sent     bool // the headers went to the picker
	done     bool // Envoy needs no more answers
}

// add takes what Envoy sent of the body. It reports false for what comes after the end:
// Envoy has been seen to say the end twice (issue 46237).
func (h *half) add(m *fromEnvoy, eof, trailers bool) bool {
	if h.headers == nil || h.done || h.body.eof {
		return false
	}
	if m.GetMetadataContext() != nil {
		h.meta = m.GetMetadataContext()
	}
	h.body.eof, h.trailers = eof, trailers
	return true
}

// next returns the next message for the picker, or nil. Trailers are the end of the body
// to it: the pickers that ship wait for ever for a body that ends by trailers alone.
func (h *half) next() *fromEnvoy {
	switch {
	case h.headers == nil || h.done:
		return nil
	case !h.sent:
		h.sent = true
		return h.headers
	case !h.bodyless && h.body.unsent():
		b, eof := h.body.next()
		m := h.side.send(&extprocv3.HttpBody{Body: b, EndOfStream: eof})
		m.MetadataContext = h.meta
		return m
	}
	return nil
}

// give hands Envoy one piece of the body; eof says that it is the last. Before trailers
// the end of the body is not said, and an empty piece would be out of order.
func (h *half) give(s *stream, b []byte, eof bool) {
	if last := eof && !h.trailers; last || len(b) > 0 {
		s.queue(h.side.piece(b, last))
	}
	if eof && h.trailers {
		s.queue(h.side.trailers())
	}
	h.done = eof
}

// giveAll hands Envoy several pieces.
func (h *half) giveAll(s *stream, pieces [][]byte, eof bool) {
	for i, b := range pieces {
		h.give(s, b, eof && i == len(pieces)-1)
	}
	if len(pieces) == 0 && eof {
		h.give(s, nil, true)
	}
}
