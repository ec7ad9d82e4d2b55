package model

import (
	"encoding/binary"
	"math/bits"

	"signalbox.dev/extproc/contract"
)

// maxDepth bounds the nesting of a body. Every parser behind the gateway gives up
// somewhere (Python's at 1,000, Go's at 10,000); no LLM request comes near 512.
const maxDepth = 512

// maxModel bounds the decoded model value: it becomes a header and a route key.
const maxModel = 256

// modelKey is the one key of the outermost object that is looked for.
const modelKey = "model"

// jsonState is what the JSON grammar (RFC 8259) allows next.
type jsonState uint8

const (
	atStart      jsonState = iota // the outermost '{'
	atKeyOrEnd                    // after '{'
	atKey                         // after ',' in an object
	atColon                       // after a key
	atValueOrEnd                  // after '['
	atValue                       // after ':', or after ',' in an array
	atComma                       // after a value
	atDone                        // after the outermost '}'
	inLiteral                     // within true, false or null
	inMinus                       // after '-'
	inZero                        // after a leading 0
	inInteger
	inPoint // after '.'
	inFraction
	inExponent // after 'e'
	inExponentSign
	inExponentDigits
	inString
	inRune     // within a UTF-8 sequence that a chunk cut
	inEscape   // after '\'
	inHex      // within the four digits of \u
	inLowSlash // after a high surrogate: '\' must follow
	inLowU     // and then 'u'
)

// sink is where the decoded bytes of the current string go.
type sink uint8

const (
	toNothing sink = iota
	toKey
	toModel
)

// jsonScanner reads one JSON object chunk by chunk and remembers nothing of it but
// the value of its top-level key "model". It checks the whole grammar, since a body
// that two parsers read differently could be routed as one model and served as
// another; numbers are not checked for range. The zero value is ready.
type jsonScanner struct {
	code  contract.ErrorCode // of the first error; the scanner stays there
	state jsonState
	sink  sink

	inKey   bool  // the current string is a key
	isModel bool  // the key just read is "model" of the outermost object
	keyLen  uint8 // bytes of modelKey that the current key has matched
	again   bool  // the current model value is not the first one …
	differs bool  // … and is not a prefix of it

	rest  string // of the literal
	hex   rune   // of \u, as far as read
	digit uint8  // of \u, read
	high  rune   // surrogate waiting for its second half

	partial    [4]byte // a UTF-8 sequence that a chunk cut
	partialLen uint8

	depth   int
	objects [maxDepth / 64]uint64 // bit d: the container at depth d+1 is an object

	name    [maxModel]byte
	nameLen int
	valLen  int // of the current model value
	named   bool
	read    int64 // bytes before the current chunk
	modelAt int64 // bytes up to the end of the first model value
}

func (s *jsonScanner) reset() { *s = jsonScanner{} }

func (s *jsonScanner) done() bool { return s.state == atDone }

func (s *jsonScanner) model() []byte {
	if !s.named {
		return nil
	}
	return s.name[:s.nameLen]
}

func (s *jsonScanner) modelOffset() int64 { return s.modelAt }

// end is the verdict on a body that is over before the object is.
func (s *jsonScanner) end() contract.ErrorCode {
	if s.code == "" && !s.done() {
		s.fail(contract.InvalidJSON)
	}
	return s.code
}

// feed reads the next chunk. Bytes after the object are looked at only as far as
// they are fed: only white space may stand there.
func (s *jsonScanner) feed(p []byte) contract.ErrorCode {
	for i := 0; i < len(p) && s.code == ""; {
		switch {
		case s.state >= inString:
			i = s.text(p, i)
		case s.state >= inMinus:
			i = s.number(p, i)
		case s.state == inLiteral:
			i = s.literal(p, i)
		default:
			i = s.structure(p, i)
		}
	}
	s.read += int64(len(p))
	return s.code
}

func (s *jsonScanner) fail(code contract.ErrorCode) {
	if s.code == "" {
		s.code = code
	}
}

// structure reads the bytes between scalars, from i on; it returns where the next
// scalar's second byte is, or the end of p.
func (s *jsonScanner) structure(p []byte, i int) int {
	for ; i < len(p) && s.code == ""; i++ {
		c := p[i]
		if c == ' ' || c == '\n' || c == '\r' || c == '\t' {
			continue
		}
		switch s.state {
		case atKeyOrEnd, atKey:
			if c == '"' {
				s.beginKey()
				return i + 1
			}
			if c == '}' && s.state == atKeyOrEnd {
				s.pop()
			} else {
				s.fail(contract.InvalidJSON)
			}
		case atColon:
			if c != ':' {
				s.fail(contract.InvalidJSON)
			}
			s.state = atValue
		case atValueOrEnd, atValue:
			if c == ']' && s.state == atValueOrEnd {
				s.pop()
			} else if s.beginValue(c); s.state >= inLiteral {
				return i + 1
			}
		case atComma:
			s.afterValue(c)
		case atStart:
			if c == '{' {
				s.push(c)
			} else {
				s.fail(contract.InvalidJSON)
			}
		default: // atDone
			s.fail(contract.InvalidJSON)
		}
	}
	return i
}

