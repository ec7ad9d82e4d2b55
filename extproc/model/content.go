package model

import (
	"bytes"
	"strings"
)

// contentKind is how a body is read.
type contentKind uint8

const (
	kindOther contentKind = iota
	kindJSON
	kindForm
)

// hasBody says whether content of a request with this method means anything
// (RFC 9110 §9.3). Of the others no body is read, even if there is one.
func hasBody(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "DELETE", "CONNECT", "OPTIONS", "TRACE":
		return false
	}
	return true
}

// kindOf judges a content type. Clients that send none mean JSON.
func kindOf(contentType []byte) contentKind {
	mediaType, _, _ := bytes.Cut(contentType, []byte(";"))
	mediaType = bytes.Trim(mediaType, " \t")
	switch {
	case len(contentType) == 0, bytes.EqualFold(mediaType, []byte("application/json")):
		return kindJSON
	case bytes.EqualFold(mediaType, []byte("multipart/form-data")):
		return kindForm
	}
	name := strings.ToLower(string(mediaType))
	if kind, _, ok := strings.Cut(name, "/"); ok && isToken([]byte(kind)) && strings.HasSuffix(name, "+json") &&
		isToken([]byte(name[len(kind)+1:])) {
		return kindJSON
	}
	return kindOther
}

// identity says whether a content-encoding leaves the content as it is.
func identity(encoding []byte) bool {
	if len(encoding) == 0 {
		return true
	}
	for coding := range bytes.SplitSeq(encoding, []byte(",")) {
		if coding = bytes.Trim(coding, " \t"); len(coding) > 0 && !bytes.EqualFold(coding, []byte("identity")) {
			return false
		}
	}
	return true
}
