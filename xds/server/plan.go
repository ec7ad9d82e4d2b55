package server

import (
	"bytes"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"signalbox.dev/xds"
)

// waits are the bounds of the order table, see Options.
type waits struct{ cluster, step, linger time.Duration }

// plan is where one Envoy is and where it should go: what its group wants, what was
// sent, what it took. It has no lock, no goroutine and no clock; its stream guards it
// and says what time it is. Its work is in proportion to what changed, except for what
// the state-of-the-world protocol repeats.
type plan struct {
	waits
	sotw  bool
	kinds map[xds.Type]*kind
	begun time.Time // when the stream joined its group; zero: nothing may be sent yet

	// epoch counts the targets that this stream has seen. Every listener and route
	// table that may be sent knows the epoch it was right for; a removal knows the
	// epoch from which nothing needs the resource. So a removal may go once no table
	// that the Envoy still holds is older than it.
	epoch      uint64
	departures []*departure       // removals that wait, oldest first
	behind     map[*item]struct{} // listeners, routes that the Envoy may hold in another form than wanted

	review  bool      // something happened on which held-back listeners or routes may wait
	pending time.Time // when the oldest change came that the Envoy has not fully taken; zero: none
	news    news
}

// news is what a plan has to tell; its stream empties it.
type news struct {
	acks      []xds.Ack // without group and node
	converged []time.Duration
}

// kind is the state of one resource type.
type kind struct {
	typ      xds.Type
	items    map[string]*item
	open     bool // the go-control-plane server has a watch, so it takes responses
	asked    bool // the Envoy's first request for this type came
	wildcard bool // it wants all
	owed     bool // its first request has had no answer yet, and gets one even if there is nothing

	review  map[*item]struct{}  // listeners, routes whose want is neither released nor staged
	staged  map[*item]struct{}  // listeners, routes that wait for the CDS answer
	dirty   map[*item]struct{}  // ready ≠ sent
	unknown map[*item]time.Time // subscribed names that the target does not have, since when
	flights []*flight           // unanswered responses, oldest first
	turn    uint64              // counts what was sent

	lastSent, lastAck, lastNack time.Time
	lastError                   string
	lastRefused                 []string
}

// item is one resource as one Envoy knows it. A version moves from field to field:
// want → (staged →) ready → sent → acked; for types other than listeners and routes
// ready follows want at once.
type item struct {
	kind  *kind
	name  string
	named bool // the Envoy subscribes to this name

	want   *xds.Resource // what the target says; nil: it should not be
	staged *xds.Resource // names clusters that were sent, but are not known to be warm
	ready  *xds.Resource // may be sent
	sent   *xds.Resource // newest in a response; without bytes if an earlier stream sent it
	acked  *xds.Resource // newest that the Envoy took

	stagedAt, readyAt, ackedAt uint64 // epochs for which these are right
	refused                    bool   // sent was refused
	turn                       uint64 // kind.turn when it was sent last
	leaving                    *departure
}

// departure is what one target no longer has.
type departure struct {
	epoch uint64
	items map[*item]struct{}
	due   time.Time // end of the linger; zero: what replaces it has not been taken yet
}

// flight is a response that was not answered yet.
type flight struct {
	entries  []entry
	upsert   bool
	nonce    string    // empty: handed over, not sent yet
	deadline time.Time // when waiting for the answer ends; zero: not sent yet
}

type entry struct {
	it    *item
	res   *xds.Resource
	epoch uint64
}

func newPlan(w waits, sotw bool) *plan {
	p := &plan{waits: w, sotw: sotw, kinds: map[xds.Type]*kind{}, behind: map[*item]struct{}{}, epoch: 1}
	for _, t := range xds.Types {
		p.kinds[t] = &kind{typ: t, items: map[string]*item{}, review: map[*item]struct{}{}, staged: map[*item]struct{}{}, dirty: map[*item]struct{}{}, unknown: map[*item]time.Time{}}
	}
	return p
}

// gated is true for types that name clusters and so must wait for them.
func (k *kind) gated() bool { return k.typ == xds.Listener || k.typ == xds.Route }

func (k *kind) item(name string) *item {
	it := k.items[name]
	if it == nil {
		it = &item{kind: k, name: name}
		k.items[name] = it
	}
	return it
}

func (it *item) interested() bool { return it.named || it.kind.wildcard }

func same(a, b *xds.Resource) bool { return a != nil && b != nil && a.Version == b.Version }

