package picker

import (
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"pgregory.net/rapid"

	"signalbox.dev/extproc/contract"
)

// mutated applies m as Envoy does.
func mutated(f fields, m *extprocv3.HeaderMutation) fields {
	out := fields{}
	for k, v := range f {
		out[k] = slices.Clone(v)
	}
	for _, k := range m.GetRemoveHeaders() {
		delete(out, k)
	}
	for _, o := range m.GetSetHeaders() {
		k, v := o.GetHeader().GetKey(), string(o.GetHeader().GetRawValue())
		if appends(o) {
			out[k] = append(out[k], v)
		} else {
			out[k] = []string{v}
		}
	}
	return out
}

func TestDiff(t *testing.T) {
	before := fields{"cookie": {"c1", "c2"}, "accept": {"a"}, "x-multi": {"a", "b"}, "content-length": {"7"}, ":path": {"/v1"}, "host": {"h"},
		contract.HeaderModel: {"llama"}, "content-type": {"application/json"}}
	add := func(k, v string, a corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
		o := option(k, v)
		o.AppendAction = a
		return o
	}
	again := appending
	set := func(o ...*corev3.HeaderValueOption) *extprocv3.HeaderMutation {
		return &extprocv3.HeaderMutation{SetHeaders: o}
	}
	for name, c := range map[string]struct {
		m    *extprocv3.HeaderMutation
		want fields // nil value: removed; what is not named is unchanged
	}{
		"nothing":                   {nil, nil},
		"everything again":          {set(option("cookie", "c2"), option("accept", "a"), option("x-multi", "b"), option("content-type", "application/json")), nil},
		"the first of several":      {set(option("cookie", "c1")), nil},
		"several joined":            {set(option("cookie", "c1; c2"), option("x-multi", "a,b")), nil},
		"value instead of raw":      {set(&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "accept", Value: "a"}}), nil},
		"upper case":                {set(option("Accept", "b")), fields{"accept": {"b"}}},
		"all values again, in full": {set(option("cookie", "c1"), again("cookie", "c2")), nil},
		"new":                       {set(option("traceparent", "00-1")), fields{"traceparent": {"00-1"}}},
		"changed":                   {set(option("accept", "b")), fields{"accept": {"b"}}},
		"changed, several":          {set(option("x-multi", "c"), again("x-multi", "d")), fields{"x-multi": {"c", "d"}}},
		"appended":                  {set(again("accept", "b")), fields{"accept": {"a", "b"}}},
		"added if absent":           {set(add("accept", "b", corev3.HeaderValueOption_ADD_IF_ABSENT), add("x-new", "1", corev3.HeaderValueOption_ADD_IF_ABSENT)), fields{"x-new": {"1"}}},
		"overwritten if there":      {set(add("accept", "b", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS), add("x-new", "1", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS)), fields{"accept": {"b"}}},
		"removed":                   {&extprocv3.HeaderMutation{RemoveHeaders: []string{"cookie", "x-none"}}, fields{"cookie": nil}},
		"removed and set again":     {&extprocv3.HeaderMutation{RemoveHeaders: []string{"accept"}, SetHeaders: set(option("accept", "a")).SetHeaders}, nil},
		"not a picker's":            {set(option("content-length", "9"), option("host", "x"), option(":path", "/x"), option(":authority", "x"), option(contract.HeaderModel, "phi"), option("x-envoy-retry-on", "5xx"), option(contract.KeyServed, "x")), nil},
		"not a picker's to remove":  {&extprocv3.HeaderMutation{RemoveHeaders: []string{"content-length", "host", contract.HeaderModel, ":path"}}, nil},
		"an empty value":            {set(option("accept", "")), fields{"accept": {""}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := diff(before, c.m)
			if err != nil {
				t.Fatal(err)
			}
			want := mutated(before, nil)
			for k, v := range c.want {
				if want[k] = v; v == nil {
					delete(want, k)
				}
			}
			for k, v := range mutatedByEnvoy(before, got) {
				if !slices.Equal(v, want[k]) {
					t.Errorf("%s: %q; want %q", k, v, want[k])
				}
				delete(want, k)
			}
			if len(want) > 0 {
				t.Errorf("lost: %v", want)
			}
			if c.want == nil && got != nil {
				t.Errorf("mutation %v; want none", got)
			}
		})
	}
}

func appends(o *corev3.HeaderValueOption) bool {
	return o.GetAppend().GetValue() //nolint:staticcheck // deprecated, and what Envoy reads
}

// mutatedByEnvoy applies what diff made, which says append by its action.
func mutatedByEnvoy(f fields, m *extprocv3.HeaderMutation) fields {
	for _, o := range m.GetSetHeaders() {
		if o.GetAppendAction() == corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD && !appends(o) {
			panic("append_action 0 without append means overwrite to Envoy")
		}
	}
	return mutated(f, m)
}

// TestDiffKeepsMeaning: for headers with one value, the difference has the same effect as
// the whole.
func TestDiffKeepsMeaning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name, value := rapid.SampledFrom([]string{"a", "b", "c", "d"}), rapid.SampledFrom([]string{"1", "2", "3"})
		before := fields{}
		for _, k := range rapid.SliceOfDistinct(name, func(s string) string { return s }).Draw(t, "names") {
			before[k] = []string{value.Draw(t, "value")}
		}
		m := &extprocv3.HeaderMutation{RemoveHeaders: rapid.SliceOfN(name, 0, 3).Draw(t, "removed")}
		for range rapid.IntRange(0, 6).Draw(t, "sets") {
			o := option(name.Draw(t, "name"), value.Draw(t, "value"))
			m.SetHeaders = append(m.SetHeaders, o)
		}
		got, err := diff(before, m)
		if err != nil {
			t.Fatal(err)
		}
		a, b := mutated(before, m), mutatedByEnvoy(before, got)
		for _, k := range []string{"a", "b", "c", "d"} {
			if !slices.Equal(a[k], b[k]) {
				t.Fatalf("%s: %q in full, %q as a difference", k, a[k], b[k])
			}
		}
	})
}
