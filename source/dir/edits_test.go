package dir_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"signalbox.dev/source"
	"signalbox.dev/source/dir"
	"signalbox.dev/source/sourcetest"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// do fails the test on the first error of file operations.
func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func route(name, host string) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s}
spec:
  hostnames: [%s]
---
`, name, host)
}

func routeRef(name string) source.Ref {
	return source.Ref{Kind: source.KindHTTPRoute, Namespace: "default", Name: name}
}

// hosts is the first hostname of every route, by name.
func hosts(r *sourcetest.Reader) map[string]string {
	out := map[string]string{}
	for ref, object := range r.Objects {
		out[ref.Name] = hostOf(object)
	}
	return out
}

// TestEdits: however a file is changed, its object is updated once, never deleted.
func TestEdits(t *testing.T) {
	// All texts are longer than the first and differ from its start on.
	before, after := route("a", "old.example.com"), route("a", "new.example.com")+route("z", "z.example.com")
	for _, test := range []struct {
		name string
		edit func(t *testing.T, file string)
	}{
		{"written in place", func(t *testing.T, file string) { write(t, file, after) }},
		{"written in place, in two parts", func(t *testing.T, file string) {
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
			do(t, err)
			half := len(after) / 3
			_, err = f.WriteString(after[:half])
			do(t, err)
			write(t, filepath.Join(filepath.Dir(file), "sentinel.yaml"), route("sentinel", "s.example.com"))
			_, err = f.WriteString(after[half:])
			do(t, err, f.Close())
		}},
		{"sed -i, rsync: a temporary file renamed over it", func(t *testing.T, file string) {
			temporary := filepath.Join(filepath.Dir(file), "sedAbCdEf")
			write(t, temporary, after)
			do(t, os.Rename(temporary, file))
		}},
		{"rsync: a hidden temporary file", func(t *testing.T, file string) {
			temporary := filepath.Join(filepath.Dir(file), ".routes.yaml.AbCdEf")
			write(t, temporary, after)
			do(t, os.Rename(temporary, file))
		}},
		{"vim: moved to a backup, written anew, backup removed", func(t *testing.T, file string) {
			write(t, filepath.Join(filepath.Dir(file), "4913"), "")
			do(t, os.Remove(filepath.Join(filepath.Dir(file), "4913")), os.Rename(file, file+"~"))
			write(t, file, after)
			do(t, os.Remove(file+"~"))
		}},
		{"git checkout: removed and created", func(t *testing.T, file string) {
			do(t, os.Remove(file))
			write(t, file, after)
		}},
		{"renamed to another name with new content", func(t *testing.T, file string) {
			do(t, os.Remove(file))
			write(t, filepath.Join(filepath.Dir(file), "another.yml"), after)
		}},
		{"replaced by a symbolic link", func(t *testing.T, file string) {
			elsewhere := filepath.Join(t.TempDir(), "target")
			write(t, elsewhere, after)
			do(t, os.Remove(file), os.Symlink(elsewhere, file))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			file := filepath.Join(base, "routes.yaml")
			write(t, file, before)
			r := sourcetest.Read(t, start(base))
			r.Sync()
			test.edit(t, file)
			for _, c := range r.Until(func() bool { return hosts(r)["a"] == "new.example.com" && hosts(r)["z"] != "" }) {
				if c.Object == nil {
					t.Errorf("%v was deleted on the way", c.Ref)
				}
			}
			if len(r.Problems) > 0 {
				t.Errorf("problems: %v", r.Problems)
			}
		})
	}
}

// TestHalfWritten: a writer that stops in the middle, at any place, deletes nothing
// until long after.
func TestHalfWritten(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "routes.yaml")
	text := route("a", "a.example.com") + route("b", "b.example.com")
	write(t, file, text)
	r := sourcetest.Read(t, dir.New([]string{base}, zap.NewNop(), dir.Settle(5*time.Millisecond), dir.Grace(time.Hour), dir.Poll(time.Hour)))
	r.Sync()
	for i := 0; i < len(text); i += 13 {
		sentinel := fmt.Sprintf("s%d", i)
		write(t, file, text[:i])
		write(t, filepath.Join(base, "sentinel.yaml"), route(sentinel, "s.example.com"))
		r.Until(r.Has(routeRef(sentinel)))
		if got := hosts(r); got["a"] != "a.example.com" || got["b"] != "b.example.com" {
			t.Fatalf("after %d bytes the routes are %v", i, got)
		}
	}
}

// TestShorter: what was taken out of a file, and a file that was removed, do go.
func TestShorter(t *testing.T) {
	base := t.TempDir()
	both, one := filepath.Join(base, "both.yaml"), filepath.Join(base, "one.json")
	write(t, both, route("a", "a.example.com")+route("b", "b.example.com"))
	write(t, one, `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}`)
	r := sourcetest.Read(t, start(base))
	r.Sync()
	write(t, both, route("b", "b.example.com"))
	r.Until(func() bool { return r.Objects[routeRef("a")] == nil })
	write(t, both, "")
	r.Until(func() bool { return r.Objects[routeRef("b")] == nil })
	do(t, os.Remove(one))
	r.Until(func() bool { return len(r.Objects) == 0 })
}

// TestMoved: an object that moves to another file, or whose file or directory is
// renamed, does not change, and no moment has it twice.
func TestMoved(t *testing.T) {
	base := t.TempDir()
	a, b, sub := filepath.Join(base, "a.yaml"), filepath.Join(base, "b.yaml"), filepath.Join(base, "sub")
	write(t, a, route("moves", "m.example.com")+route("a", "a.example.com"))
	write(t, b, route("b", "b.example.com"))
	do(t, os.Mkdir(sub, 0o700))
	write(t, filepath.Join(sub, "c.yaml"), route("c", "c.example.com"))
	r := sourcetest.Read(t, start(base))
	r.Sync()
	step := func(name string, edit func()) {
		t.Helper()
		edit()
		write(t, filepath.Join(base, "sentinel.yaml"), route(name, "s.example.com"))
		for _, c := range r.Until(r.Has(routeRef(name))) {
			if c.Ref != routeRef(name) && c.Object == nil && len(c.Ref.Name) < 6 {
				t.Errorf("%s: %v changed", name, c.Ref)
			}
		}
		if len(r.Problems) > 0 {
			t.Errorf("%s: problems %v", name, r.Problems)
		}
	}
	step("sentinel-move", func() {
		write(t, a, route("a", "a.example.com"))
		write(t, b, route("b", "b.example.com")+route("moves", "m.example.com"))
	})
	step("sentinel-file", func() { do(t, os.Rename(a, filepath.Join(base, "z.yaml"))) })
	step("sentinel-directory", func() { do(t, os.Rename(sub, filepath.Join(base, "other"))) })
	// The renamed directory is still watched.
	write(t, filepath.Join(base, "other", "d.yaml"), route("d", "d.example.com"))
	r.Until(r.Has(routeRef("d")))
}

func TestSubdirectories(t *testing.T) {
	base := t.TempDir()
	r := sourcetest.Read(t, start(base))
	r.Sync()
	deep := filepath.Join(base, "x", "y", "z")
	do(t, os.MkdirAll(deep, 0o700))
	write(t, filepath.Join(deep, "a.yaml"), route("a", "a.example.com"))
	r.Until(r.Has(routeRef("a")))
	write(t, filepath.Join(deep, "a.yaml"), route("a", "longer.a.example.com"))
	r.Until(func() bool { return hosts(r)["a"] == "longer.a.example.com" })
	do(t, os.RemoveAll(filepath.Join(base, "x")))
	r.Until(func() bool { return len(r.Objects) == 0 })
	do(t, os.MkdirAll(deep, 0o700))
	write(t, filepath.Join(deep, "b.yaml"), route("b", "b.example.com"))
	r.Until(r.Has(routeRef("b")))
}

func TestFilesThatAreNotRead(t *testing.T) {
	base := t.TempDir()
	for _, name := range []string{".hidden.yaml", "README.md", "a.yaml~", "#a.yaml#", "4913", ".git/a.yaml", "..2026/a.yaml", "a.yaml.bak"} {
		do(t, os.MkdirAll(filepath.Dir(filepath.Join(base, name)), 0o700))
		write(t, filepath.Join(base, name), route("a", "a.example.com"))
	}
	do(t, os.Symlink(base, filepath.Join(base, "circle")), os.Mkdir(filepath.Join(base, "directory.yaml"), 0o700))
	write(t, filepath.Join(base, "only.yml"), route("only", "only.example.com"))
	r := sourcetest.Read(t, start(base))
	r.Sync()
	if len(r.Objects) != 1 || r.Objects[routeRef("only")] == nil || len(r.Problems) > 0 {
		t.Errorf("read %v, problems %v; want only.yml alone", r.Objects, r.Problems)
	}
}