// sendable returns r if this process has its bytes.
func sendable(r *xds.Resource) *xds.Resource {
	if r == nil || r.Any == nil {
		return nil
	}
	return r
}

// begin joins the stream to its group, whose target is given. What the Envoy said
// before that (subscriptions, versions it holds) is there already.
func (p *plan) begin(target map[xds.Type]map[string]*xds.Resource, now time.Time) {
	p.begun, p.pending, p.review = now, now, true
	for t, resources := range target {
		for _, r := range resources {
			p.set(t, r.Name, r, now)
		}
	}
	for _, k := range p.kinds {
		for _, it := range k.items {
			p.interest(it, now)
		}
	}
}

// change moves the target.
func (p *plan) change(changes []xds.Change, now time.Time) {
	p.epoch++
	p.review = true
	if p.pending.IsZero() {
		p.pending = now
	}
	for _, endpoints := range [...]bool{false, true} { // what a lost assignment means depends on its cluster
		for _, c := range changes {
			if (c.Type == xds.Endpoint) == endpoints {
				p.set(c.Type, c.Name, c.Resource, now)
			}
		}
	}
}

// set notes what the target has of one resource.
func (p *plan) set(t xds.Type, name string, r *xds.Resource, now time.Time) {
	k := p.kinds[t]
	if k == nil {
		return
	}
	it := k.item(name)
	if same(it.want, it.acked) && same(it.want, it.sent) {
		it.ackedAt = p.epoch - 1 // until now the Envoy had what was wanted
	}
	if r == nil {
		p.unwant(it, now)
		return
	}
	it.want = r
	p.stay(it)
	delete(k.unknown, it)
	if !k.gated() {
		p.release(it, r, p.epoch)
		return
	}
	if it.interested() && !same(it.ready, r) {
		k.review[it] = struct{}{}
	} else {
		delete(k.review, it)
	}
	if same(it.ready, r) { // back to what is there: what waited is void
		it.staged = nil
		delete(k.staged, it)
	}
	p.lag(it)
}

// unwant notes that the target no longer has a resource. What was sent stays in force
// until its removal is due; what was not sent never will be.
func (p *plan) unwant(it *item, now time.Time) {
	k := it.kind
	it.want, it.staged = nil, nil
	delete(k.review, it)
	delete(k.staged, it)
	if it.refused && it.acked == nil {
		// The Envoy holds nothing that could stay in force, and should this come back, it
		// is tried again: the port that was taken may be free by then.
		it.sent, it.refused = nil, false
	}
	it.ready = sendable(it.sent)
	if k.typ == xds.Endpoint {
		if c := p.kinds[xds.Cluster].items[it.name]; c != nil && c.want != nil {
			it.ready = emptyLoadAssignment(it.name)
		}
	}
	k.touch(it)
	p.lag(it)
	switch {
	case it.sent != nil:
		p.leave(it)
	case it.named:
		p.interest(it, now)
	default:
		delete(k.items, it.name)
	}
}

// release lets a version be sent.
func (p *plan) release(it *item, r *xds.Resource, epoch uint64) {
	it.ready, it.readyAt, it.staged = r, epoch, nil
	delete(it.kind.staged, it)
	it.kind.touch(it)
	p.lag(it)
}

// touch keeps dirty right.
func (k *kind) touch(it *item) {
	if it.ready != nil && it.interested() && !same(it.ready, it.sent) {
		k.dirty[it] = struct{}{}
	} else {
		delete(k.dirty, it)
	}
}

// lag keeps behind right: listeners and routes of which the Envoy holds, or may yet
// get, another version than the wanted one, which may name what is to go. One that is
// itself to go is none of them: it goes before what it names (see steps). Nor is one
// that the Envoy has only ever refused: it holds nothing of it.
func (p *plan) lag(it *item) {
	if !it.kind.gated() {
		return
	}
	current := same(it.want, it.sent) && (same(it.want, it.acked) || it.refused && it.acked == nil)
	if it.interested() && it.want != nil && !current {
		p.behind[it] = struct{}{}
	} else {
		delete(p.behind, it)
	}
}

// leave starts a removal.
func (p *plan) leave(it *item) {
	if it.leaving != nil {
		return
	}
	if n := len(p.departures); n == 0 || p.departures[n-1].epoch != p.epoch {
		p.departures = append(p.departures, &departure{epoch: p.epoch, items: map[*item]struct{}{}})
	}
	it.leaving = p.departures[len(p.departures)-1]
	it.leaving.items[it] = struct{}{}
}

