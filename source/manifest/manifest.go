// Package manifest reads Kubernetes objects from YAML or JSON text.
//
// What it returns is what an API server with the official CRDs would have stored:
// the CRDs' defaults are applied, their schema and CEL rules have passed, unknown
// and duplicate fields are refused (as kubectl does by default), served older
// versions are read as v1. The rules are not written again here: the CRDs
// themselves (crds/, copied from the Go modules by scripts/crds) drive the API
// server's own code (apiextensions-apiserver). Core kinds have no CRD; for them
// core.go has the few defaults and checks that matter to a proxy.
//
// A mistake never stops the reading: it becomes a source.Problem that says where
// (file:line:column), which object, which field, and what to do.
//
//	manifest.go  Parse and what it returns
//	document.go  text → documents: values for decoding, nodes for positions
//	position.go  field path → line and column
//	object.go    document → typed object
//	crd.go       kinds with a CRD
//	core.go      core kinds
//	strict.go    unknown fields and wrong types, by reflection on the Go type
package manifest

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"signalbox.dev/source"
)

// Result is what one text holds.
type Result struct {
	// Objects in the order of the text, the refused ones too.
	Objects []Located
	// Problems in the order of the text.
	Problems []source.Problem
	// Ignored are the objects of kinds that signalbox does not read.
	Ignored []Ignored
	// Broken is true if some part of the text is not YAML. What that part held is
	// unknown then, so that an object's absence from Objects says nothing.
	Broken bool
}

// Located is an object and where it stands.
type Located struct {
	Ref source.Ref
	// Object is nil if the object was refused; Problems say why.
	Object source.Object
	Where  string // "name:line:column"
}

// Ignored is an object of a kind that signalbox does not read.
type Ignored struct {
	Where            string // "name:line:column"
	APIVersion, Kind string // both empty: not a Kubernetes object at all
	Name             string // "namespace/name", or "name"
}

// String says in one line what was ignored and where.
func (i Ignored) String() string {
	if i.Kind == "" {
		return i.Where + ": no apiVersion and no kind: not a Kubernetes object"
	}
	return fmt.Sprintf("%s: %s %s of %s", i.Where, i.Kind, i.Name, i.APIVersion)
}

// Parse reads all objects of data: any number of YAML or JSON documents, Lists
// included. name stands in front of every position ("routes.yaml:3:1").
func Parse(name string, data []byte) Result {
	p := &parser{name: name}
	for _, c := range split(data) {
		d, err := c.parse()
		switch {
		case err != nil:
			p.Broken = true
			p.Problems = append(p.Problems, source.Problem{
				Where:   p.where(err.line, err.column),
				Message: "not YAML: " + err.message + ": correct it here or just above",
			})
		case d != nil:
			p.document(d)
		}
	}
	return p.Result
}

type parser struct {
	name string
	Result
	found []found
}

func (p *parser) where(line, column int) string {
	return fmt.Sprintf("%s:%d:%d", p.name, line, column)
}

// item is one object as written, before it is understood.
type item struct {
	value map[string]any
	node  *yaml.Node // nil where positions are not known
	line  int        // of the document's first line: added to the node's lines, which start at 1
}

func (p *parser) document(d *document) {
	it := item{node: d.node, line: d.line}
	var ok bool
	if it.value, ok = d.value.(map[string]any); ok {
		p.item(it)
		return
	}
	p.problem(it, it.node, source.Ref{}, "not an object: a document is a mapping with apiVersion, kind and metadata")
	p.flush()
}

// refuse records what is wrong with an object, each where its field stands.
func (p *parser) refuse(it item, ref source.Ref, errs field.ErrorList) {
	for _, err := range errs {
		at, message := describe(err)
		p.problem(it, find(it.node, at), ref, message)
	}
}

func (p *parser) problem(it item, at *yaml.Node, ref source.Ref, message string) {
	object := ""
	if ref.Name != "" {
		object = ref.String()
	}
	line, column := position(at, it.line)
	p.found = append(p.found, found{line, column, source.Problem{Where: p.where(line, column), Object: object, Message: message}})
}

// found is a problem of the object that is being read.
type found struct {
	line, column int
	source.Problem
}

// flush moves what was found in one object to the result, in the order of the text.
func (p *parser) flush() {
	slices.SortFunc(p.found, func(a, b found) int {
		return cmp.Or(a.line-b.line, a.column-b.column, strings.Compare(a.Message, b.Message))
	})
	for _, f := range p.found {
		p.Problems = append(p.Problems, f.Problem)
	}
	p.found = nil
}

// ours is the Origin of errors whose Detail says everything; the API server's kind
// of error in front of it ("Forbidden", "Invalid value") would only be noise.
const ours = "signalbox"

func fault(path, message string) *field.Error {
	return &field.Error{Type: field.ErrorTypeInvalid, Field: path, Detail: message, Origin: ours}
}

// inDetail is how the schema validator reports a failed oneOf or anyOf: the field is
// not in Field.
var inDetail = regexp.MustCompile(`^"([^"]+)" (must validate .*)$`)

// describe returns an error's field and the message, "field: what is wrong". It
// leaves out what the API server says twice ("spec.x: Invalid value: 7: spec.x in
// body should be …").
func describe(err *field.Error) (at, message string) {
	at, message = err.Field, strings.ReplaceAll(err.ErrorBody(), err.Field+" in body ", "")
	if m := inDetail.FindStringSubmatch(err.Detail); m != nil {
		at, message = m[1], m[2]
	}
	if err.Origin == ours {
		message = err.Detail
	}
	if at == "" || at == "<nil>" { // the whole object
		return "", message
	}
	return at, at + ": " + message
}
