package model

import (
	"bytes"
	"encoding/json"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"strings"
	"testing"
	"time"

	"signalbox.dev/extproc/contract"
)

// strictModel reads the model with encoding/json/jsontext, the strictest parser at
// hand, and the rules of the extractor; ok is false if the body must be refused.
func strictModel(body []byte) (model string, ok bool) {
	d := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true))
	if d.PeekKind() != '{' {
		return "", false
	}
	seen, key := false, false
	for {
		tok, err := d.ReadToken()
		if err != nil || d.StackDepth() > maxDepth {
			return "", false
		}
		if d.StackDepth() == 0 {
			break
		}
		kind, length := d.StackIndex(1)
		if key { // the token is the value of "model"
			if d.StackDepth() != 1 || tok.Kind() != '"' || seen && tok.String() != model || !legalModel(tok.String()) {
				return "", false
			}
			model, seen = tok.String(), true
		}
		key = kind == '{' && d.StackDepth() == 1 && length%2 == 1 && tok.Kind() == '"' && tok.String() == modelKey
	}
	_, err := d.ReadToken()
	return model, seen && errors.Is(err, io.EOF)
}

func legalModel(s string) bool {
	return s != "" && len(s) <= maxModel && strings.IndexFunc(s, func(r rune) bool { return r > 0x7e || !legalInModel(byte(r)) }) < 0
}

func addCorpus(f *testing.F) {
	for _, c := range corpus(f) {
		f.Add(c.body)
	}
}

// FuzzExtract: the scanner accepts what the strict parser accepts, nothing else, and
// reads the same model in it, which the lax parser (the last key wins) reads too.
func FuzzExtract(f *testing.F) {
	addCorpus(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		got, code := extract("application/json", body)
		want, ok := strictModel(body)
		if (code == "") != ok || ok && got != want {
			t.Fatalf("scanner: %q, error %q; strict parser: %q, accepted %v", got, code, want, ok)
		}
		if !ok {
			return
		}
		var lax map[string]any
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber() // range does not matter
		if err := d.Decode(&lax); err != nil || lax[modelKey] != got {
			t.Fatalf("scanner: %q; encoding/json: %v, %v", got, lax[modelKey], err)
		}
	})
}

// FuzzSplit: wherever a body is cut, the verdict is the same, for JSON and forms.
func FuzzSplit(f *testing.F) {
	for _, c := range corpus(f) {
		f.Add(c.body, c.contentType, uint16(3), uint16(40))
	}
	f.Fuzz(func(t *testing.T, body []byte, contentType string, a, b uint16) {
		model, code := extract(contentType, body)
		i, j := min(int(a), len(body)), min(int(b), len(body))
		for _, chunks := range [][][]byte{{body[:min(i, j)], nil, body[min(i, j):max(i, j)], body[max(i, j):]}, bytewise(body)} {
			if m, c := extract(contentType, chunks...); m != model || c != code {
				t.Fatalf("whole: %q, error %q; in %d chunks: %q, error %q", model, code, len(chunks), m, c)
			}
		}
	})
}

// FuzzForm: what the scanner accepts, mime/multipart reads as the same model.
func FuzzForm(f *testing.F) {
	const boundary = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
	addCorpus(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		model, code := extract("multipart/form-data; boundary="+boundary, body)
		if code != "" {
			return
		}
		found := 0
		for r := multipart.NewReader(bytes.NewReader(body), boundary); ; {
			p, err := r.NextRawPart()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return // stricter than the scanner, say in the length of the preamble's lines
			}
			value, err := io.ReadAll(p)
			if err != nil {
				t.Fatalf("scanner: %q; mime/multipart: %v", model, err)
			}
			if p.FormName() != modelKey || p.FileName() != "" {
				continue
			}
			if found++; string(value) != model {
				t.Fatalf("scanner: %q; mime/multipart: %q", model, value)
			}
		}
		if found == 0 {
			t.Fatalf("scanner: %q; mime/multipart: none", model)
		}
	})
}