// stay takes a removal back.
func (p *plan) stay(it *item) {
	if it.leaving != nil {
		delete(it.leaving.items, it)
		it.leaving = nil
	}
}

// settle starts, or takes back, the linger of removals: it begins when the Envoy has
// taken every listener and route table that the target had when the resource went.
// A refused table keeps what its predecessor may name.
func (p *plan) settle(now time.Time) {
	oldest := p.epoch
	for it := range p.behind {
		oldest = min(oldest, it.ackedAt)
	}
	kept := p.departures[:0]
	for _, d := range p.departures {
		switch {
		case len(d.items) == 0:
			continue
		case d.epoch > oldest:
			d.due = time.Time{}
		case d.due.IsZero():
			d.due = now.Add(p.linger)
		}
		kept = append(kept, d)
	}
	clear(p.departures[len(kept):])
	p.departures = kept
}

// flying returns the clusters that were sent and may not be warm yet: the answer to
// their response, which Envoy holds back until they are, has neither come nor been
// waited for long enough.
func (p *plan) flying(now time.Time) map[*item]struct{} {
	var m map[*item]struct{}
	for _, f := range p.kinds[xds.Cluster].flights {
		if f.upsert && !f.over(now) {
			if m == nil {
				m = map[*item]struct{}{}
			}
			for _, e := range f.entries {
				m[e.it] = struct{}{}
			}
		}
	}
	return m
}

// hold decides for each listener and route that moved whether it may be sent:
// not while it names a cluster that was not sent; staged while it names one that may
// not be warm; else at once. A staged version is kept while newer ones wait for newer
// clusters, so that a steady stream of new clusters cannot hold up everything.
func (p *plan) hold(now time.Time) {
	flying := p.flying(now)
	for _, t := range [...]xds.Type{xds.Listener, xds.Route} {
		k := p.kinds[t]
		if len(flying) == 0 {
			for it := range k.staged {
				p.release(it, it.staged, it.stagedAt)
			}
		}
		if !p.review || !p.clustersAsked(now) {
			continue
		}
		for it := range k.review {
			switch {
			case names(it.want, p.kinds[xds.Cluster].dirty):
			case names(it.want, flying):
				it.staged, it.stagedAt = it.want, p.epoch
				k.staged[it] = struct{}{}
				delete(k.review, it)
			default:
				delete(k.review, it)
				p.release(it, it.want, p.epoch)
			}
		}
	}
	p.review = !p.clustersAsked(now)
}

// clustersAsked is true once clusters can have been sent: the Envoy asked for them, or
// will not.
func (p *plan) clustersAsked(now time.Time) bool {
	return p.kinds[xds.Cluster].asked || !now.Before(p.begun.Add(p.cluster))
}

// names tells whether r may name one of the clusters. A name stands in the bytes as it
// is, however deep, so a search for it finds every use and at worst too many. Beyond a
// few names the search costs more than the wait.
func names(r *xds.Resource, clusters map[*item]struct{}) bool {
	if len(clusters) > 8 {
		return true
	}
	for c := range clusters {
		if bytes.Contains(r.Any.GetValue(), []byte(c.name)) {
			return true
		}
	}
	return false
}

// over is true when nothing needs to wait for the answer any longer.
func (f *flight) over(now time.Time) bool { return !f.deadline.IsZero() && !now.Before(f.deadline) }

// busy is true while a response of the type is on its way: the next one waits, so that
// what changes meanwhile becomes one response.
func (k *kind) busy(now time.Time) bool {
	for _, f := range k.flights {
		if !f.over(now) {
			return true
		}
	}
	return false
}

// emptyLoadAssignment answers for a cluster without endpoints: silence would hold the
// cluster, and the answer to all of CDS with it, until initial_fetch_timeout.
func emptyLoadAssignment(name string) *xds.Resource {
	return xds.NewResource(xds.Endpoint, name, &endpointv3.ClusterLoadAssignment{ClusterName: name})
}

// emptyRouteTable answers for a route table that does not exist. Telling Envoy so does
// not end the warming of its listener: it ignores removals of routes.
func emptyRouteTable(name string) *xds.Resource {
	return xds.NewResource(xds.Route, name, &routev3.RouteConfiguration{Name: name})
}
