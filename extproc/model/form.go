package model

import (
	"bytes"

	"signalbox.dev/extproc/contract"
)

// Limits of a form. What a part says about itself is held until its header ends.
const (
	maxPartHeader = 8 << 10
	maxBoundary   = 70 // RFC 2046 §5.1.1
)

// formState is where in a multipart body the scanner is.
type formState uint8

const (
	inPreamble    formState = iota // before the first delimiter
	afterBoundary                  // "--" or the end of the line must follow
	afterDash                      // the second '-' of the last delimiter
	afterCR                        // the LF that ends a delimiter's line
	inHeader                       // of a part
	inSkipped                      // content that does not matter: a file, another field
	inModel                        // content of the field "model"
	atClosed                       // after the last delimiter
)

// lineBreak is what stands before the current line: a delimiter counts only after
// CRLF or at the very start; after anything else it is a trap (see formScanner).
type lineBreak uint8

const (
	breakNone lineBreak = iota // in the middle of a line
	breakCR
	breakCRLF
	breakOther // what some parsers take for one: a bare LF, the end of a part's header
)

// formScanner reads one multipart/form-data body (RFC 7578, RFC 2046 §5.1) chunk by
// chunk and remembers nothing of it but the value of its field "model". Content of
// any size is skipped in place.
//
// Form parsers differ: some take a bare LF or CR for a line end, some let white space
// follow a delimiter, some join folded lines. What they could read differently is
// refused, so that the model that routes is the model that is served.
type formScanner struct {
	code  contract.ErrorCode // of the first error; the scanner stays there
	state formState
	line  lineBreak
	at    int // bytes of delimiter matched since the line began; -1: none will

	delimiter []byte // "--" and the boundary
	header    []byte // of the current part, as far as read

	again   bool // the current model field is not the first one …
	differs bool // … and is not a prefix of it
	breaks  int  // CR and LF after the value: exactly those of a delimiter may follow

	name    [maxModel]byte
	nameLen int
	valLen  int // of the current model field
	named   bool
	read    int64 // bytes before the current chunk
	modelAt int64 // bytes up to the delimiter after the first model field
}

// reset prepares for a body with this boundary and keeps the buffers.
func (s *formScanner) reset(boundary string) {
	*s = formScanner{delimiter: append(append(s.delimiter[:0], "--"...), boundary...), header: s.header[:0], line: breakCRLF}
}

func (s *formScanner) done() bool { return s.state == atClosed }

func (s *formScanner) model() []byte {
	if !s.named {
		return nil
	}
	return s.name[:s.nameLen]
}

func (s *formScanner) modelOffset() int64 { return s.modelAt }

// end is the verdict on a body that is over before its last delimiter.
func (s *formScanner) end() contract.ErrorCode {
	if s.code == "" && !s.done() {
		s.fail(contract.InvalidMultipart)
	}
	return s.code
}

// feed reads the next chunk. What follows the last delimiter does not matter.
func (s *formScanner) feed(p []byte) contract.ErrorCode {
	for i := 0; i < len(p) && s.code == "" && s.state != atClosed; {
		switch s.state {
		case inHeader:
			i = s.headerBytes(p, i)
		case inPreamble, inSkipped, inModel:
			i = s.content(p, i)
		default:
			s.afterDelimiter(p[i])
			i++
		}
	}
	s.read += int64(len(p))
	return s.code
}

func (s *formScanner) fail(code contract.ErrorCode) {
	if s.code == "" {
		s.code = code
	}
}

// content reads on until a delimiter is complete or the chunk is over. No byte of a
// delimiter is a line break, so a failed match never hides the start of another.
func (s *formScanner) content(p []byte, i int) int {
	for i < len(p) && s.code == "" {
		if s.line == breakNone {
			i = s.restOfLine(p, i)
			continue
		}
		c := p[i]
		if c == s.delimiter[s.at] {
			i++
			if s.at++; s.at == len(s.delimiter) {
				s.endPart(i)
				return i
			}
			continue
		}
		if s.at > 0 { // not a delimiter after all: those bytes were content
			s.putAll(s.delimiter[:s.at])
			s.at, s.line = 0, breakNone
			continue
		}
		i++
		if c == '\r' || c == '\n' {
			s.breakLine(c)
		} else {
			s.put(c)
			s.line = breakNone
		}
	}
	return i
}

