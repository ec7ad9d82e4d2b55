package manifest

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"

	"signalbox.dev/source"
)

// FuzzParse: any text is read without a panic; every position lies in the text;
// every object is what its Ref says; and what was admitted once is admitted again.
func FuzzParse(f *testing.F) {
	f.Add(routes(1))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {a: b}}, 7]\n"))
	f.Add([]byte("apiVersion: gateway.networking.k8s.io/v1beta1\nkind: Gateway\nmetadata: {name: g}\nspec: &s\n  gatewayClassName: c\n  <<: *s\n"))
	f.Add([]byte("a: {\n---\n%YAML 1.1\n---\n{\"a\": \"\\ud83d\\ude00\"}\n...\nb: [\n"))
	f.Add([]byte("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv4\nports: [{port: 1}]\nendpoints: [{addresses: [1.2.3.4]}]\n"))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p, creationTimestamp: 2026-01-01T00:00:00Z}\nspec: {containers: [{resources: {limits: {cpu: 1}}}]}\nstatus: {podIP: 10.0.0.1}\n"))
	f.Add([]byte("apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: p}\nspec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}], endpointPickerRef: {name: e, port: {number: 2}}}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := Parse("f", text)
		lines := 1 // as YAML counts: CR, NEL, LS and PS end lines too
		for _, end := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
			lines += bytes.Count(text, []byte(end))
		}
		for _, p := range r.Problems {
			checkPosition(t, p.Where, lines)
		}
		for _, i := range r.Ignored {
			checkPosition(t, i.Where, lines)
		}
		for _, o := range r.Objects {
			checkPosition(t, o.Where, lines)
			if o.Object != nil && source.RefOf(o.Object) != o.Ref {
				t.Errorf("the object of %v is %v", o.Ref, source.RefOf(o.Object))
			}
		}
		checkAgain(t, r)
	})
}

func checkPosition(t *testing.T, where string, lines int) {
	var line, column int
	if _, err := fmt.Sscanf(strings.TrimPrefix(where, "f:"), "%d:%d", &line, &column); err != nil || line < 1 || line > lines+1 || column < 1 {
		t.Errorf("position %q in a text of %d lines", where, lines)
	}
}

// checkAgain reads objects twice more. Only the second time must give equal ones:
// Go's types do not write an empty list (matches: []), for which a default then
// comes in.
func checkAgain(t *testing.T, r Result) {
	var before []Located
	for _, o := range r.Objects {
		if o.Object != nil {
			before = append(before, o)
		}
	}
	for round := range 2 {
		again := Parse("f", toJSON(t, before))
		if len(again.Problems) > 0 || len(again.Objects) != len(before) {
			t.Fatalf("read again: %d objects, want %d; problems %v", len(again.Objects), len(before), again.Problems)
		}
		for i, o := range again.Objects {
			if round > 0 && !equality.Semantic.DeepEqual(o.Object, before[i].Object) {
				t.Errorf("%v changed when it was read again:\n%#v\n%#v", o.Ref, before[i].Object, o.Object)
			}
		}
		before = again.Objects
	}
}
