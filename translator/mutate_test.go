package translator_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"signalbox.dev/source"
)

// mutator changes objects in ways that users do, and in ways that nobody does: what an
// API server with older CRDs, or none, lets through.
type mutator struct {
	// versions are the objects of all goldens that have one and the same ref.
	versions map[source.Ref][]source.Object
	// values are what stands at a place of a kind of object in some golden.
	values map[string][]any
}

// oddities are strings that stand somewhere in real manifests by mistake or malice.
var oddities = []string{"", " ", "*", "/", "a/b", "*.example.com", "*.*.com", "A.Example.COM", "a|b", "%", "%REQ(x)%", "é", "\x00", "[", "0", "true",
	"x-gateway-model-name", "org/base", "Service", "InferencePool", "default", "gw", strings.Repeat("x", 300),
	"/", "/a//b", "/%2e", `/\1`, "/a?b", "/a b", "/ä", "host", ":path", "x_y", "line\nbreak", "\"", "`", "1h", "-1s", "PT1H",
	"(?i)x", "(?=x)", "[a-z]{1,50}", "(a|ab)*(c|bcd)*", "x{1000}", `\d+\pL`, `\x{100}`, `\C`, `\Q[`, "(?P<n>a)", "a**", ".*", "^$", "[[:word:]]", "é+"}

func newMutator(goldens []*golden) *mutator {
	m := &mutator{versions: map[source.Ref][]source.Object{}, values: map[string][]any{}}
	for _, g := range goldens {
		for _, o := range g.objects {
			ref := source.RefOf(o)
			m.versions[ref] = append(m.versions[ref], o)
			collect(string(ref.Kind), tree(o), m.values)
		}
	}
	return m
}

func tree(o source.Object) map[string]any {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}

// collect adds every value inside v to values, by its path without indexes.
func collect(path string, v any, values map[string][]any) {
	values[path] = append(values[path], v)
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			collect(path+"."+k, x, values)
		}
	case []any:
		for _, x := range v {
			collect(path+"[]", x, values)
		}
	}
}

// mutate returns a changed copy of the object, with the same ref.
func (m *mutator) mutate(t *rapid.T, o source.Object) source.Object {
	ref := source.RefOf(o)
	if len(m.versions[ref]) > 1 && rapid.IntRange(0, 3).Draw(t, "version") == 0 {
		return rapid.SampledFrom(m.versions[ref]).Draw(t, "other version")
	}
	root := tree(o)
	for range rapid.IntRange(1, 3).Draw(t, "edits") {
		m.edit(t, string(ref.Kind), root)
	}
	metadata, _ := root["metadata"].(map[string]any)
	if metadata == nil {
		return o
	}
	metadata["name"] = ref.Name
	if delete(metadata, "namespace"); ref.Namespace != "" {
		metadata["namespace"] = ref.Namespace
	}
	b, err := json.Marshal(root)
	if err != nil {
		panic(err)
	}
	i := slices.IndexFunc(source.Kinds, func(k source.KindInfo) bool { return k.Kind == ref.Kind })
	out := source.Kinds[i].New()
	if json.Unmarshal(b, out) != nil {
		return o // of no type that could have been read
	}
	return out
}

// spot is a value inside an object and how to replace it.
type spot struct {
	path  string
	value any
	set   func(any)
	drop  func()
}

// edit changes one value somewhere in the tree.
func (m *mutator) edit(t *rapid.T, kind string, root map[string]any) {
	var spots []spot
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				if p := path + "." + k; p == kind+".kind" || p == kind+".apiVersion" || p == kind+".status" && kind != "Pod" && kind != "Service" {
					continue // says nothing to the translator
				}
				spots = append(spots, spot{path + "." + k, v[k], func(x any) { v[k] = x }, func() { delete(v, k) }})
				walk(path+"."+k, v[k])
			}
		case []any:
			for i := range v {
				spots = append(spots, spot{path + "[]", v[i], func(x any) { v[i] = x }, func() { v[i] = v[0] }})
				walk(path+"[]", v[i])
			}
		}
	}
	walk(kind, root)
	if len(spots) == 0 {
		return
	}
	s := rapid.SampledFrom(spots).Draw(t, "spot")
	switch rapid.IntRange(0, 4).Draw(t, "edit") {
	case 0:
		s.drop()
	case 1, 2:
		var v any // a copy: the values are shared
		if err := json.Unmarshal(mustJSON(rapid.SampledFrom(m.values[s.path]).Draw(t, "value")), &v); err != nil {
			t.Fatal(err)
		}
		s.set(v)
	default:
		s.set(odd(t, s.value))
	}
}

// odd returns a value of the type of v that v is not.
func odd(t *rapid.T, v any) any {
	switch v := v.(type) {
	case string:
		return rapid.SampledFrom(oddities).Draw(t, "text")
	case float64:
		return rapid.SampledFrom([]float64{0, 1, 80, 443, 8000, 65535, 65536, -1, 1e9}).Draw(t, "number")
	case bool:
		return !v
	case []any:
		if len(v) > 0 && rapid.Bool().Draw(t, "twice") {
			return append(slices.Clone(v), v...)
		}
		return []any{}
	}
	return map[string]any{}
}

func TestMutator(t *testing.T) {
	m := newMutator(goldens(t))
	changed, tried := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		o := rapid.SampledFrom(m.versions[rapid.SampledFrom(sortedRefs(m.versions)).Draw(t, "ref")]).Draw(t, "object")
		before := tree(o)
		mutated := m.mutate(t, o)
		tried++
		if source.RefOf(mutated) != source.RefOf(o) {
			t.Fatalf("%s became %s", source.RefOf(o), source.RefOf(mutated))
		}
		if string(mustJSON(before)) != string(mustJSON(tree(o))) {
			t.Fatal("the object itself was changed")
		}
		if string(mustJSON(before)) != string(mustJSON(tree(mutated))) {
			changed++
		}
	})
	if changed < tried/4 {
		t.Errorf("only %d of %d objects were changed", changed, tried)
	}
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