func (s *formScanner) breakLine(c byte) {
	switch {
	case c == '\r':
		s.line = breakCR
	case s.line == breakCR:
		s.line = breakCRLF
	default:
		s.line = breakOther
	}
	if s.state != inModel {
		return
	}
	if s.breaks++; s.breaks > len("\r\n") {
		s.fail(contract.InvalidModel)
	}
}

// restOfLine skips to the next line break.
func (s *formScanner) restOfLine(p []byte, i int) int {
	n := indexLineBreak(p[i:])
	if n < 0 {
		s.putAll(p[i:])
		return len(p)
	}
	s.putAll(p[i : i+n])
	s.breakLine(p[i+n])
	return i + n + 1
}

// indexLineBreak is the offset of the first CR or LF. It looks at windows, so that
// content with many of one and none of the other stays linear.
func indexLineBreak(p []byte) int {
	const window = 512
	for at := 0; at < len(p); at += window {
		w := p[at:min(at+window, len(p))]
		lf := bytes.IndexByte(w, '\n')
		if lf >= 0 {
			w = w[:lf]
		}
		if cr := bytes.IndexByte(w, '\r'); cr >= 0 {
			return at + cr
		}
		if lf >= 0 {
			return at + lf
		}
	}
	return -1
}

func (s *formScanner) putAll(p []byte) {
	if s.state != inModel {
		return
	}
	for _, c := range p {
		s.put(c)
	}
}

// put takes one byte of content.
func (s *formScanner) put(c byte) {
	if s.state != inModel || s.code != "" {
		return
	}
	if s.breaks > 0 || s.valLen == maxModel || !legalInModel(c) {
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

// endPart takes a complete delimiter; i is the offset after it in the chunk.
func (s *formScanner) endPart(i int) {
	if s.line != breakCRLF {
		s.fail(contract.InvalidMultipart)
		return
	}
	if s.state == inModel {
		s.endModel(i)
	}
	s.state, s.at = afterBoundary, 0
}

func (s *formScanner) endModel(i int) {
	switch {
	case s.valLen == 0:
		s.fail(contract.InvalidModel)
	case s.again && (s.differs || s.valLen != s.nameLen):
		s.fail(contract.DuplicateModel)
	case !s.again:
		s.named, s.nameLen, s.modelAt = true, s.valLen, s.read+int64(i)
	}
}

// afterDelimiter reads what follows a delimiter: CRLF and a part, or "--". White
// space there ("transport padding") is for mail; form parsers disagree on it.
func (s *formScanner) afterDelimiter(c byte) {
	switch {
	case s.state == afterBoundary && c == '\r':
		s.state = afterCR
	case s.state == afterBoundary && c == '-':
		s.state = afterDash
	case s.state == afterCR && c == '\n':
		s.state, s.header = inHeader, append(s.header[:0], "\r\n"...)
	case s.state == afterDash && c == '-':
		s.state = atClosed
		if !s.named {
			s.fail(contract.MissingModel)
		}
	default:
		s.fail(contract.InvalidMultipart)
	}
}

var endOfHeader = []byte("\r\n\r\n")

// headerBytes collects the header of a part up to the empty line.
func (s *formScanner) headerBytes(p []byte, i int) int {
	for ; i < len(p); i++ {
		if len(s.header) == maxPartHeader {
			s.fail(contract.InvalidMultipart)
			return i
		}
		if s.header = append(s.header, p[i]); p[i] == '\n' && bytes.HasSuffix(s.header, endOfHeader) {
			s.beginContent()
			return i + 1
		}
	}
	return i
}

func (s *formScanner) beginContent() {
	field, ok := parsePartHeader(bytes.TrimSuffix(s.header[len("\r\n"):], endOfHeader))
	switch {
	case !ok:
		s.fail(contract.InvalidMultipart)
	case field.name != modelKey:
		s.state = inSkipped
	case field.file:
		s.fail(contract.InvalidModel) // a file called "model": some servers read it, some do not
	default:
		s.state, s.again, s.differs, s.breaks, s.valLen = inModel, s.named, false, 0, 0
	}
	s.line, s.at = breakOther, 0
}
