package picker

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Endpoints is a list of ip:port that may change while pickers use it. Of the zero
// value nothing is known yet: a picker on it is not ready.
type Endpoints struct {
	mu    sync.Mutex
	list  []string // sorted, without duplicates
	known bool
	news  chan struct{}
}

// NewEndpoints returns a list; see Set.
func NewEndpoints(list ...string) (*Endpoints, error) {
	e := &Endpoints{}
	return e, e.Set(list)
}

// Set replaces the list, which may be empty. An entry that is not ip:port (IPv6 in
// brackets) is an error, and the list stays as it was.
func (e *Endpoints) Set(list []string) error {
	for _, a := range list {
		if _, err := netip.ParseAddrPort(a); err != nil {
			return fmt.Errorf("endpoint %q: want ip:port", a)
		}
	}
	list = slices.Clone(list)
	slices.Sort(list)
	list = slices.Compact(list)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known && slices.Equal(list, e.list) {
		return nil
	}
	e.list, e.known = list, true
	if e.news != nil {
		close(e.news)
		e.news = nil
	}
	return nil
}

// Get returns the list; the caller must not change it.
func (e *Endpoints) Get() []string {
	list, _ := e.get()
	return list
}

func (e *Endpoints) get() (list []string, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.list, e.known
}

// changed returns a channel that is closed by the next change.
func (e *Endpoints) changed() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.news == nil {
		e.news = make(chan struct{})
	}
	return e.news
}

// watch reads the file into the list whenever it changes, until ctx ends. It polls: a
// file behind a ConfigMap's symbolic links sends no reliable events, and a tenth of a
// second is soon enough.
func (e *Endpoints) watch(ctx context.Context, path string, log *zap.Logger) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last []byte
	var said string
	for {
		b, err := os.ReadFile(path)
		if err == nil && (last == nil || !bytes.Equal(b, last)) {
			if err = e.Set(parseFile(string(b))); err == nil {
				last = append([]byte{}, b...)
				log.Info("endpoints read", zap.String("file", path), zap.Strings("endpoints", e.Get()))
			}
		}
		if err == nil {
			said = ""
		} else if err.Error() != said {
			said = err.Error()
			log.Warn("endpoints stay as they were", zap.String("file", path), zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func parseFile(text string) (list []string) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		list = append(list, strings.Fields(line)...)
	}
	return list
}

// split cuts a comma-separated list; spaces and empty items do not count.
func split(s string) (out []string) {
	for e := range strings.SplitSeq(s, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}

// match keeps the endpoints that wanted names, each as ip:port or, for all its ports,
// as ip.
func match(endpoints, wanted []string) (out []string) {
	for _, e := range endpoints {
		address, err := netip.ParseAddrPort(e)
		if slices.Contains(wanted, e) || err == nil && slices.Contains(wanted, address.Addr().String()) {
			out = append(out, e)
		}
	}
	return out
}
