package dir

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// hints says that something may have changed. A nil *hints watches nothing.
type hints struct {
	c       chan struct{} // capacity 1: a hint that nobody waits for is kept
	watcher *fsnotify.Watcher
	log     *zap.Logger
	done    sync.WaitGroup

	mu   sync.Mutex
	dirs map[string]*interest // by real path
	look int                  // number of the look that is under way
}

// interest is what matters in a watched directory.
type interest struct {
	all   bool
	names map[string]bool
	look  int // the last look that asked for it
}

// newHints returns hints that never come if the system has no more watches to give:
// the poll is there for that.
func newHints(log *zap.Logger) *hints {
	h := &hints{c: make(chan struct{}, 1), log: log, dirs: map[string]*interest{}}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("cannot watch files: changes are seen late, by polling", zap.Error(err))
		return h
	}
	h.watcher = watcher
	// Both channels are drained here and not in the loop: fsnotify may hold its
	// lock while it sends, and the loop needs that lock to watch more.
	h.done.Go(func() {
		for event := range watcher.Events {
			if h.relevant(event) {
				h.give()
			}
		}
	})
	h.done.Go(func() {
		for err := range watcher.Errors { // among them: more events than the kernel could queue
			log.Warn("events of the file system were lost: looking at all files", zap.Error(err))
			h.give()
		}
	})
	return h
}

func (h *hints) close() {
	if h.watcher != nil {
		h.watcher.Close()
		h.done.Wait()
	}
}

func (h *hints) give() {
	select {
	case h.c <- struct{}{}:
	default:
	}
}

// relevant leaves out what cannot change an object: writes to other files, and
// neighbours of the paths that are followed.
func (h *hints) relevant(event fsnotify.Event) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	dir, name := filepath.Split(event.Name)
	in := h.dirs[filepath.Clean(dir)]
	switch {
	case in == nil: // an event of a watched directory itself, or of one watched no more
		return true
	case in.names[name]:
		return true
	default:
		return in.all && (event.Op != fsnotify.Write || isManifest(name))
	}
}

// begin and end stand around a look; what no call of watch asked for between them
// is watched no more.
func (h *hints) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.look++
}

func (h *hints) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for dir, in := range h.dirs {
		if in.look != h.look {
			delete(h.dirs, dir)
			if h.watcher != nil {
				_ = h.watcher.Remove(dir) // fails only if the watch is gone already
			}
		}
	}
}

// watch asks for hints about one name in a directory, or all if name is "".
func (h *hints) watch(dir, name string) {
	if h == nil || h.watcher == nil {
		return
	}
	h.mu.Lock()
	in := h.dirs[dir]
	if in == nil || in.look != h.look {
		in = &interest{names: map[string]bool{}, look: h.look}
		h.dirs[dir] = in
	}
	if name == "" {
		in.all = true
	} else {
		in.names[name] = true
	}
	h.mu.Unlock()
	// Also where it is watched already: another directory may be there by now.
	if err := h.watcher.Add(dir); err != nil {
		h.log.Warn("cannot watch a directory: changes in it are seen late, by polling", zap.String("directory", dir), zap.Error(err))
	}
}

// follow returns the real path of path, and watches every symbolic link on the way
// and the last name itself: any of them may be replaced.
func (h *hints) follow(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	const maxLinks = 40 // the kernel's own
	done, rest := "/", strings.TrimPrefix(abs, "/")
	for links := 0; rest != ""; {
		name, after, _ := strings.Cut(rest, "/")
		next := filepath.Join(done, name)
		if after == "" {
			h.watch(done, name)
		}
		info, err := os.Lstat(next)
		if err != nil {
			return "", err
		}
		if info.Mode()&os.ModeSymlink == 0 {
			done, rest = next, after
			continue
		}
		h.watch(done, name)
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many symbolic links", path)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			done = "/"
		}
		// Cleaning would be wrong before links are followed: a/.. is not . if a
		// is a link.
		rest = strings.TrimPrefix(target+"/"+after, "/")
		rest = strings.TrimSuffix(rest, "/")
	}
	return done, nil
}
