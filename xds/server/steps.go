package server

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"signalbox.dev/xds"
)

// step is a row of the order table.
type step struct {
	number int
	typ    xds.Type
	remove bool
	// after is the type that must have nothing to send by the steps above, if any.
	after xds.Type
	// alone: one resource a response. Envoy's refusal of a route table or a secret
	// names nothing, so a response must not hold two (facts: envoy-routes §5).
	alone bool
}

// steps is the order in which an Envoy is moved (facts: envoy-routes §3). Whatever has
// something to send and is highest goes next; within a type one response is on its way
// at a time. What waits for what beyond that:
//
//   - from 1 to 2, plan.hold: a listener or route table waits until the clusters that it
//     names were sent and the CDS response is answered, Options.ClusterWait at most.
//     Envoy holds that answer back until the clusters are warm.
//   - step 3, plan.settle: a removal waits until the Envoy has taken every listener and
//     route table of the target that no longer has the resource, and then for
//     Options.Linger, as requests that filters hold still go to the old cluster.
//
// Endpoints and secrets wait for nothing. A removal is told only to who asked for all
// resources of a type (listeners and clusters, with Envoy): of named ones Envoy ignores
// removals, with an error in its log, and unsubscribes when their owner has gone.
var steps = [...]step{
	{number: 1, typ: xds.Secret, alone: true},
	{number: 1, typ: xds.Cluster},
	{number: 1, typ: xds.Endpoint},
	{number: 2, typ: xds.Listener},
	{number: 2, typ: xds.Route, after: xds.Listener, alone: true},
	{number: 4, typ: xds.Route, remove: true},
	{number: 4, typ: xds.Listener, remove: true, after: xds.Route},
	{number: 4, typ: xds.Cluster, remove: true, after: xds.Listener},
	{number: 4, typ: xds.Endpoint, remove: true, after: xds.Cluster},
	{number: 4, typ: xds.Secret, remove: true, after: xds.Cluster},
}

// next returns the response that the Envoy should get now, nil if there is none.
func (p *plan) next(now time.Time) *response {
	if p.begun.IsZero() {
		return nil
	}
	p.hold(now)
	p.settle(now)
	for _, s := range steps {
		k := p.kinds[s.typ]
		var r *response
		switch {
		case s.remove:
			r = p.removal(s, k, now)
		case k.open && !k.busy(now) && p.nothingBefore(s):
			r = p.upsert(s, k, now)
		}
		if r != nil {
			k.lastSent = now
			return r
		}
	}
	if !p.pending.IsZero() && p.converged() {
		p.news.converged = append(p.news.converged, now.Sub(p.pending))
		p.pending = time.Time{}
	}
	return nil
}

func (p *plan) nothingBefore(s step) bool { return s.after == "" || len(p.kinds[s.after].dirty) == 0 }

// upsert makes a response of what is new or changed.
func (p *plan) upsert(s step, k *kind, now time.Time) *response {
	if r := p.missing(k, now); r != nil {
		return r
	}
	if k.owed && k.gated() && (len(k.review)+len(k.staged) > 0 || !p.clustersAsked(now) || p.kinds[xds.Cluster].owed) {
		// The first answer is the whole state. In state of the world a part of it would
		// take the rest away from an Envoy that has reconnected.
		return nil
	}
	if len(k.dirty) == 0 && !k.owed {
		return nil
	}
	k.owed = false
	items := sorted(k.dirty)
	if s.alone && len(items) > 0 { // in turn: one that changes all the time must not starve others
		items = []*item{slices.MinFunc(items, func(a, b *item) int { return cmp.Compare(a.turn, b.turn) })}
	}
	f := k.launch(true)
	for _, it := range items {
		k.turn++
		it.sent, it.refused, it.turn = it.ready, false, k.turn
		f.entries = append(f.entries, entry{it, it.ready, it.readyAt})
		delete(k.dirty, it)
		p.lag(it)
	}
	if len(k.dirty) == 0 {
		k.dirty = map[*item]struct{}{} // an emptied map is as slow to walk as it was full
	}
	r := p.respond(k, f, items, nil)
	if k.typ == xds.Cluster {
		p.again(items)
		p.review = true
		p.hold(now) // before a newer target comes: see hold
	}
	return r
}

// launch notes that a response goes out.
func (k *kind) launch(upsert bool) *flight {
	if len(k.flights) == maxFlights {
		k.flights = k.flights[1:]
	}
	f := &flight{upsert: upsert}
	k.flights = append(k.flights, f)
	return f
}

