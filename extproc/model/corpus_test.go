package model

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"signalbox.dev/extproc/contract"
)

const corpusDir = "../../testdata/bodies"

// corpusBody is one line of the corpus's index.
type corpusBody struct {
	file, contentType string
	model             string             // wanted …
	code              contract.ErrorCode // … or this
	body              []byte
}

func corpus(tb testing.TB) []corpusBody {
	tb.Helper()
	index, err := os.Open(filepath.Join(corpusDir, "index.tsv"))
	if err != nil {
		tb.Fatal(err)
	}
	defer index.Close()
	var out []corpusBody
	for lines := bufio.NewScanner(index); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		f := strings.Split(lines.Text(), "\t")
		if len(f) < 3 {
			tb.Fatalf("index.tsv: %q has %d columns; want at least 3", lines.Text(), len(f))
		}
		c := corpusBody{file: f[0], contentType: f[1]}
		kind, value, _ := strings.Cut(f[2], "=")
		switch kind {
		case "model":
			c.model = value
		case "error":
			c.code = contract.ErrorCode(value)
		default:
			tb.Fatalf("index.tsv: %s: verdict %q; want model=… or error=…", c.file, f[2])
		}
		if c.body, err = os.ReadFile(filepath.Join(corpusDir, c.file)); err != nil {
			tb.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// extract is a session without gRPC: it judges headers and chunks the same way, but
// reads every chunk, also those after the end of the object.
func extract(contentType string, chunks ...[]byte) (string, contract.ErrorCode) {
	s := &session{holdLimit: MaxHoldLimit}
	s.request.method, s.request.contentType = []byte("POST"), []byte(contentType)
	if res, answered := s.begin(); answered {
		return "", contract.ErrorCode(res)
	}
	for _, c := range chunks {
		s.request.body, s.total = [][]byte{c}, s.total+len(c)
		if code := s.scan(); code != "" {
			return "", code
		}
	}
	s.request.body, s.request.end = nil, true
	code := s.scan()
	return string(s.scanner.model()), code
}

func TestCorpus(t *testing.T) {
	listed := map[string]bool{"index.tsv": true, "README.md": true, ".gitattributes": true}
	for _, c := range corpus(t) {
		listed[c.file] = true
		t.Run(c.file, func(t *testing.T) {
			check := func(how string, chunks ...[]byte) {
				t.Helper()
				model, code := extract(c.contentType, chunks...)
				if code != c.code || code == "" && model != c.model {
					t.Fatalf("%s: got model %q, error %q; want model %q, error %q", how, model, code, c.model, c.code)
				}
			}
			check("whole", c.body)
			check("byte by byte, with empty chunks", bytewise(c.body)...)
			for i := range c.body {
				check("split in two", c.body[:i], c.body[i:])
			}
		})
	}
	files, err := os.ReadDir(corpusDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !listed[f.Name()] {
			t.Errorf("%s is not in index.tsv", f.Name())
		}
	}
}

func bytewise(b []byte) [][]byte {
	var out [][]byte
	for i := range b {
		out = append(out, nil, bytes.Clone(b[i:i+1]))
	}
	return append(out, nil)
}
