package model

import (
	"bytes"
	"mime"
	"net/url"
	"strings"
)

// partField is what a part's header says that matters.
type partField struct {
	name string
	file bool // it has a file name
}

// parsePartHeader reads the header of one part, without its last CRLFs. It refuses
// what form parsers read differently: folded lines, bare CR or LF, two dispositions,
// encoded content (RFC 7578 §4.7 deprecates it), a name in RFC 5987 form (§4.2
// forbids it) or one that escapes spell "model".
func parsePartHeader(header []byte) (f partField, ok bool) {
	found := false
	for line := range bytes.SplitSeq(header, []byte("\r\n")) {
		key, value, isField := bytes.Cut(line, []byte(":"))
		if !isField || !isToken(key) || bytes.ContainsAny(value, "\r\n\x00") {
			return f, false
		}
		switch strings.ToLower(string(key)) {
		case "content-disposition":
			if found {
				return f, false
			}
			found = true
			if f, ok = parseDisposition(string(value)); !ok {
				return f, false
			}
		case "content-transfer-encoding":
			switch strings.ToLower(strings.Trim(string(value), " \t")) {
			case "7bit", "8bit", "binary":
			default:
				return f, false
			}
		}
	}
	return f, found
}

// parseDisposition reads `form-data; name="…"; filename="…"`.
func parseDisposition(value string) (f partField, ok bool) {
	kind, rest, _ := strings.Cut(value, ";")
	if !strings.EqualFold(strings.Trim(kind, " \t"), "form-data") {
		return f, false
	}
	named := false
	for rest = strings.Trim(rest, " \t"); rest != ""; {
		var key, raw string
		if key, raw, rest, ok = nextParameter(rest); !ok {
			return f, false
		}
		switch strings.ToLower(key) {
		case "name":
			if named || disguised(raw) {
				return f, false
			}
			f.name, named = raw, true
		case "name*":
			return f, false
		case "filename", "filename*":
			f.file = true
		}
	}
	return f, named
}

// nextParameter reads `key=token` or `key="quoted"`, raw, and the ';' after it.
func nextParameter(s string) (key, raw, rest string, ok bool) {
	key, s, ok = strings.Cut(s, "=")
	if !ok || !isToken([]byte(key)) {
		return "", "", "", false
	}
	if strings.HasPrefix(s, `"`) {
		end := closingQuote(s)
		if end < 0 {
			return "", "", "", false
		}
		raw, s = s[1:end], s[end+1:]
	} else {
		end := strings.IndexAny(s, "; \t")
		if end < 0 {
			end = len(s)
		}
		if raw, s = s[:end], s[end:]; raw == "" || strings.Contains(raw, `"`) {
			return "", "", "", false
		}
	}
	s = strings.TrimLeft(s, " \t")
	if s == "" {
		return key, raw, "", true
	}
	if s[0] != ';' {
		return "", "", "", false
	}
	return key, raw, strings.TrimLeft(s[1:], " \t"), true
}

// closingQuote is where the quoted string that starts s ends; -1 if it does not.
func closingQuote(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

// disguised says whether some parser, but not every one, reads raw as "model":
// some undo backslashes, some percent-encoding.
func disguised(raw string) bool {
	if raw == modelKey {
		return false
	}
	plain := strings.ReplaceAll(raw, `\`, "")
	if decoded, err := url.PathUnescape(plain); err == nil {
		plain = decoded
	}
	return strings.Trim(plain, " \t") == modelKey
}

// isToken is RFC 9110 §5.6.2.
func isToken(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return len(b) > 0
}

// parseBoundary returns the boundary of a multipart/form-data content type. It wants
// the characters of RFC 2046 §5.1.1, once and plainly.
func parseBoundary(contentType string) (string, bool) {
	_, params, err := mime.ParseMediaType(contentType)
	b := params["boundary"]
	if err != nil || b == "" || len(b) > maxBoundary || strings.HasSuffix(b, " ") ||
		strings.Contains(strings.ToLower(contentType), "boundary*") {
		return "", false
	}
	for i := range len(b) {
		c := b[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
		if !letter && !strings.ContainsRune(" '()+_,-./:=?", rune(c)) {
			return "", false
		}
	}
	return b, true
}
