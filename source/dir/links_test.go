package dir_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"signalbox.dev/source/dir"
	"signalbox.dev/source/sourcetest"
)

// relink replaces a symbolic link at once, as kubelet and git-sync do.
func relink(t *testing.T, target, link string) {
	t.Helper()
	do(t, os.Symlink(target, link+"_tmp"), os.Rename(link+"_tmp", link))
}

// TestConfigMapVolume: kubelet writes a new hidden directory and swaps ..data to it;
// the files are links through ..data. All files change in one batch.
func TestConfigMapVolume(t *testing.T) {
	dir := t.TempDir()
	put := func(version, host string) {
		do(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		write(t, filepath.Join(dir, version, "a.yaml"), route("a", host))
		write(t, filepath.Join(dir, version, "b.yaml"), route("b", host))
		relink(t, version, filepath.Join(dir, "..data"))
	}
	put("..2026_01", "one.example.com")
	do(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")), os.Symlink("..data/b.yaml", filepath.Join(dir, "b.yaml")))
	r := sourcetest.Read(t, start(dir))
	r.Sync()
	for _, version := range []string{"..2026_02", "..2026_03"} {
		put(version, version[2:6]+version[7:]+".example.com")
		do(t, os.RemoveAll(filepath.Join(dir, "..2026_01")))
		batch := r.Next()
		if got := hosts(r); len(batch.Changes) != 2 || got["a"] != got["b"] || len(r.Problems) > 0 {
			t.Errorf("after the swap: %d changes, routes %v, problems %v", len(batch.Changes), got, r.Problems)
		}
	}
}

// TestRootIsLink: git-sync's "current" link is given as the root, or lies in its path.
func TestRootIsLink(t *testing.T) {
	for _, root := range []string{"current", "current/conf", "current/conf/a.yaml"} {
		t.Run(root, func(t *testing.T) {
			base := t.TempDir()
			for _, version := range []string{"one", "two", "three"} {
				do(t, os.MkdirAll(filepath.Join(base, version, "conf"), 0o700))
				write(t, filepath.Join(base, version, "conf", "a.yaml"), route("a", version+".example.com"))
			}
			relink(t, "one", filepath.Join(base, "current"))
			r := sourcetest.Read(t, start(filepath.Join(base, root)))
			r.Sync()
			relink(t, "two", filepath.Join(base, "current"))
			r.Until(func() bool { return hosts(r)["a"] == "two.example.com" })
			relink(t, filepath.Join(base, "three"), filepath.Join(base, "current"))
			r.Until(func() bool { return hosts(r)["a"] == "three.example.com" })
			// The directory behind the link is watched now.
			write(t, filepath.Join(base, "three", "conf", "a.yaml"), route("a", "edited.example.com"))
			r.Until(func() bool { return hosts(r)["a"] == "edited.example.com" })
		})
	}
}

// TestLinkedFile: the target of a link in the directory is edited where it is.
func TestLinkedFile(t *testing.T) {
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "x.yaml")
	write(t, elsewhere, route("a", "a.example.com"))
	do(t, os.Symlink(elsewhere, filepath.Join(dir, "link.yaml")))
	r := sourcetest.Read(t, start(dir))
	r.Sync()
	write(t, elsewhere, route("a", "edited.example.com"))
	r.Until(func() bool { return hosts(r)["a"] == "edited.example.com" })

	// A link that leads nowhere keeps what was read through it, and says so.
	do(t, os.Remove(elsewhere))
	r.Until(func() bool { return len(r.Problems) == 1 })
	if p := r.Problems[0]; p.Where != filepath.Join(dir, "link.yaml") || !strings.Contains(p.Message, "leads nowhere") {
		t.Errorf("problem is %+v", p)
	}
	if hosts(r)["a"] != "edited.example.com" {
		t.Error("the object behind a dead link is gone")
	}
	write(t, elsewhere, route("a", "back.example.com"))
	r.Until(func() bool { return hosts(r)["a"] == "back.example.com" && len(r.Problems) == 0 })
}

func TestOneFile(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "manifest.txt") // a name given by the user may be any
	write(t, file, route("a", "a.example.com"))
	write(t, filepath.Join(base, "neighbour.yaml"), route("n", "n.example.com"))
	r := sourcetest.Read(t, start(file))
	r.Sync()
	if len(r.Objects) != 1 {
		t.Errorf("read %v, want the one route of the file", r.Objects)
	}
	write(t, file+".new", route("a", "renamed.example.com"))
	do(t, os.Rename(file+".new", file))
	r.Until(func() bool { return hosts(r)["a"] == "renamed.example.com" })

	// What the user named is not expected to go: it stays, and is reported.
	do(t, os.Remove(file))
	r.Until(func() bool { return len(r.Problems) == 1 })
	if hosts(r)["a"] != "renamed.example.com" || r.Problems[0].Where != file {
		t.Errorf("after the file was removed: routes %v, problems %v", hosts(r), r.Problems)
	}
	write(t, file, route("a", "again.example.com"))
	r.Until(func() bool { return hosts(r)["a"] == "again.example.com" && len(r.Problems) == 0 })
}

// TestPoll: a directory above the root is swapped, which gives no event.
func TestPoll(t *testing.T) {
	base := t.TempDir()
	for _, version := range []string{"one", "two"} {
		do(t, os.MkdirAll(filepath.Join(base, version, "mid", "conf"), 0o700))
		write(t, filepath.Join(base, version, "mid", "conf", "a.yaml"), route("a", version+".example.com"))
	}
	root := filepath.Join(base, "one", "mid", "conf")
	r := sourcetest.Read(t, dir.New([]string{root}, zap.NewNop(), dir.Settle(5*time.Millisecond), dir.Poll(20*time.Millisecond)))
	r.Sync()
	do(t, os.Rename(filepath.Join(base, "one"), filepath.Join(base, "old")), os.Rename(filepath.Join(base, "two"), filepath.Join(base, "one")))
	r.Until(func() bool { return hosts(r)["a"] == "two.example.com" })
}