// again sends the endpoints of clusters once more: Envoy drops a changed cluster's and
// does not ask for them (facts: envoy-routes §3).
func (p *plan) again(clusters []*item) {
	k := p.kinds[xds.Endpoint]
	for _, c := range clusters {
		it := k.items[c.name]
		if it == nil {
			continue
		}
		if it.sent = nil; it.ready == nil && it.named {
			it.ready = emptyLoadAssignment(it.name)
		}
		k.touch(it)
	}
}

// missing answers for names that were asked for, are not there and have not come for
// a while either. Silence could leave what needs them warming; an answer at once could
// be wrong a moment later.
func (p *plan) missing(k *kind, now time.Time) *response {
	var gone []*item
	for it, since := range k.unknown {
		if now.Before(since.Add(p.step)) {
			continue
		}
		delete(k.unknown, it)
		if k.typ == xds.Route {
			p.release(it, emptyRouteTable(it.name), p.epoch)
		} else {
			gone = append(gone, it)
		}
	}
	if len(gone) == 0 || p.sotw { // which cannot say it
		return nil
	}
	return p.respond(k, k.launch(false), nil, gone)
}

// removal makes a response of what is due to go; for named resources it just forgets.
func (p *plan) removal(s step, k *kind, now time.Time) *response {
	due := map[*item]struct{}{}
	oldest := p.outgoing(k)
	for _, d := range p.departures {
		if d.due.IsZero() || now.Before(d.due) || d.epoch > oldest {
			continue
		}
		for it := range d.items {
			if it.kind == k {
				due[it] = struct{}{}
			}
		}
	}
	if len(due) == 0 {
		return nil
	}
	if k.wildcard && (!k.open || k.busy(now) || s.after != "" && p.leaving(s.after, now)) {
		return nil
	}
	items := sorted(due)
	for _, it := range items {
		p.forget(it)
	}
	if !k.wildcard {
		return nil
	}
	return p.respond(k, k.launch(false), nil, items)
}

// outgoing returns the epoch of the oldest listener or table that is itself to go: it is
// in force until then, and may name what its last version named. Listeners and tables do
// not wait for each other so.
func (p *plan) outgoing(k *kind) uint64 {
	oldest := p.epoch
	if k.gated() {
		return oldest
	}
	for _, d := range p.departures {
		for it := range d.items {
			if it.kind.gated() && it.interested() {
				oldest = min(oldest, it.ackedAt)
			}
		}
	}
	return oldest
}

// leaving is true while removals of a type are due or on their way.
func (p *plan) leaving(t xds.Type, now time.Time) bool {
	k := p.kinds[t]
	if !k.wildcard {
		return false
	}
	for _, d := range p.departures {
		for it := range d.items {
			if it.kind == k && !d.due.IsZero() && !now.Before(d.due) {
				return true
			}
		}
	}
	return k.busy(now)
}

// forget ends a removal.
func (p *plan) forget(it *item) {
	p.stay(it)
	it.ready = nil
	it.kind.touch(it)
	if it.kind.wildcard {
		it.sent, it.acked = nil, nil
	}
	if !it.named {
		delete(it.kind.items, it.name)
	}
}

// converged is true when the Envoy has taken all that is wanted, or has refused it.
// Removals are not counted: they wait on purpose.
func (p *plan) converged() bool {
	for _, k := range p.kinds {
		if k.owed || len(k.dirty)+len(k.review)+len(k.staged)+len(k.flights) > 0 {
			return false
		}
	}
	return p.kinds[xds.Cluster].asked
}

// deadline returns when next should be asked again although nothing happened; zero:
// never.
func (p *plan) deadline(now time.Time) time.Time {
	var first time.Time
	at := func(t time.Time) {
		if !t.IsZero() && t.After(now) && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if p.begun.IsZero() {
		return first
	}
	if !p.kinds[xds.Cluster].asked {
		at(p.begun.Add(p.cluster))
	}
	for _, d := range p.departures {
		at(d.due)
	}
	for _, k := range p.kinds {
		for _, f := range k.flights {
			at(f.deadline)
		}
		for _, since := range k.unknown {
			at(since.Add(p.step))
		}
	}
	return first
}

func sorted(items map[*item]struct{}) []*item {
	return slices.SortedFunc(maps.Keys(items), func(a, b *item) int { return cmp.Compare(a.name, b.name) })
}
