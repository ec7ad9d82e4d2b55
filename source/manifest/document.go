package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
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
	case errors.Is(err, io.EOF):
		return nil, nil
	case err == nil && len(root.Content) == 1:
		d.node = root.Content[0]
		if err := decoder.Decode(&yaml.Node{}); err == nil {
			return nil, c.syntaxError(errors.New("a second document: put --- between the two"))
		} else if !errors.Is(err, io.EOF) {
			return nil, c.syntaxError(err)
		}
	case json.Valid(c.text): // JSON that is not YAML: escaped surrogate pairs
	default:
		return nil, c.syntaxError(err)
	}
	if d.value, err = decode(c.text); err != nil {
		return nil, c.syntaxError(err)
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

var yamlError = regexp.MustCompile(`^(?:error converting YAML to JSON: )?(?:yaml: )?(?:unmarshal errors:\n\s*)?(?:line \d+: )?((?s).*)$`)

// syntaxError places a parser's error on the first line that cannot be read, at its
// first character that is not a space. The parsers' own line is not used: it is the
// start of the block around the error, or off by one. What only the other library
// refuses (NaN, a mapping as a key) is placed at the start of the document.
func (c chunk) syntaxError(err error) *syntaxError {
	lines := bytes.SplitAfter(c.text, []byte("\n"))
	at := 0
	if !isYAML(lines) {
		at = min(goodLines(lines), len(lines)-1)
	}
	text := lines[at]
	column := len(text) - len(bytes.TrimLeft(text, " \t")) + 1
	message := yamlError.FindStringSubmatch(err.Error())[1]
	return &syntaxError{line: c.line + at, column: column, message: strings.ReplaceAll(message, "\n", "; ")}
}

// goodLines returns how many lines from the start are YAML. That is not the same as
// the first line that makes it fail, since what goes over several lines (a quoted
// string, a flow mapping) fails until it is closed; so it is searched by halves, and
// again behind each such thing, within bounds that keep a long document cheap.
func goodLines(lines [][]byte) (good int) {
	const things, longest = 10, 30 // how many of them, how many lines each
	for range things {
		bad := len(lines)
		for good+1 < bad {
			if middle := (good + bad) / 2; isYAML(lines[:middle]) {
				good = middle
			} else {
				bad = middle
			}
		}
		closed := false
		for end := bad + 1; end < min(len(lines), bad+longest) && !closed; end++ {
			if closed = isYAML(lines[:end]); closed {
				good = end
			}
		}
		if !closed {
			break
		}
	}
	return good
}

func isYAML(lines [][]byte) bool {
	var n yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(bytes.Join(lines, nil)))
	err := decoder.Decode(&n)
	if err == nil {
		err = decoder.Decode(&n)
	}
	return errors.Is(err, io.EOF)
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
