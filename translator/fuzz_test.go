package translator_test

import (
	"slices"
	"testing"

	"signalbox.dev/source"
	"signalbox.dev/source/manifest"
	"signalbox.dev/translator"
)

// FuzzTranslate: whatever text is read, translating it does not panic, what comes of it
// is valid and closed in itself, and the order of the objects plays no part.
func FuzzTranslate(f *testing.F) {
	for _, g := range goldens(f) {
		f.Add(g.text[inputSection])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var objects []source.Object
		seen := map[source.Ref]bool{}
		for _, o := range manifest.Parse("fuzz.yaml", text).Objects {
			if o.Object != nil && !seen[o.Ref] {
				seen[o.Ref] = true
				objects = append(objects, o.Object)
			}
		}
		w := worldOf(translator.Translate(objects, localOptions))
		if err := w.fault(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.output().Dump(""); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(objects)
		if diff := w.differs(worldOf(translator.Translate(objects, localOptions))); diff != "" {
			t.Fatalf("in another order: %s", diff)
		}
	})
}
