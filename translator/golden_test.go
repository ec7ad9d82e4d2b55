package translator_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"signalbox.dev/source"
	"signalbox.dev/source/manifest"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

var update = flag.Bool("update", false, "rewrite what the goldens of testdata/translate expect")

// A golden is a file of testdata/translate. Its comment says what it is about; its
// sections are
//
//	options.yaml  goldenOptions; may be left out
//	input.yaml    the objects, as anything that signalbox reads; may be left out if
//	              options.yaml names inputs
//	envoy.yaml    what Envoy gets: group → section → resources; none if nothing
//	status.yaml   what is said of the objects; none if nothing
//
// The last two are written by -update and read by people: a golden that nobody has read
// against the spec shows nothing.
type golden struct {
	name    string
	path    string
	comment []byte
	text    map[string][]byte
	options goldenOptions
	objects []source.Object
}

// GoString is how rapid tells which golden it drew.
func (g *golden) GoString() string { return g.name }

const (
	optionsSection = "options.yaml"
	inputSection   = "input.yaml"
	envoySection   = "envoy.yaml"
	statusSection  = "status.yaml"
)

// goldenSections are the sections of a golden, in their order.
var goldenSections = []string{optionsSection, inputSection, envoySection, statusSection}

// goldenOptions are the translator's options and what a golden says about itself.
type goldenOptions struct {
	ExtProc        string          `json:"extProc"` // default 127.0.0.1:9004
	BindAddress    string          `json:"bindAddress"`
	Ports          map[int32]int32 `json:"ports"`
	HoldLimit      uint32          `json:"holdLimit"`
	GuardAddresses bool            `json:"guardAddresses"`
	OneHost        bool            `json:"oneHost"`
	Provision      bool            `json:"provision"`

	// Inputs are files of testdata to read besides input.yaml.
	Inputs []string `json:"inputs"`
	// Only is what the golden is about: sections ("routes"), single resources
	// ("clusters/pool/default/a"), kinds whose statuses count ("HTTPRoute"; "status" is
	// all of them). None: everything.
	Only []string `json:"only"`
	// Acks is what an Envoy of a Gateway answers to the listeners: "" takes them.
	Acks map[xds.Group]string `json:"acks"`
	// Reports is what refused the infrastructure of Gateways.
	Reports map[xds.Group]string `json:"reports"`
	// Bundle is the bundle version of Gateway API's CRDs.
	Bundle *string `json:"bundle"`
	// OlderCRDs reads objects that today's CRDs refuse and an API server with older ones
	// would have stored: no defaults, no validation.
	OlderCRDs bool `json:"olderCRDs"`
}

func (o goldenOptions) translator() translator.Options {
	return translator.Options{ExtProc: o.ExtProc, BindAddress: o.BindAddress, Ports: o.Ports, HoldLimit: o.HoldLimit, GuardAddresses: o.GuardAddresses, OneHost: o.OneHost, Provision: o.Provision}
}

// goldens reads every golden.
func goldens(t testing.TB) []*golden {
	t.Helper()
	paths, err := filepath.Glob("../testdata/translate/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	var out []*golden
	for _, path := range paths {
		g, err := readGolden(path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		out = append(out, g)
	}
	return out
}

func readGolden(path string) (*golden, error) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		return nil, err
	}
	g := &golden{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), path: path, comment: archive.Comment, text: map[string][]byte{}}
	if len(bytes.TrimSpace(g.comment)) == 0 {
		return nil, fmt.Errorf("say at the top what the golden is about")
	}
	for _, f := range archive.Files {
		if !slices.Contains(goldenSections, f.Name) {
			return nil, fmt.Errorf("unknown section %q; the sections are %s", f.Name, strings.Join(goldenSections, ", "))
		}
		if _, twice := g.text[f.Name]; twice {
			return nil, fmt.Errorf("section %q stands twice", f.Name)
		}
		g.text[f.Name] = f.Data
	}
	g.options.ExtProc = "127.0.0.1:9004"
	if err := yaml.UnmarshalStrict(g.text[optionsSection], &g.options); err != nil {
		return nil, fmt.Errorf("%s: %w", optionsSection, err)
	}
	return g, g.read()
}

// read reads the objects.
func (g *golden) read() error {
	parse := manifest.Parse
	if g.options.OlderCRDs {
		parse = parseUnchecked
	}
	add := func(name string, data []byte) error {
		r := parse(name, data)
		for _, p := range r.Problems {
			return fmt.Errorf("%s: %s: %s", p.Where, p.Object, p.Message)
		}
		for _, i := range r.Ignored {
			return fmt.Errorf("%s", i)
		}
		for _, o := range r.Objects {
			g.objects = append(g.objects, o.Object)
		}
		return nil
	}
	for _, name := range g.options.Inputs {
		data, err := os.ReadFile(filepath.Join("../testdata", name))
		if err != nil {
			return err
		}
		if err := add(name, data); err != nil {
			return err
		}
	}
	return add(inputSection, g.text[inputSection])
}

