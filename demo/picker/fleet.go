package picker

import (
	"cmp"
	"slices"
	"sync"
)

// fleet is what the picker knows of its endpoints.
type fleet struct {
	queueLimit int

	mu    sync.Mutex
	loads map[string]load // by endpoint; from its metrics
	trips map[string]map[string]int
	turn  int // advances with every pick, so that equals take turns
}

// load is an endpoint's, as its metrics said it last.
type load struct {
	down             bool // the metrics could not be read
	running, waiting int
	base             string          // the base model; empty: not known
	adapters         map[string]bool // those with a running or waiting request
}

// trip is one request on its way: until it ends it counts as sent to its endpoint.
type trip struct {
	fleet           *fleet
	endpoint, model string
}

func newFleet(queueLimit int) *fleet {
	return &fleet{queueLimit: queueLimit, loads: map[string]load{}, trips: map[string]map[string]int{}}
}

// rank orders candidates (not empty), best first, for a request for the model, and
// says whether the queue of every one is at the limit. The order is the package's.
func (f *fleet) rank(candidates []string, model string) (ranked []string, saturated bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	type ranking struct {
		endpoint       string
		down, foreign  int // 1: yes; foreign: no affinity to the model
		queue, running int
	}
	f.turn++
	saturated = true
	rows := make([]ranking, len(candidates))
	for i := range candidates {
		e := candidates[(i+f.turn)%len(candidates)]
		l, sent := f.loads[e], 0
		for _, n := range f.trips[e] {
			sent += n
		}
		row := ranking{endpoint: e, foreign: 1, queue: l.waiting + max(0, sent-l.running-l.waiting), running: l.running}
		if l.down {
			row.down = 1
		}
		runs := l.adapters[model] || l.base != "" && model != l.base && f.trips[e][model] > 0
		if runs && row.queue < f.queueLimit {
			row.foreign = 0
		}
		saturated = saturated && row.queue >= f.queueLimit
		rows[i] = row
	}
	slices.SortStableFunc(rows, func(a, b ranking) int {
		return cmp.Or(a.down-b.down, a.foreign-b.foreign, a.queue-b.queue, a.running-b.running)
	})
	for _, r := range rows {
		ranked = append(ranked, r.endpoint)
	}
	return ranked, saturated
}

// observe takes in what the endpoints' metrics say now; endpoints that are not among
// them are forgotten.
func (f *fleet) observe(loads map[string]load) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loads = loads
}

// begin counts a request as sent to the endpoint.
func (f *fleet) begin(endpoint, model string) *trip {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count(endpoint, model, 1)
	return &trip{fleet: f, endpoint: endpoint, model: model}
}

// moveTo notes which endpoint the gateway used in the end.
func (t *trip) moveTo(endpoint string) {
	if t == nil || t.endpoint == endpoint {
		return
	}
	t.fleet.mu.Lock()
	defer t.fleet.mu.Unlock()
	t.fleet.count(t.endpoint, t.model, -1)
	t.fleet.count(endpoint, t.model, 1)
	t.endpoint = endpoint
}

// end counts the request as over.
func (t *trip) end() {
	if t == nil {
		return
	}
	t.fleet.mu.Lock()
	defer t.fleet.mu.Unlock()
	t.fleet.count(t.endpoint, t.model, -1)
}

// count is called with the lock held.
func (f *fleet) count(endpoint, model string, n int) {
	m := f.trips[endpoint]
	if m == nil {
		m = map[string]int{}
		f.trips[endpoint] = m
	}
	if m[model] += n; m[model] == 0 {
		delete(m, model)
	}
	if len(m) == 0 {
		delete(f.trips, endpoint)
	}
}
