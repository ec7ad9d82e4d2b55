package picker

import "bytes"

// chunk is the most body bytes that one message to a picker carries. Pickers run with
// gRPC's default limit of 4 MiB a message; 62,000 is what they use themselves, so that
// a message fits the 64 KiB that some proxies allow.
const chunk = 62000

// tape is a body that is passing through: what came in, how far the picker was sent it,
// and how far the picker gave it back unchanged. All positions are bytes from the body's
// start. It keeps its own copy in blocks of chunk bytes, so a position is found by
// division, and bodies that arrive byte by byte take no more memory than whole ones.
type tape struct {
	blocks           [][]byte // blocks[0] starts at start; all but the last are full
	start, end       int      // what is kept
	sent             int      // handed out by next
	back             int      // given back unchanged; at most sent
	eof              bool     // the body's end came in
	size             int      // memory held, bytes
	sentEOF, backEOF bool
}

// add appends b to the body.
func (t *tape) add(b []byte) {
	t.end += len(b)
	for len(b) > 0 {
		if n := len(t.blocks); n == 0 || len(t.blocks[n-1]) == chunk {
			t.blocks = append(t.blocks, nil)
		}
		last := &t.blocks[len(t.blocks)-1]
		n := min(len(b), chunk-len(*last))
		t.size -= cap(*last)
		*last = append(*last, b[:n]...)
		t.size += cap(*last)
		b = b[n:]
	}
}

// at returns the bytes that are kept from position pos to the end of pos's block.
func (t *tape) at(pos int) []byte {
	i := (pos - t.start) / chunk
	if i >= len(t.blocks) {
		return nil
	}
	return t.blocks[i][(pos-t.start)%chunk:]
}

// unsent reports whether the picker has still to be sent something of what came in.
func (t *tape) unsent() bool { return t.sent < t.end || t.eof && !t.sentEOF }

// next returns the next message for the picker; only after unsent.
func (t *tape) next() (b []byte, eof bool) {
	b = t.at(t.sent)
	t.sent += len(b)
	t.sentEOF = t.eof && t.sent == t.end
	return b, t.sentEOF
}

// match reports whether b is what follows on what the picker gave back so far; then it
// counts as given back.
func (t *tape) match(b []byte) bool {
	if len(b) > t.sent-t.back {
		return false
	}
	for pos := t.back; len(b) > 0; {
		have := t.at(pos)
		n := min(len(have), len(b))
		if n == 0 || !bytes.Equal(have[:n], b[:n]) {
			return false
		}
		pos, b = pos+n, b[n:]
		if len(b) == 0 {
			t.back = pos
		}
	}
	return true
}

// pieces returns the kept bytes of [from, to) in messages of at most chunk bytes.
func (t *tape) pieces(from, to int) [][]byte {
	var out [][]byte
	for from < to {
		b := t.at(from)
		b = b[:min(len(b), to-from)]
		out = append(out, b)
		from += len(b)
	}
	return out
}

// forget drops what stands before pos, as far as whole blocks go.
func (t *tape) forget(pos int) {
	for len(t.blocks) > 0 && t.start+len(t.blocks[0]) <= pos {
		t.start += len(t.blocks[0])
		t.size -= cap(t.blocks[0])
		t.blocks[0] = nil
		t.blocks = t.blocks[1:]
	}
}

// rewind makes the tape ready for another picker; only while nothing was forgotten.
func (t *tape) rewind() { t.sent, t.back, t.sentEOF, t.backEOF = 0, 0, false, false }
