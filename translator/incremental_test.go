package translator_test

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"signalbox.dev/source"
	"signalbox.dev/source/manifest"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// A file of testdata/incremental is a script and the objects that it speaks of. Steps:
//
//	start FILE…           gives the objects; nothing is expected of what they come to
//	apply FILE…           gives objects, new or changed
//	delete KIND/NS/NAME…  takes objects away
//	ack GROUP [WORDS]     an Envoy takes the group's listeners, or refuses them with words
//
// and what is expected of the step before, exactly and in this order:
//
//	changed [+~-] GROUP TYPE NAME   a resource came, changed, went
//	status KIND/NS/NAME             a status changed
//	runs N                          how many table functions ran
//
// After every step all must be as if it had been translated from scratch. -update
// rewrites the expectations.
type script struct {
	t     *testing.T
	files map[string][]byte
	used  map[string]bool

	tr      *translator.Translator
	world   *world
	objects map[source.Ref]source.Object
	acks    []xds.Ack
}

func TestIncremental(t *testing.T) {
	paths, err := filepath.Glob("../testdata/incremental/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, archive)
			if *update {
				archive.Comment = got
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(archive.Comment), string(got)); diff != "" {
				t.Errorf("-want +got; make golden rewrites it:\n%s", diff)
			}
		})
	}
}

// runScript returns the script with what its steps have come to in place of what was
// expected of them.
func runScript(t *testing.T, archive *txtar.Archive) []byte {
	s := &script{
		t: t, files: map[string][]byte{}, used: map[string]bool{}, world: newWorld(), objects: map[source.Ref]source.Object{},
		tr: translator.New(translator.Options{ExtProc: "127.0.0.1:9004"}),
	}
	for _, f := range archive.Files {
		s.files[f.Name] = f.Data
	}
	var out bytes.Buffer
	steps := 0
	lines := bufio.NewScanner(bytes.NewReader(archive.Comment))
	for lines.Scan() {
		line := lines.Text()
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "changed", "status", "runs":
			continue
		}
		fmt.Fprintln(&out, line)
		switch verb {
		case "start":
			s.step(s.read(strings.Fields(rest)), nil)
		case "apply":
			out.WriteString(s.step(s.read(strings.Fields(rest)), nil))
			steps++
		case "delete":
			out.WriteString(s.step(s.gone(strings.Fields(rest)), nil))
			steps++
		case "ack":
			group, words, _ := strings.Cut(rest, " ")
			out.WriteString(s.step(nil, s.world.acks(xds.Group(group), words)))
			steps++
		case "", "#":
		default:
			t.Fatalf("unknown verb %q", verb)
		}
	}
	if steps == 0 {
		t.Fatal("the script does nothing")
	}
	for name := range s.files {
		if !s.used[name] {
			t.Errorf("no step uses %s", name)
		}
	}
	return out.Bytes()
}

func (s *script) read(names []string) []source.Change {
	s.t.Helper()
	var out []source.Change
	for _, name := range names {
		data, ok := s.files[name]
		if !ok {
			s.t.Fatalf("no file %s", name)
		}
		s.used[name] = true
		r := manifest.Parse(name, data)
		for _, p := range r.Problems {
			s.t.Fatalf("%s: %s: %s", p.Where, p.Object, p.Message)
		}
		for _, o := range r.Objects {
			out = append(out, added(o.Object)...)
		}
	}
	return out
}

func (s *script) gone(refs []string) []source.Change {
	s.t.Helper()
	var out []source.Change
	for _, text := range refs {
		found := false
		for ref := range s.objects {
			if found = ref.String() == text; found {
				out = append(out, source.Change{Ref: ref})
				break
			}
		}
		if !found {
			s.t.Fatalf("delete: there is no %s", text)
		}
	}
	return out
}

// step applies the changes and says what came of it.
func (s *script) step(changes []source.Change, acks []xds.Ack) string {
	s.t.Helper()
	for _, c := range changes {
		if c.Object == nil {
			delete(s.objects, c.Ref)
		} else {
			s.objects[c.Ref] = c.Object
		}
	}
	s.acks = append(s.acks, acks...)
	before := s.tr.Runs()
	out := s.tr.Apply(changes, acks)
	text := s.world.describe(out) + "runs " + strconv.Itoa(s.tr.Runs()-before) + "\n"
	s.world.take(out)
	scratch := translator.New(translator.Options{ExtProc: "127.0.0.1:9004"}).Apply(added(slices.Collect(maps.Values(s.objects))...), s.acks)
	if diff := s.world.differs(worldOf(scratch)); diff != "" {
		s.t.Errorf("not what it comes to from scratch: %s", diff)
	}
	if err := s.world.fault(); err != nil {
		s.t.Error(err)
	}
	return text
}

// describe says what an Output changes in the world.
func (w *world) describe(out translator.Output) string {
	var b strings.Builder
	for _, c := range out.Resources {
		p, sign := place{c.Group, c.Type, c.Name}, "~"
		if _, had := w.resources[p]; !had {
			sign = "+"
		} else if c.Resource == nil {
			sign = "-"
		}
		fmt.Fprintf(&b, "changed %s %s\n", sign, p)
	}
	for _, st := range out.Statuses {
		fmt.Fprintf(&b, "status %s\n", st.Ref)
	}
	return b.String()
}

// differs says where two worlds first differ; "" if they do not.
func (w *world) differs(o *world) string {
	a, b := w.output(), o.output()
	for i := range max(len(a.Resources), len(b.Resources)) {
		if i >= len(a.Resources) || i >= len(b.Resources) || a.Resources[i].Compare(b.Resources[i]) != 0 {
			return fmt.Sprintf("resource %d: %v and %v", i, at(a.Resources, i), at(b.Resources, i))
		}
		if x, y := a.Resources[i].Resource, b.Resources[i].Resource; x.Version != y.Version || !bytes.Equal(x.Any.Value, y.Any.Value) {
			return fmt.Sprintf("%s %s of %s has versions %s and %s", x.Type.Short(), x.Name, a.Resources[i].Group, x.Version, y.Version)
		}
	}
	if reflect.DeepEqual(a.Statuses, b.Statuses) {
		return ""
	}
	return cmp.Diff(a.Statuses, b.Statuses)
}

func at(cs []xds.Change, i int) string {
	if i >= len(cs) {
		return "nothing"
	}
	return place{cs[i].Group, cs[i].Type, cs[i].Name}.String()
}
