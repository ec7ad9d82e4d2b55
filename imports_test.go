// Package signalbox holds the tests that look at the source as a whole: which room may
// know which other, what the pure ones must not touch, and that each says what it is.
package signalbox

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "signalbox.dev"

// rooms says which of our packages each package may import (ARCHITECTURE.md, "The
// rooms"). Those that tie everything together may import all but what only they use.
var rooms = map[string][]string{
	"cmd/signalbox":            {"*"},
	"standalone":               {"*"},
	"controlplane":             {"provision", "provision/pki", "source", "source/kube", "status", "status/kube", "translator", "xds", "xds/server"},
	"source":                   {},
	"source/manifest":          {"source"},
	"source/dir":               {"source", "source/manifest"},
	"source/kube":              {"source"},
	"source/sourcetest":        {"source"},
	"source/kube/kubetest":     {"source"},
	"translator":               {"extproc/contract", "provision/infrastructure", "source", "translator/incr", "xds"},
	"translator/incr":          {},
	"xds":                      {},
	"xds/server":               {"xds"},
	"extproc":                  {"extproc/contract", "extproc/model", "extproc/picker"},
	"extproc/contract":         {},
	"extproc/model":            {"extproc/contract"},
	"extproc/picker":           {"extproc/contract"},
	"status":                   {"source", "translator"},
	"status/kube":              {"source", "source/kube", "translator"},
	"bootstrap":                {},
	"provision":                {"bootstrap", "provision/infrastructure", "provision/pki", "source", "source/kube", "translator"},
	"provision/drain":          {},
	"provision/infrastructure": {},
	"provision/pki":            {},
	"demo":                     {"demo/modelserver", "demo/picker", "source"},
	"demo/modelserver":         {},
	"demo/picker":              {},
	"demo/load":                {},
	"e2e":                      {"*"},
	"e2e/cluster":              {"demo/load"},
	"e2e/propagation":          {"source/kube"},
	"":                         {}, // this package
}

// nobodys are the packages that no other may import, not even with "*".
var nobodys = []string{"cmd/signalbox", "e2e", "source/kube/kubetest", "source/sourcetest"}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath, Dir      string
	GoFiles, TestGoFiles []string
	XTestGoFiles         []string
	Imports              []string
}

// room returns the folder of a package of ours.
func (p listed) room() string { return folder(p.ImportPath) }

func folder(path string) string { return strings.TrimPrefix(strings.TrimPrefix(path, module), "/") }

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var packages []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range list(t, "./...") {
		may, known := rooms[p.room()]
		if !known {
			t.Errorf("package %s is new; say in imports_test.go and in ARCHITECTURE.md what it may import", p.room())
		}
		for _, path := range p.Imports {
			if path != module && !strings.HasPrefix(path, module+"/") {
				continue
			}
			to := folder(path)
			if slices.Contains(nobodys, to) || !slices.Contains(may, to) && !slices.Contains(may, "*") {
				t.Errorf("%s imports %s; it may import %v", p.room(), to, may)
			}
		}
	}
}

// What is computed by these packages must depend on their arguments alone.
var pure = []string{"translator", "translator/incr", "xds", "extproc/contract", "provision/infrastructure"}

// impure are the packages of the standard library through which the world gets in.
// They are looked for among direct imports: apimachinery itself imports net/http.
var impure = []string{
	"os", "os/exec", "os/signal", "os/user", "net", "net/http", "io/fs", "io/ioutil", "log", "log/slog",
	"math/rand", "math/rand/v2", "crypto/rand", "runtime", "sync", "sync/atomic", "syscall", "unsafe",
}

// impureModules are looked for in everything that the pure packages link.
var impureModules = []string{"k8s.io/client-go", "google.golang.org/grpc", "go.uber.org/zap", "sigs.k8s.io/controller-runtime"}

// clock lists the functions of time that look at a clock.
var clock = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

func TestPurity(t *testing.T) {
	for _, room := range pure {
		for _, p := range list(t, "./"+room) {
			for _, path := range p.Imports {
				if slices.Contains(impure, path) {
					t.Errorf("%s imports %s", room, path)
				}
			}
			for _, name := range p.GoFiles {
				for _, at := range clockUses(t, filepath.Join(p.Dir, name)) {
					t.Errorf("%s looks at a clock", at)
				}
			}
		}
		for _, p := range list(t, "-deps", "./"+room) {
			for _, m := range impureModules {
				if p.ImportPath == m || strings.HasPrefix(p.ImportPath, m+"/") {
					t.Errorf("%s links %s", room, p.ImportPath)
				}
			}
			if rest, ok := strings.CutPrefix(p.ImportPath, "github.com/envoyproxy/go-control-plane/"); ok && !strings.HasPrefix(rest, "envoy/") {
				t.Errorf("%s links %s; of go-control-plane only the generated types are pure", room, p.ImportPath)
			}
		}
	}
}

// clockUses returns where the file calls one of clock.
func clockUses(t *testing.T, path string) (at []string) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, s.Sel.Name) {
				at = append(at, files.Position(n.Pos()).String())
			}
		}
		return true
	})
	return at
}

// Every package begins with a comment that says what it is, in one of its files.
func TestPackageComments(t *testing.T) {
	for _, p := range list(t, "./...") {
		documented := false
		for _, name := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			text := file.Doc.Text()
			documented = documented || strings.HasPrefix(text, "Package "+file.Name.Name) || file.Name.Name == "main" && text != ""
		}
		if !documented {
			t.Errorf("package %s has no package comment: nobody can tell what it is for", p.ImportPath)
		}
	}
}
