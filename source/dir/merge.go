package dir

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"

	"signalbox.dev/source"
	"signalbox.dev/source/manifest"
)

// objects is what the files have said so far: per file what was last read of it,
// and the objects that are in force.
type objects struct {
	files  map[string]*file
	failed map[string]error // of the last snapshot: its unreadable paths
	good   map[source.Ref]manifest.Located
	double []source.Problem
}

// file is what is known of one file.
type file struct {
	content
	size int
	read manifest.Result
	// kept are objects that an earlier content held and that the present one,
	// which is not YAML or cannot be read, does not name.
	kept []source.Ref
	// held: what is on disk now is not believed yet; this is what was before.
	held bool
}

// lost returns the files that held objects and are gone or shorter in s, with what
// tells what is there now from what was or will be: a file that is rewritten again
// and again may be caught empty twice.
func (o *objects) lost(s *snapshot) map[string]sight {
	lost := map[string]sight{}
	for path, f := range o.files {
		now, ok := s.files[path]
		if ok && (now.err != nil || len(now.text) >= f.size) || len(f.refs()) == 0 || below(path, s.unreadable) {
			continue
		}
		lost[path] = sight{now.sum, now.mtime}
	}
	return lost
}

// apply takes what is on disk now, but for the held files, of which only those
// objects go on that stand nowhere else. It returns what changed, sorted by Ref.
func (o *objects) apply(s *snapshot, held map[string]bool) []source.Change {
	files := map[string]*file{}
	for path, c := range s.files {
		if !held[path] {
			files[path] = reread(o.files[path], path, c)
		}
	}
	for path, f := range o.files {
		switch {
		case held[path]:
			f.held = true
			files[path] = f
		case files[path] == nil && below(path, s.unreadable):
			files[path] = f
		}
	}
	o.files, o.failed = files, s.unreadable
	before := o.good
	o.resolve()
	return changes(before, o.good)
}

// reread parses a file if its content is new.
func reread(before *file, path string, c content) *file {
	if before != nil && before.sum == c.sum && fmt.Sprint(before.err) == fmt.Sprint(c.err) {
		before.held = false
		return before
	}
	now := &file{content: content{sum: c.sum, err: c.err}, size: len(c.text)}
	if c.err == nil {
		now.read = manifest.Parse(path, c.text)
	}
	if before == nil || c.err == nil && !now.read.Broken {
		return now
	}
	named := map[source.Ref]bool{}
	for _, located := range now.read.Objects {
		named[located.Ref] = true
	}
	for _, ref := range before.refs() {
		if !named[ref] {
			named[ref] = true
			now.kept = append(now.kept, ref)
		}
	}
	return now
}

func (f *file) refs() []source.Ref {
	refs := slices.Clone(f.kept)
	for _, located := range f.read.Objects {
		refs = append(refs, located.Ref)
	}
	return refs
}

// resolve decides which objects are in force. Of an object that stands in several
// places the first in the order of paths counts, as long as there is no reason to
// keep what was last good of it: refused there, or held by a file that cannot be
// read now and named by no other.
func (o *objects) resolve() {
	o.double = nil
	claims := map[source.Ref][]manifest.Located{}
	var kept []source.Ref
	for _, path := range slices.Sorted(maps.Keys(o.files)) {
		f := o.files[path]
		if f.held {
			kept = append(kept, f.refs()...)
			continue
		}
		kept = append(kept, f.kept...)
		for _, located := range f.read.Objects {
			ref := located.Ref
			if first := claims[ref]; len(first) > 0 {
				o.double = append(o.double, source.Problem{Where: located.Where, Object: ref.String(),
					Message: "the object stands twice: the one at " + first[0].Where + " counts; remove one of them"})
			}
			claims[ref] = append(claims[ref], located)
		}
	}
	before, good := o.good, map[source.Ref]manifest.Located{}
	for ref, places := range claims {
		if places[0].Object == nil {
			if last, ok := before[ref]; ok {
				good[ref] = last
				continue
			}
		}
		if i := slices.IndexFunc(places, func(l manifest.Located) bool { return l.Object != nil }); i >= 0 {
			good[ref] = places[i]
		}
	}
	for _, ref := range kept {
		if last, ok := before[ref]; ok && claims[ref] == nil {
			good[ref] = last
		}
	}
	o.good = good
}

// changes compares by meaning: an object that was only written differently, or
// moved to another file, did not change, and the one that was sent stays.
func changes(before, now map[source.Ref]manifest.Located) []source.Change {
	var out []source.Change
	for ref, located := range now {
		old, ok := before[ref]
		if ok && equality.Semantic.DeepEqual(old.Object, located.Object) {
			now[ref] = manifest.Located{Ref: ref, Object: old.Object, Where: located.Where}
			continue
		}
		out = append(out, source.Change{Ref: ref, Object: located.Object})
	}
	for ref := range before {
		if _, ok := now[ref]; !ok {
			out = append(out, source.Change{Ref: ref})
		}
	}
	slices.SortFunc(out, func(a, b source.Change) int { return a.Ref.Compare(b.Ref) })
	return out
}

// problems lists all there are, in the order of paths.
func (o *objects) problems() []source.Problem {
	var out []source.Problem
	for _, path := range slices.Sorted(maps.Keys(o.failed)) {
		out = append(out, source.Problem{Where: path, Message: o.failed[path].Error() + ": make it readable; " + stays})
	}
	for _, path := range slices.Sorted(maps.Keys(o.files)) {
		f := o.files[path]
		if f.err != nil {
			out = append(out, source.Problem{Where: path, Message: f.err.Error() + ": make it readable; " + stays})
		}
		out = append(out, f.read.Problems...)
	}
	return append(out, o.double...)
}

const stays = "what was last read of it stays"

func (o *objects) ignored() []manifest.Ignored {
	var out []manifest.Ignored
	for _, path := range slices.Sorted(maps.Keys(o.files)) {
		out = append(out, o.files[path].read.Ignored...)
	}
	return out
}

// below reports whether path is one of dirs or lies in one.
func below(path string, dirs map[string]error) bool {
	for dir := range dirs {
		if path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") || dir == "." {
			return true
		}
	}
	return false
}