func (s *jsonScanner) beginKey() {
	s.state, s.sink, s.inKey = inString, toNothing, true
	if s.depth == 1 {
		s.sink, s.keyLen = toKey, 0
	}
}

// beginValue takes the first byte of a value.
func (s *jsonScanner) beginValue(c byte) {
	wanted := s.isModel
	s.isModel = false
	switch {
	case c == '"':
		s.state, s.sink, s.inKey = inString, toNothing, false
		if wanted {
			s.sink, s.again, s.differs, s.valLen = toModel, s.named, false, 0
		}
		return
	case c == '{' || c == '[':
		s.push(c)
	case c == '-':
		s.state = inMinus
	case c == '0':
		s.state = inZero
	case '1' <= c && c <= '9':
		s.state = inInteger
	case c == 't':
		s.state, s.rest = inLiteral, "rue"
	case c == 'f':
		s.state, s.rest = inLiteral, "alse"
	case c == 'n':
		s.state, s.rest = inLiteral, "ull"
	default:
		s.fail(contract.InvalidJSON)
	}
	if wanted {
		s.fail(contract.InvalidModel) // anything but a string
	}
}

func (s *jsonScanner) afterValue(c byte) {
	object := s.inObject()
	switch {
	case c == ',' && object:
		s.state = atKey
	case c == ',':
		s.state = atValue
	case c == '}' && object, c == ']' && !object:
		s.pop()
	default:
		s.fail(contract.InvalidJSON)
	}
}

func (s *jsonScanner) inObject() bool {
	d := s.depth - 1
	return s.objects[d/64]>>(d%64)&1 == 1
}

func (s *jsonScanner) push(c byte) {
	if s.depth == maxDepth {
		s.fail(contract.InvalidJSON)
		return
	}
	word, bit := s.depth/64, uint64(1)<<(s.depth%64)
	s.depth++
	if c == '{' {
		s.objects[word] |= bit
		s.state = atKeyOrEnd
	} else {
		s.objects[word] &^= bit
		s.state = atValueOrEnd
	}
}

func (s *jsonScanner) pop() {
	s.depth--
	s.state = atComma
	if s.depth > 0 {
		return
	}
	s.state = atDone
	if !s.named {
		s.fail(contract.MissingModel)
	}
}

func (s *jsonScanner) literal(p []byte, i int) int {
	for ; i < len(p) && s.rest != ""; i++ {
		if p[i] != s.rest[0] {
			s.fail(contract.InvalidJSON)
			return i
		}
		s.rest = s.rest[1:]
	}
	if s.rest == "" {
		s.state = atComma
	}
	return i
}

// number reads on within a number; the byte that ends it is left to structure.
func (s *jsonScanner) number(p []byte, i int) int {
	for ; i < len(p); i++ {
		next := nextInNumber(s.state, p[i])
		if next == atStart {
			s.fail(contract.InvalidJSON)
			return i
		}
		s.state = next
		if next == atComma {
			return i
		}
	}
	return i
}

// nextInNumber is the state after c; atComma if the number ended before it, atStart
// if it must not end there.
func nextInNumber(state jsonState, c byte) jsonState {
	digit := '0' <= c && c <= '9'
	switch state {
	case inMinus:
		if c == '0' {
			return inZero
		}
		return orFail(digit, inInteger)
	case inPoint:
		return orFail(digit, inFraction)
	case inExponent:
		if c == '+' || c == '-' {
			return inExponentSign
		}
		return orFail(digit, inExponentDigits)
	case inExponentSign:
		return orFail(digit, inExponentDigits)
	}
	switch {
	case digit && state != inZero:
		return state // inInteger, inFraction, inExponentDigits
	case c == '.' && (state == inZero || state == inInteger):
		return inPoint
	case (c == 'e' || c == 'E') && state != inExponentDigits:
		return inExponent
	}
	return atComma // whatever c is, structure judges it
}

func orFail(ok bool, next jsonState) jsonState {
	if ok {
		return next
	}
	return atStart
}

const (
	everyByte = 0x0101010101010101
	highBits  = 0x80 * everyByte
)

// special marks, in the high bit of each byte of x, what ends plain string text: a
// quote, a backslash, a control character, or a byte beyond ASCII. The lowest mark
// is exact; a mark above it may be false (the subtractions borrow).
func special(x uint64) uint64 {
	return (x | (x - 0x20*everyByte) | ((x ^ '"'*everyByte) - everyByte) | ((x ^ '\\'*everyByte) - everyByte)) & highBits
}

// skipPlain returns where plain string text that starts at i ends. Nearly all bytes
// of an LLM request pass here, thirty-two at a time.
func skipPlain(p []byte, i int) int {
	for ; len(p)-i >= 32; i += 32 {
		w := p[i : i+32 : i+32]
		if special(binary.LittleEndian.Uint64(w))|special(binary.LittleEndian.Uint64(w[8:]))|
			special(binary.LittleEndian.Uint64(w[16:]))|special(binary.LittleEndian.Uint64(w[24:])) != 0 {
			break
		}
	}
	for ; len(p)-i >= 8; i += 8 {
		if m := special(binary.LittleEndian.Uint64(p[i:])); m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	for i < len(p) && 0x20 <= p[i] && p[i] < 0x80 && p[i] != '"' && p[i] != '\\' {
		i++
	}
	return i
}
