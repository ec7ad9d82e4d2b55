package translator_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator"

	"sigs.k8s.io/yaml"
)

// said is what a condition says, without its message.
type said struct {
	On     source.Kind
	Type   string
	Status metav1.ConditionStatus
	Reason string
}

// TestEveryReason: each thing that a condition of ours can say stands in a golden, where
// somebody has read it in its context.
func TestEveryReason(t *testing.T) {
	shown := map[said]bool{}
	for _, g := range goldens(t) {
		if err := g.conditions(func(s said) { shown[s] = true }); err != nil {
			t.Fatalf("%s: %v", g.path, err)
		}
	}
	known := map[said]bool{}
	for _, v := range translator.Verdicts {
		s := said{v.On, v.Type, v.Status, v.Reason}
		known[s] = true
		if !shown[s] {
			t.Errorf("no golden of testdata/translate shows %s %s=%s, reason %s", s.On, s.Type, s.Status, s.Reason)
		}
	}
	for s := range shown {
		if !known[s] {
			t.Errorf("a golden shows %s %s=%s, reason %s, which nobody has declared", s.On, s.Type, s.Status, s.Reason)
		}
	}
}

// conditions calls f for every condition that the golden expects.
func (g *golden) conditions(f func(said)) error {
	type list struct {
		Conditions []metav1.Condition `json:"conditions"`
	}
	var objects []struct {
		Kind   source.Kind `json:"kind"`
		Status struct {
			list      `json:",inline"`
			Listeners []list `json:"listeners"`
			Parents   []list `json:"parents"`
			Ancestors []list `json:"ancestors"`
		} `json:"status"`
	}
	if err := yaml.Unmarshal(g.text[statusSection], &objects); err != nil {
		return err
	}
	each := func(on source.Kind, lists ...list) {
		for _, l := range lists {
			for _, c := range l.Conditions {
				f(said{on, c.Type, c.Status, c.Reason})
			}
		}
	}
	for _, o := range objects {
		each(o.Kind, o.Status.list)
		each("Listener", o.Status.Listeners...)
		each(o.Kind, o.Status.Parents...)
		each(o.Kind, o.Status.Ancestors...)
	}
	return nil
}

// TestConditionsAreDeclared: a condition is made by a declared verdict and in no other
// way, so that TestEveryReason knows all of them.
func TestConditionsAreDeclared(t *testing.T) {
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	makers := map[string]int{}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			maker := ""
			if f, ok := decl.(*ast.FuncDecl); ok {
				maker = f.Name.Name
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				if makesVerdict(n) {
					makers[maker]++
					if maker != "because" && maker != "declare" {
						t.Errorf("%s: a verdict of its own; declare it in status.go and say it by because", files.Position(n.Pos()))
					}
				}
				return true
			})
		}
	}
	if makers["because"] != 1 || makers["declare"] != 1 {
		t.Errorf("verdicts are made by %v; want because and declare", makers)
	}
}

// makesVerdict says whether n is a verdict or a condition that is written out.
func makesVerdict(n ast.Node) bool {
	lit, ok := n.(*ast.CompositeLit)
	if !ok || len(lit.Elts) == 0 {
		return false
	}
	typ := lit.Type
	if array, ok := typ.(*ast.ArrayType); ok { // []metav1.Condition{{Type: …}}: the element has no type of its own
		if inner, ok := lit.Elts[0].(*ast.CompositeLit); !ok || inner.Type != nil {
			return false
		}
		typ = array.Elt
	}
	switch x := typ.(type) {
	case *ast.SelectorExpr:
		return x.Sel.Name == "Condition"
	case *ast.Ident:
		return x.Name == "verdict"
	}
	return false
}
