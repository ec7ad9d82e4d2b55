package model

import (
	"unicode/utf8"

	"signalbox.dev/extproc/contract"
)

// text reads on within a string, from i on; it returns where it stopped: after the
// closing quote, or at the end of p.
func (s *jsonScanner) text(p []byte, i int) int {
	for i < len(p) && s.code == "" {
		if s.state != inString {
			i = s.rare(p, i)
			continue
		}
		if s.sink == toNothing {
			if i = skipPlain(p, i); i == len(p) {
				return i
			}
		}
		switch c := p[i]; {
		case c == '"':
			i++
			s.endString(i)
			return i
		case c == '\\':
			s.state = inEscape
			if i++; i < len(p) {
				s.escape(p[i])
				i++
			}
		case c < 0x20:
			s.fail(contract.InvalidJSON)
		case c < utf8.RuneSelf:
			s.put(c)
			i++
		default:
			i = s.runes(p, i)
		}
	}
	return i
}

// rare reads one byte of an escape, or of a UTF-8 sequence that a chunk cut.
func (s *jsonScanner) rare(p []byte, i int) int {
	c := p[i]
	switch s.state {
	case inEscape:
		s.escape(c)
	case inHex:
		s.hexDigit(c)
	case inLowSlash, inLowU:
		want, next := byte('\\'), inLowU
		if s.state == inLowU {
			want, next = 'u', inHex
		}
		if c != want {
			s.fail(contract.InvalidJSON) // a lone high surrogate
		}
		s.state, s.hex, s.digit = next, 0, 0
	default: // inRune
		s.partial[s.partialLen] = c
		s.partialLen++
		seq := s.partial[:s.partialLen]
		if !utf8.FullRune(seq) {
			break
		}
		r, n := utf8.DecodeRune(seq)
		if n != len(seq) {
			s.fail(contract.InvalidJSON)
		}
		s.state, s.partialLen = inString, 0
		s.putRune(r)
	}
	return i + 1
}

// runes reads characters beyond ASCII, as many as stand in a row.
func (s *jsonScanner) runes(p []byte, i int) int {
	for i < len(p) && p[i] >= utf8.RuneSelf {
		if n := common(p[i:]); n > 0 && s.sink == toNothing {
			i += n
			continue
		}
		r, n := utf8.DecodeRune(p[i:])
		if r == utf8.RuneError && n == 1 {
			if utf8.FullRune(p[i:]) {
				s.fail(contract.InvalidJSON)
				return i
			}
			s.state = inRune
			s.partialLen = uint8(copy(s.partial[:], p[i:]))
			return len(p)
		}
		s.putRune(r)
		i += n
	}
	return i
}

// common returns the length of a well-formed UTF-8 sequence of two or three bytes at
// the start of p (most of what is not English), 0 for anything else.
func common(p []byte) int {
	switch {
	case len(p) < 3:
	case 0xC2 <= p[0] && p[0] <= 0xDF && p[1]&0xC0 == 0x80:
		return 2
	case 0xE1 <= p[0] && p[0] <= 0xEF && p[0] != 0xED && p[1]&0xC0 == 0x80 && p[2]&0xC0 == 0x80:
		return 3
	}
	return 0
}

func (s *jsonScanner) escape(c byte) {
	s.state = inString
	switch c {
	case '"', '\\', '/':
		s.put(c)
	case 'b', 'f', 'n', 'r', 't':
		s.put('\n') // which control character does not matter: neither key nor model has one
	case 'u':
		s.state, s.hex, s.digit = inHex, 0, 0
	default:
		s.fail(contract.InvalidJSON)
	}
}

func (s *jsonScanner) hexDigit(c byte) {
	var v rune
	switch {
	case '0' <= c && c <= '9':
		v = rune(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		v = rune(c|0x20-'a') + 10
	default:
		s.fail(contract.InvalidJSON)
		return
	}
	s.hex = s.hex<<4 | v
	if s.digit++; s.digit < 4 {
		return
	}
	s.state = inString
	isHigh, isLow := s.hex>>10 == 0xD800>>10, s.hex>>10 == 0xDC00>>10
	switch {
	case isLow != (s.high != 0):
		s.fail(contract.InvalidJSON) // half a surrogate pair: parsers differ on it
	case isHigh:
		s.high, s.state = s.hex, inLowSlash
	default:
		s.high = 0
		s.putRune(s.hex) // of a pair any rune will do: both are beyond ASCII
	}
}

// putRune takes one decoded character.
func (s *jsonScanner) putRune(r rune) {
	if r < utf8.RuneSelf {
		s.put(byte(r))
		return
	}
	switch s.sink {
	case toKey:
		s.sink = toNothing
	case toModel:
		s.fail(contract.InvalidModel)
	}
}

// put takes one decoded ASCII character.
func (s *jsonScanner) put(c byte) {
	switch s.sink {
	case toKey:
		if int(s.keyLen) == len(modelKey) || modelKey[s.keyLen] != c {
			s.sink = toNothing // some other key
			return
		}
		s.keyLen++
	case toModel:
		if s.valLen == maxModel || !legalInModel(c) {
			s.fail(contract.InvalidModel)
			return
		}
		if !s.again {
			s.name[s.valLen] = c
		} else if s.valLen >= s.nameLen || s.name[s.valLen] != c {
			s.differs = true
		}
		s.valLen++
	}
}

// legalInModel says which characters a model may have: what is safe in a header, in
// a list of headers, and in JSON.
func legalInModel(c byte) bool { return 0x21 <= c && c <= 0x7e && c != ',' && c != '"' }

// endString takes the closing quote; i is the offset after it in the chunk.
func (s *jsonScanner) endString(i int) {
	if s.inKey {
		s.isModel = s.sink == toKey && int(s.keyLen) == len(modelKey)
		s.state = atColon
		return
	}
	s.state = atComma
	if s.sink != toModel {
		return
	}
	switch {
	case s.valLen == 0:
		s.fail(contract.InvalidModel)
	case s.again && (s.differs || s.valLen != s.nameLen):
		s.fail(contract.DuplicateModel)
	case !s.again:
		s.named, s.nameLen, s.modelAt = true, s.valLen, s.read+int64(i)
	}
}
