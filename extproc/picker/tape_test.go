package picker

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestTape: whatever comes in, in whatever pieces, goes out once and in order.
func TestTape(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in tape
		var all, sent, back []byte
		ended, forgotten := false, 0
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				if ended {
					t.Skip()
				}
				b := bytesOf(rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(chunk-2, 3*chunk)).Draw(t, "n"))
				in.add(b)
				all = append(all, b...)
				in.eof = rapid.IntRange(0, 9).Draw(t, "end") == 0
				ended = in.eof
			},
			"send": func(t *rapid.T) {
				if !in.unsent() {
					t.Skip()
				}
				b, eof := in.next()
				if len(b) > chunk || len(b) == 0 && !eof {
					t.Fatalf("message of %d bytes, end %v", len(b), eof)
				}
				if sent = append(sent, b...); eof != (ended && len(sent) == len(all)) {
					t.Fatalf("end %v after %d of %d bytes", eof, len(sent), len(all))
				}
			},
			"give back": func(t *rapid.T) {
				b := sent[len(back):][:rapid.IntRange(0, len(sent)-len(back)).Draw(t, "n")]
				if !in.match(b) {
					t.Fatal("its own bytes do not match")
				}
				back = append(back, b...)
			},
			"give back another": func(t *rapid.T) {
				if len(sent) > len(back) && in.match([]byte{sent[len(back)] + 1}) {
					t.Fatal("a wrong byte matches")
				}
				if in.match(append(bytes.Clone(sent[len(back):]), 'x')) {
					t.Fatal("more than was sent matches")
				}
			},
			"forget": func(t *rapid.T) {
				forgotten = rapid.IntRange(forgotten, len(back)).Draw(t, "to")
				in.forget(forgotten)
			},
			"": func(t *rapid.T) {
				if in.back != len(back) || in.sent != len(sent) || in.end != len(all) || in.start > forgotten {
					t.Fatalf("%d, %d, %d, from %d; want %d, %d, %d, from at most %d", in.back, in.sent, in.end, in.start, len(back), len(sent), len(all), forgotten)
				}
				if got := bytes.Join(in.pieces(in.back, in.end), nil); !bytes.Equal(got, all[len(back):]) {
					t.Fatal("the rest is not what came in")
				}
				size := 0
				for _, b := range in.blocks {
					size += cap(b)
				}
				if size != in.size {
					t.Fatalf("size %d; want %d", in.size, size)
				}
			},
		})
	})
}
