package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	sigsyaml "sigs.k8s.io/yaml"
)

// chunk is the text between two document markers and the line it starts on, from 1.
type chunk struct {
	text []byte
	line int
}

// document is one parsed chunk. The value comes from the YAML library that kubectl
// and the API server use (YAML 1.1: `yes` is a bool), the node from one that keeps
// positions.
type document struct {
	value any
	node  *yaml.Node // nil if only the other library could read the text
	line  int
}

type syntaxError struct {
	line, column int
	message      string
}

// split cuts a text at its document markers, before they are parsed, so that one
// broken document leaves the others readable. A line that starts with "---" is a
// marker wherever it stands, in block scalars too.
func split(data []byte) []chunk {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var chunks []chunk
	start, line, offset, first := 0, 1, 0, 1
	cut := func(nextStart, nextLine int) {
		chunks = append(chunks, chunk{data[start:offset], first})
		start, first = nextStart, nextLine
	}
	for text := range bytes.Lines(data) {
		switch {
		case isMarker(text, "---") && !prologue(data[start:offset]):
			cut(offset, line)
		case isMarker(text, "..."):
			cut(offset+len(text), line+1)
		}
		line++
		offset += len(text)
	}
	return append(chunks, chunk{data[start:offset], first})
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || bytes.ContainsRune([]byte(" \t\r\n"), rune(rest[0])))
}

// prologue reports whether text can only stand in front of a "---": comments and
// directives such as %YAML.
func prologue(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// parse returns nil, nil for a chunk that holds nothing.
func (c chunk) parse() (*document, *syntaxError) {
	d := &document{line: c.line}
	var root yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(c.text))
	err := decoder.Decode(&root)
	switch {
	case err == io.EOF:
		return nil, nil
	case err == nil && len(root.Content) == 1:
		d.node = root.Content[0]
		var second yaml.Node
		if err := decoder.Decode(&second); err != io.EOF {
			return nil, c.syntaxError(cmp.Or(err, errors.New("text after the end of the document; put --- before it")), &second)
		}
	case json.Valid(c.text): // JSON that is not YAML: escaped surrogate pairs
	default:
		return nil, c.syntaxError(err, &root)
	}
	if d.value, err = decode(c.text); err != nil {
		return nil, c.syntaxError(err, &root)
	}
	if d.value == nil {
		return nil, nil
	}
	return d, nil
}

// decode gives the values as the API server sees them: maps, slices, strings,
// bools, int64 and float64.
func decode(text []byte) (value any, err error) {
	if !json.Valid(text) {
		if text, err = sigsyaml.YAMLToJSON(text); err != nil {
			return nil, err
		}
	}
	err = utiljson.Unmarshal(text, &value)
	return value, err
}

var yamlErrorLine = regexp.MustCompile(`^(?:error converting YAML to JSON: )?(?:yaml: )?(?:unmarshal errors:\n\s*)?(?:line (\d+): )?((?s).*)$`)

// syntaxError places a parser's error. The YAML parsers say only the line; the
// column is that of the line's first character that is not a space.
func (c chunk) syntaxError(err error, at *yaml.Node) *syntaxError {
	message, line := "empty", max(at.Line, 1)
	if err != nil {
		m := yamlErrorLine.FindStringSubmatch(err.Error())
		message = m[2]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	lines := strings.Split(string(c.text), "\n")
	line = min(line, len(lines))
	text := lines[line-1]
	column := len(text) - len(strings.TrimLeft(text, " \t")) + 1
	return &syntaxError{line: c.line + line - 1, column: column, message: strings.ReplaceAll(message, "\n", "; ")}
}

// duplicates calls found for every key that stands twice in one mapping, with the
// path of the field and both nodes. Aliases are not followed: what they name is
// visited where it stands.
func duplicates(n *yaml.Node, path string, found func(path string, first, second *yaml.Node)) {
	switch n.Kind {
	case yaml.MappingNode:
		seen := map[string]*yaml.Node{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, at := n.Content[i], n.Content[i].Value
			if path != "" {
				at = path + "." + at
			}
			if first := seen[key.Value]; first != nil && key.Tag != "!!merge" {
				found(at, first, key)
			}
			seen[key.Value] = key
			duplicates(n.Content[i+1], at, found)
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			duplicates(c, fmt.Sprintf("%s[%d]", path, i), found)
		}
	}
}
