// Package dir is the source of objects in files: directories of YAML and JSON, read
// once (Read) or watched (New).
//
// The file system cannot be trusted to say what happened: editors write in place or
// by rename, git and rsync replace files one after another, a ConfigMap volume swaps
// one symlink, events get lost on some file systems. So an event is only a hint to
// look again. A look reads everything, compares hashes, and parses what differs;
// what the objects are then depends on the files' content alone (merge.go). A slow
// poll looks even without a hint.
//
// Nothing is deleted by accident. A look waits until the files are quiet. That a file
// is gone or got shorter, which is what a file being rewritten looks like, is
// believed when it stays so for a second. A file that is not YAML, a directory that cannot be read and an object that
// is refused keep what was last good, and are reported until they are right.
//
//	dir.go    Read and New
//	loop.go   when to look, and when to believe what was seen
//	files.go  what is on disk now
//	hints.go  what to watch so that no change is missed
//	merge.go  files → objects, and what changed
package dir

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"signalbox.dev/source"
	"signalbox.dev/source/manifest"
)

// Stdin is the path that stands for the standard input in Read.
const Stdin = "-"

// Read reads files and directories once; the path "-" is stdin. Objects come back
// sorted by Ref, without the refused and the duplicate ones, which are among the
// problems. The error is for a path that cannot be read at all.
func Read(paths []string, stdin io.Reader) (manifest.Result, error) {
	var files snapshot
	for _, path := range paths {
		if path == Stdin {
			text, err := io.ReadAll(stdin)
			if err != nil {
				return manifest.Result{}, fmt.Errorf("standard input: %w", err)
			}
			files.add("stdin", text, time.Time{}, nil)
			continue
		}
		files.root(path, nil)
	}
	if err := files.missing(); err != nil {
		return manifest.Result{}, err
	}
	var o objects
	o.apply(&files, nil)
	result := manifest.Result{Problems: o.problems(), Ignored: o.ignored()}
	for _, ref := range slices.SortedFunc(maps.Keys(o.good), source.Ref.Compare) {
		result.Objects = append(result.Objects, o.good[ref])
	}
	for _, f := range o.files {
		result.Broken = result.Broken || f.read.Broken
	}
	return result, nil
}

// Option changes a time of a watched source. What holds without any suits people
// who edit files.
type Option func(*watched)

// Settle sets how long the files must be quiet before they are read (100 ms). That
// a file vanished or got shorter is believed after ten times as long.
func Settle(d time.Duration) Option {
	return func(w *watched) { w.settle, w.grace = d, 10*d }
}

// Poll sets how often the files are read without a hint that they changed (5 s).
func Poll(d time.Duration) Option { return func(w *watched) { w.poll = d } }

// New returns a source that watches files and directories. Its Run fails if one of
// them does not exist at the start; one that vanishes later keeps its objects.
func New(paths []string, log *zap.Logger, options ...Option) source.Source {
	w := &watched{paths: paths, log: log}
	for _, o := range append([]Option{Settle(100 * time.Millisecond), Poll(5 * time.Second)}, options...) {
		o(w)
	}
	return w
}

type watched struct {
	paths               []string
	log                 *zap.Logger
	settle, grace, poll time.Duration
}
