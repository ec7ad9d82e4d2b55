package dir_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"signalbox.dev/source"
	"signalbox.dev/source/dir"
	"signalbox.dev/source/sourcetest"
)

func TestMissingRoot(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	if err := start(missing).Run(context.Background(), nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("Run returned %v, want an error that names the path", err)
	}
	if _, err := dir.Read([]string{missing}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read returned %v", err)
	}
}

// TestNotYAML: the broken document's objects stay, the other documents are read.
func TestNotYAML(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "routes.yaml")
	write(t, file, route("a", "a.example.com")+route("b", "b.example.com"))
	r := sourcetest.Read(t, start(base))
	r.Sync()
	write(t, file, route("a", "changed.example.com")+strings.Replace(route("b", "changed.example.com"), "spec:", "spec: {", 1))
	r.Until(func() bool { return len(r.Problems) > 0 })
	if d := cmp.Diff(map[string]string{"a": "changed.example.com", "b": "b.example.com"}, hosts(r)); d != "" {
		t.Errorf("routes (-want +got):\n%s", d)
	}
	if where := r.Problems[0].Where; where != file+":10:1" {
		t.Errorf("the problem is at %s, want the line with the open brace", where)
	}
	// Broken in another way, still nothing goes; repaired, what was taken out does.
	write(t, file, route("a", "changed.example.com")+"\t"+strings.Repeat("x: [", 100))
	r.Until(func() bool { return strings.Contains(r.Problems[0].Message, "not YAML") })
	if hosts(r)["b"] != "b.example.com" {
		t.Error("b is gone while its file is not YAML")
	}
	write(t, file, route("a", "changed.example.com")+strings.Repeat("# b is gone\n", 100))
	r.Until(func() bool { return len(r.Problems) == 0 && r.Objects[routeRef("b")] == nil })
}

// TestInvalidObject: its last good version stays, wherever it goes, and the others
// of the file are updated.
func TestInvalidObject(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "routes.yaml")
	write(t, file, route("a", "a.example.com")+route("b", "b.example.com"))
	r := sourcetest.Read(t, start(base))
	r.Sync()
	write(t, file, route("a", "'not a host'")+route("b", "changed.example.com"))
	r.Until(func() bool { return hosts(r)["b"] == "changed.example.com" })
	if hosts(r)["a"] != "a.example.com" {
		t.Errorf("a is %q, want its last good version", hosts(r)["a"])
	}
	p := r.Problems[0]
	if p.Where != file+":5:15" || p.Object != "HTTPRoute/default/a" || !strings.HasPrefix(p.Message, "spec.hostnames[0]: ") {
		t.Errorf("problem is %+v", p)
	}
	do(t, os.Rename(file, filepath.Join(base, "renamed.yaml")))
	r.Until(func() bool { return strings.Contains(r.Problems[0].Where, "renamed.yaml") })
	if hosts(r)["a"] != "a.example.com" {
		t.Error("the last good version did not outlive a rename of the file")
	}
	// Removed while it is invalid: gone.
	write(t, filepath.Join(base, "renamed.yaml"), route("b", "changed.example.com"))
	r.Until(func() bool { return r.Objects[routeRef("a")] == nil && len(r.Problems) == 0 })
}

func TestDuplicate(t *testing.T) {
	base := t.TempDir()
	first, second := filepath.Join(base, "1.yaml"), filepath.Join(base, "2.yaml")
	write(t, second, "# comment\n"+route("a", "second.example.com"))
	write(t, first, route("a", "first.example.com"))
	r := sourcetest.Read(t, start(base))
	r.Sync()
	want := []source.Problem{{Where: second + ":2:1", Object: "HTTPRoute/default/a",
		Message: "the object stands twice: the one at " + first + ":1:1 counts; remove one of them"}}
	if d := cmp.Diff(want, r.Problems); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
	if hosts(r)["a"] != "first.example.com" {
		t.Errorf("a is %q, want the first", hosts(r)["a"])
	}
	do(t, os.Remove(first))
	r.Until(func() bool { return hosts(r)["a"] == "second.example.com" && len(r.Problems) == 0 })
}

// TestUnreadable: a file that is too large, where permissions do not help a test
// that runs as root.
func TestUnreadable(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "a.yaml")
	write(t, file, route("a", "a.example.com"))
	r := sourcetest.Read(t, start(base))
	r.Sync()
	do(t, os.Truncate(file, 65<<20))
	r.Until(func() bool { return len(r.Problems) == 1 })
	if hosts(r)["a"] != "a.example.com" || r.Problems[0].Where != file || !strings.Contains(r.Problems[0].Message, "at most") {
		t.Errorf("routes %v, problems %+v", hosts(r), r.Problems)
	}
	write(t, file, route("a", "a.example.com")+route("b", "b.example.com"))
	r.Until(func() bool { return r.Objects[routeRef("b")] != nil && len(r.Problems) == 0 })
}

// TestLog: a problem is logged when it comes and when it goes, an ignored object once.
func TestLog(t *testing.T) {
	base := t.TempDir()
	file, other := filepath.Join(base, "a.yaml"), filepath.Join(base, "b.yaml")
	write(t, file, route("a", "a.example.com")+"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: n}\n---\nspec: [\n")
	core, logs := observer.New(zap.DebugLevel)
	r := sourcetest.Read(t, dir.New([]string{base}, zap.New(core), dir.Settle(5*time.Millisecond), dir.Poll(time.Hour)))
	r.Sync()
	write(t, other, route("b", "b.example.com"))
	r.Until(r.Has(routeRef("b")))
	write(t, file, "# a comment in front of it all moves everything down\n"+route("a", "a.example.com")+"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: n}\n")
	r.Until(func() bool { return len(r.Problems) == 0 })
	var got []string
	for _, e := range logs.All() {
		f := e.ContextMap()
		got = append(got, strings.TrimSpace(e.Level.String()+" "+e.Message+" "+strings.TrimPrefix(f["where"].(string), base+"/")))
	}
	want := []string{
		"info ignored, signalbox does not read this kind a.yaml:7:1",
		"warn problem in a file a.yaml:11:1",
		"info problem in a file is gone a.yaml:11:1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("log (-want +got):\n%s", d)
	}
}

func TestRead(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "a.yaml")
	write(t, file, route("b", "b.example.com")+route("a", "a.example.com")+"kind: Deployment\n---\n"+route("c", "'not a host'"))
	got, err := dir.Read([]string{base, dir.Stdin, file}, strings.NewReader(route("a", "second.example.com")+"a: [\n"))
	do(t, err)
	var names []string
	for _, o := range got.Objects {
		names = append(names, o.Ref.Name+" "+hostOf(o.Object)+" "+strings.TrimPrefix(o.Where, base+"/"))
	}
	if d := cmp.Diff([]string{"a a.example.com a.yaml:7:1", "b b.example.com a.yaml:1:1"}, names); d != "" {
		t.Errorf("objects (-want +got):\n%s", d)
	}
	var where []string
	for _, p := range got.Problems {
		where = append(where, strings.TrimPrefix(p.Where, base+"/"))
	}
	if d := cmp.Diff([]string{"a.yaml:19:15", "stdin:7:1", "stdin:1:1"}, where); d != "" {
		t.Errorf("problems (-want +got):\n%s\n%v", d, got.Problems)
	}
	if !got.Broken || len(got.Ignored) != 1 {
		t.Errorf("broken %v, ignored %v", got.Broken, got.Ignored)
	}
}
