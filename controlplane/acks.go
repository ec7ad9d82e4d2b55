package controlplane

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"signalbox.dev/xds"
)

// ackBook keeps the newest word of every Envoy on each of its listeners: of this
// replica's own Envoys, which other replicas follow, and of theirs. The translator hears
// all of it, so that the leader, whichever that is, knows what every Envoy has taken.
type ackBook struct {
	// grace is how long an Envoy's word counts after it has disconnected: it goes on
	// serving, and comes back, to this replica or to another.
	grace time.Duration
	hear  func(xds.Ack)

	mu      sync.Mutex
	envoys  map[envoy]*known
	changed chan struct{} // closed when the words of own Envoys have changed
}

// envoy is an Envoy at one replica. It may be at two for a while.
type envoy struct {
	group     xds.Group
	node, via string // via is "" for this replica
}

// known is what an Envoy has said.
type known struct {
	words map[string]word // by listener
	gone  *time.Timer     // runs while the Envoy is disconnected
}

// word is an Envoy's answer to one version of a listener.
type word struct{ version, refused string }

// entry is one word as it travels between replicas.
type entry struct {
	Group    xds.Group `json:"group"`
	Node     string    `json:"node"`
	Listener string    `json:"listener"`
	Version  string    `json:"version"`
	Refused  string    `json:"refused,omitempty"`
}

func newAckBook(grace time.Duration, hear func(xds.Ack)) *ackBook {
	return &ackBook{grace: grace, hear: hear, envoys: map[envoy]*known{}, changed: make(chan struct{})}
}

// take takes the answer of an Envoy of this replica. Only those on listeners count.
func (b *ackBook) take(a xds.Ack) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := envoy{group: a.Group, node: a.Node}
	switch {
	case a.Gone:
		b.leave(e)
	case a.Type == xds.Listener:
		for listener, version := range a.Versions {
			b.say(e, listener, word{version, a.Error})
		}
	}
}

// say notes a word. The caller holds mu.
func (b *ackBook) say(e envoy, listener string, w word) {
	k := b.envoys[e]
	if k == nil {
		k = &known{words: map[string]word{}}
		b.envoys[e] = k
	}
	if k.gone != nil {
		k.gone.Stop()
		k.gone = nil
	}
	if old, ok := k.words[listener]; ok && old == w {
		return
	}
	k.words[listener] = w
	b.news(e)
	b.hear(xds.Ack{Group: e.group, Node: e.name(), Type: xds.Listener, Versions: map[string]string{listener: w.version}, Error: w.refused})
}

// leave notes that an Envoy has disconnected. The caller holds mu.
func (b *ackBook) leave(e envoy) {
	k := b.envoys[e]
	switch {
	case k == nil || k.gone != nil:
	case b.grace == 0:
		b.forget(e)
	default:
		var timer *time.Timer
		timer = time.AfterFunc(b.grace, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.envoys[e] == k && k.gone == timer {
				b.forget(e)
			}
		})
		k.gone = timer
	}
}

// forget drops an Envoy. The caller holds mu.
func (b *ackBook) forget(e envoy) {
	delete(b.envoys, e)
	b.news(e)
	b.hear(xds.Ack{Group: e.group, Node: e.name(), Gone: true})
}

func (b *ackBook) news(e envoy) {
	if e.via == "" {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

// name is what the translator, and in the end a user, knows an Envoy by.
func (e envoy) name() string {
	if e.via == "" {
		return e.node
	}
	return e.node + " at " + e.via
}

// own returns all words of this replica's Envoys, sorted, and what is closed when that
// has changed.
func (b *ackBook) own() ([]entry, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := []entry{}
	for e, k := range b.envoys {
		if e.via != "" {
			continue
		}
		for listener, w := range k.words {
			out = append(out, entry{e.group, e.node, listener, w.version, w.refused})
		}
	}
	slices.SortFunc(out, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Listener, b.Listener))
	})
	return out, b.changed
}

// takeFrom takes all words of another replica's Envoys: those that it does not mention
// have left it.
func (b *ackBook) takeFrom(via string, all []entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	there := map[envoy]bool{}
	for _, w := range all {
		e := envoy{w.Group, w.Node, via}
		there[e] = true
		b.say(e, w.Listener, word{w.Version, w.Refused})
	}
	for e := range b.envoys {
		if e.via == via && !there[e] {
			b.leave(e)
		}
	}
}