// FuzzHeaderValue: any string as a model, in any JSON spelling, is read as it is or
// refused as a model; what is accepted is legal in a header.
func FuzzHeaderValue(f *testing.F) {
	for _, s := range []string{"llama", "a/b:c", "", " ", "a,b", "\r\n", "é", "\x00", `\"`, strings.Repeat("m", 257)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		quoted, err := json.Marshal(s)
		if err != nil || !json.Valid(quoted) {
			t.Fatal(quoted, err)
		}
		var escaped strings.Builder
		for _, c := range []byte(s) {
			fmt.Fprintf(&escaped, `\u%04x`, c)
		}
		for _, spelling := range []string{string(quoted), `"` + escaped.String() + `"`} {
			got, code := extract("", []byte(`{"model":`+spelling+`}`))
			switch {
			case legalModel(s) && (code != "" || got != s):
				t.Fatalf("%s: %q, error %q", spelling, got, code)
			case !legalModel(s) && code != contract.InvalidModel:
				t.Fatalf("%s: %q, error %q; want %s", spelling, got, code, contract.InvalidModel)
			}
		}
	})
}

// TestFlat: no body makes the scanners allocate, however long it is, and bytes that
// come one by one take time in proportion to their number.
func TestFlat(t *testing.T) {
	jsonBody := chatBody(1<<20, false)
	formHead := []byte("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n")
	pieces := map[string][]byte{"text": jsonBody[20:1020], "line breaks": bytes.Repeat([]byte("\r\n\r\r\n--"), 500)}
	var form formScanner
	form.reset("b")
	form.feed(formHead)
	var text jsonScanner
	text.feed([]byte(`{"prompt":"`))
	for name, piece := range pieces {
		if n := testing.AllocsPerRun(2, func() {
			for range 4 << 10 {
				form.feed(piece)
			}
		}); n != 0 {
			t.Errorf("form, 4 MiB of %s: %v allocations", name, n)
		}
	}
	plain := bytes.Repeat([]byte(`tex\u00e9t\n`), 100)
	if n := testing.AllocsPerRun(2, func() {
		for range 8 << 10 {
			text.feed(plain)
		}
	}); n != 0 || text.code != "" {
		t.Errorf("JSON, 8 MiB: %v allocations, error %q", n, text.code)
	}
	start := time.Now()
	for i := range 1 << 20 {
		text.feed(plain[i%len(plain):][:1])
	}
	if took := time.Since(start); text.code != "" || took > 20*time.Second { // it takes 20 ms; hours, were it quadratic
		t.Errorf("JSON, 1 MiB byte by byte: %v, error %q", took, text.code)
	}
}

// chatBody is a chat request of about n bytes.
func chatBody(n int, first bool) []byte {
	const turn = `{"role":"user","content":"Explain the following text in detail, then \"quote\" it back.\nLine two of the prompt has some unicode é and more plain text, to be as long as chat turns are."},`
	const model = `"model":"meta-llama/Llama-3.1-8B-Instruct-lora-7"`
	var b bytes.Buffer
	b.WriteString("{")
	if first {
		b.WriteString(model + ",")
	}
	b.WriteString(`"messages":[`)
	for b.Len() < n-200 {
		b.WriteString(turn)
	}
	b.WriteString(`{"role":"user","content":"hi"}],"temperature":0.7,"stream":true`)
	if !first {
		b.WriteString("," + model)
	}
	b.WriteString("}")
	return b.Bytes()
}

func BenchmarkScan(b *testing.B) {
	image := []byte(`{"model":"llama","image":"data:image/png;base64,` + strings.Repeat("iVBORw0KGgoAAAANSUhEUg/+", 1<<20/24) + `"}`)
	han := []byte(`{"model":"llama","prompt":"` + strings.Repeat("世界您好，请解释以下内容。", 1<<20/39) + `"}`)
	bodies := map[string][]byte{"image/1MB": image, "han/1MB": han}
	for name, n := range map[string]int{"300B": 300, "4KB": 4 << 10, "32KB": 32 << 10, "220KB": 220 << 10, "1MB": 1 << 20} {
		bodies["first/"+name], bodies["last/"+name] = chatBody(n, true), chatBody(n, false)
	}
	for name, body := range bodies {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			var s jsonScanner
			for b.Loop() {
				s.reset()
				for rest := body; len(rest) > 0; {
					n := min(len(rest), 16<<10)
					s.feed(rest[:n])
					rest = rest[n:]
				}
				if !s.done() || s.code != "" {
					b.Fatal(s.code)
				}
			}
		})
	}
}
