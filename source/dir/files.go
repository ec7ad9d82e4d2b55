package dir

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type sum [sha256.Size]byte

// maxFile bounds a file's size; an object of Kubernetes has at most 1.5 MiB.
const maxFile = 64 << 20

// content is what is in a file, or why it cannot be read.
type content struct {
	text  []byte
	sum   sum
	mtime time.Time
	err   error
}

// snapshot is what is on disk at one time.
type snapshot struct {
	files map[string]content // by path, as the user writes it
	// unreadable are directories, and paths given by the user, of which nothing
	// can be said now: what was read below them before stays.
	unreadable map[string]error
	roots      []string
	visited    map[string]bool // target paths of directories and files: links may lead to one twice, or in circles
}

func (s *snapshot) add(path string, text []byte, mtime time.Time, err error) {
	if s.files == nil {
		s.files = map[string]content{}
	}
	s.files[path] = content{text, sha256.Sum256(text), mtime, err}
}

func (s *snapshot) fail(path string, err error) {
	if s.unreadable == nil {
		s.unreadable = map[string]error{}
	}
	s.unreadable[path] = err
}

// missing returns the error of the first path given by the user that is not there.
func (s *snapshot) missing() error {
	for _, root := range s.roots {
		if err := s.unreadable[root]; err != nil {
			return err
		}
		if err := s.files[root].err; err != nil {
			return err
		}
	}
	return nil
}

// sum tells snapshots apart.
func (s *snapshot) sum() sum {
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		c := s.files[path]
		fmt.Fprintf(h, "%q %x %v\n", path, c.sum, c.err)
	}
	for _, path := range slices.Sorted(maps.Keys(s.unreadable)) {
		fmt.Fprintf(h, "%q %v\n", path, s.unreadable[path])
	}
	return sum(h.Sum(nil))
}

// root reads a path given by the user: a directory, or one file of any name.
// Everything that is read is watched before, so that a change is either seen here
// or hinted at later. h is nil where nothing is watched.
func (s *snapshot) root(path string, h *hints) {
	if s.visited == nil {
		s.visited = map[string]bool{}
	}
	path = filepath.Clean(path)
	s.roots = append(s.roots, path)
	if info, err := os.Stat(path); err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		s.pipe(path, h)
		return
	}
	target, err := h.follow(path)
	if err != nil {
		s.fail(path, err)
		return
	}
	s.entry(path, target, true, h)
}

// pipe reads what can be read once only, such as a shell's <(command).
func (s *snapshot) pipe(path string, h *hints) {
	if h != nil {
		s.fail(path, fmt.Errorf("%s is neither a directory nor a regular file, so it cannot be watched", path))
		return
	}
	text, err := os.ReadFile(path)
	s.add(path, text, time.Time{}, err)
}

// entry reads the file or directory at target, which the user knows as path.
func (s *snapshot) entry(path, target string, given bool, h *hints) {
	info, err := os.Stat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !given:
		// Gone since it was listed: a hint will follow.
	case err != nil:
		s.fail(path, err)
	case s.visited[target]:
	case info.IsDir():
		s.visited[target] = true
		s.directory(path, target, h)
	case info.Mode().IsRegular() && (given || isManifest(path)):
		s.visited[target] = true
		s.file(path, target, info)
	}
}

func (s *snapshot) directory(path, target string, h *hints) {
	h.watch(target, "")
	entries, err := os.ReadDir(target)
	if err != nil {
		s.fail(path, err)
		return
	}
	for _, e := range entries {
		// Hidden files are editors', git's, and the targets of a ConfigMap
		// volume's links, which are read through the links.
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		entry, target := filepath.Join(path, e.Name()), filepath.Join(target, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			if target, err = h.follow(target); err != nil {
				if isManifest(entry) {
					s.fail(entry, fmt.Errorf("a symbolic link that leads nowhere: %w", err))
				}
				continue
			}
		}
		s.entry(entry, target, false, h)
	}
}

func (s *snapshot) file(path, target string, info fs.FileInfo) {
	if size := info.Size(); size > maxFile {
		s.add(path, nil, info.ModTime(), fmt.Errorf("%d bytes are too many for a manifest (at most %d): split it", size, maxFile))
		return
	}
	text, err := os.ReadFile(target)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	s.add(path, text, info.ModTime(), err)
}

func isManifest(path string) bool {
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