// parseUnchecked reads objects as a client of an API server would get them.
func parseUnchecked(name string, data []byte) (out manifest.Result) {
	problem := func(err error) {
		out.Problems = append(out.Problems, source.Problem{Where: name, Message: err.Error()})
	}
	for _, doc := range strings.Split(string(data), "\n---\n") {
		var head struct {
			Kind source.Kind `json:"kind"`
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			problem(err)
			continue
		}
		i := slices.IndexFunc(source.Kinds, func(k source.KindInfo) bool { return k.Kind == head.Kind })
		if i < 0 {
			problem(fmt.Errorf("unknown kind %q", head.Kind))
			continue
		}
		o := source.Kinds[i].New()
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			problem(err)
			continue
		}
		if source.Kinds[i].Namespaced && o.GetNamespace() == "" {
			o.SetNamespace("default")
		}
		out.Objects = append(out.Objects, manifest.Located{Ref: source.RefOf(o), Object: o, Where: name})
	}
	return out
}

// translate returns all that the objects, and then the Envoys' answers, come to.
func (g *golden) translate() *world {
	tr := translator.New(g.options.translator())
	w := worldOf(tr.Apply(added(g.objects...), nil))
	if g.options.Bundle != nil {
		tr.Installed(*g.options.Bundle)
	}
	for _, group := range slices.Sorted(maps.Keys(g.options.Reports)) {
		namespace, name, _ := strings.Cut(string(group), "/")
		tr.Reported([]translator.Report{{Gateway: source.Ref{Kind: source.KindGateway, Namespace: namespace, Name: name}, Words: g.options.Reports[group]}})
	}
	var acks []xds.Ack
	for _, group := range slices.Sorted(maps.Keys(g.options.Acks)) {
		acks = append(acks, w.acks(group, g.options.Acks[group])...)
	}
	w.take(tr.Apply(nil, acks))
	return w
}

// expect returns what the sections ought to hold; one with nothing to hold is left out.
func (g *golden) expect() (map[string][]byte, error) {
	shown := g.translate().output()
	if only := g.options.Only; len(only) > 0 {
		shown.Resources = slices.DeleteFunc(shown.Resources, func(c xds.Change) bool {
			return !slices.Contains(only, c.Type.Short()) && !slices.Contains(only, c.Type.Short()+"/"+c.Name)
		})
		shown.Statuses = slices.DeleteFunc(shown.Statuses, func(s translator.Status) bool {
			return !slices.Contains(only, translator.DumpStatus) && !slices.Contains(only, string(s.Ref.Kind))
		})
	}
	dump, err := shown.Dump("")
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	if len(dump.Envoy) > 0 {
		if out[envoySection], err = yaml.Marshal(dump.Envoy); err != nil {
			return nil, err
		}
	}
	if len(dump.Status) > 0 {
		if out[statusSection], err = yaml.Marshal(dump.Status); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// checkOnly finds misspelt words in Only: one would make a golden that shows nothing.
func (g *golden) checkOnly() error {
	known := translator.DumpSectionNames()
	for _, k := range source.Kinds {
		known = append(known, string(k.Kind))
	}
	for p := range g.translate().resources {
		known = append(known, p.Type.Short()+"/"+p.Name)
	}
	for _, word := range g.options.Only {
		if !slices.Contains(known, word) {
			return fmt.Errorf("only: %q is neither a section nor a resource nor a kind", word)
		}
	}
	return nil
}

func TestGolden(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.name, func(t *testing.T) {
			if err := g.checkOnly(); err != nil {
				t.Fatal(err)
			}
			got, err := g.expect()
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 0 {
				t.Fatal("the golden shows nothing")
			}
			if *update {
				g.rewrite(t, got)
				return
			}
			for _, section := range []string{envoySection, statusSection} {
				if diff := cmp.Diff(string(g.text[section]), string(got[section])); diff != "" {
					t.Errorf("%s (-want +got; make golden rewrites it):\n%s", section, diff)
				}
			}
		})
	}
}

// rewrite writes the golden with new expectations.
func (g *golden) rewrite(t *testing.T, got map[string][]byte) {
	archive := &txtar.Archive{Comment: g.comment}
	for _, section := range goldenSections {
		data, ok := got[section]
		switch section {
		case optionsSection, inputSection:
			data, ok = g.text[section]
		default:
			if _, had := g.text[section]; had && !ok {
				t.Logf("%s: removed section %s, which nothing produces any more", g.path, section)
			}
		}
		if ok {
			archive.Files = append(archive.Files, txtar.File{Name: section, Data: data})
		}
	}
	if err := os.WriteFile(g.path, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}
