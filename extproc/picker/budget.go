package picker

import "sync/atomic"

// fairShare is what a stream may hold whatever the others hold, bytes.
const fairShare = 256 << 10

// budget bounds the body bytes that are held for pickers that have not given them back.
// It never refuses: a stream that goes over it keeps less (see stream.settle), since
// Envoy has no back-pressure in FULL_DUPLEX_STREAMED and a picker waits for whole bodies.
type budget struct {
	perStream, all int64
	held           atomic.Int64
}

// lease is the share of one stream. Its goroutine alone uses it.
type lease struct {
	b    *budget
	held int64
}

// set says that the stream now holds n bytes, and reports whether that is too much.
func (l *lease) set(n int64) (over bool) {
	all := l.b.held.Add(n - l.held)
	l.held = n
	return n > l.b.perStream || n > fairShare && all > l.b.all
}
