package manifest

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// place is a node and where a reader looks for it: a field's key, or a list's entry.
type place struct {
	value, mark *yaml.Node
}

// position returns the line and column of a node of a document that starts on line
// first of its file. A node that is not known is the document's start.
func position(mark *yaml.Node, first int) (line, column int) {
	if mark == nil || mark.Line == 0 {
		return first, 1
	}
	return first + mark.Line - 1, mark.Column
}

// find returns the node to point at for a field path as the API server writes it:
// spec.rules[0].matches[1].path.value, metadata.annotations[example.com/x]. Where
// the field is absent, it is the innermost field on the way that is there.
func find(root *yaml.Node, path string) *yaml.Node {
	at := place{root, root}
	for path != "" && at.value != nil {
		next, rest, ok := at.step(path)
		if !ok {
			break
		}
		at, path = next, rest
	}
	return at.mark
}

// step goes one field or index down. A key may itself hold dots (labels, ConfigMap
// keys), so the longest key that is there wins.
func (p place) step(path string) (next place, rest string, ok bool) {
	n := resolve(p.value)
	if n == nil {
		return place{}, "", false
	}
	if inner, isBracket := strings.CutPrefix(path, "["); isBracket {
		key, rest, ok := strings.Cut(inner, "]")
		if !ok {
			return place{}, "", false
		}
		next, ok := childOf(n, key)
		return next, strings.TrimPrefix(rest, "."), ok
	}
	for end := len(path); end > 0; end = strings.LastIndexAny(path[:end], ".[") {
		if next, ok := childOf(n, path[:end]); ok {
			return next, strings.TrimPrefix(path[end:], "."), true
		}
	}
	return place{}, "", false
}

func childOf(n *yaml.Node, key string) (place, bool) {
	switch n.Kind {
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(n.Content) {
			return place{n.Content[i], n.Content[i]}, true
		}
	case yaml.MappingNode:
		var merged place
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			if k.Value == key {
				return place{v, k}, true
			}
			if m := resolve(v); k.Tag == "!!merge" && m != nil && m != n && m.Kind == yaml.MappingNode && merged.value == nil {
				merged, _ = plainChild(m, key)
			}
		}
		return merged, merged.value != nil
	}
	return place{}, false
}

// plainChild looks a key up without following merges: one level of them is enough
// for a position, and aliases may form cycles.
func plainChild(n *yaml.Node, key string) (place, bool) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return place{n.Content[i+1], n.Content[i]}, true
		}
	}
	return place{}, false
}

func resolve(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}
