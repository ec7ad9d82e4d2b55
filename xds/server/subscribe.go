package server

import (
	"time"

	"signalbox.dev/xds"
)

// subscription is what one request says about what the Envoy wants of a type.
type subscription struct {
	wildcard    bool
	add, remove []string
	// held are the versions that the Envoy has from an earlier stream, by name; the
	// version is empty where the protocol does not say it (state of the world).
	held map[string]string
}

// subscribe notes what the Envoy wants.
func (p *plan) subscribe(k *kind, s subscription, now time.Time) {
	first := !k.asked
	k.asked = true
	p.review = true
	if first {
		p.holds(k, s.held)
		k.owed = s.wildcard && len(s.held) == 0
	}
	if k.wildcard != s.wildcard {
		k.wildcard = s.wildcard
		for _, it := range k.items {
			p.interest(it, now)
		}
	}
	for _, name := range s.add {
		it := k.item(name)
		it.named = true
		if _, held := s.held[name]; !first || !held {
			it.sent = nil // asked again: Envoy has forgotten it
		}
		p.interest(it, now)
	}
	for _, name := range s.remove {
		if it := k.items[name]; it != nil && it.named {
			p.unsubscribe(it)
		}
	}
}

// holds notes what the Envoy has from an earlier stream. It took those versions, so it
// is told as an answer of its: after a restart of the control plane nothing is sent,
// and there is no other.
func (p *plan) holds(k *kind, held map[string]string) {
	versions := map[string]string{}
	for name, version := range held {
		it := k.item(name)
		r := &xds.Resource{Type: k.typ, Name: name, Version: version}
		if it.want != nil && it.want.Version == version {
			r = it.want
		}
		it.sent, it.acked, it.ackedAt = r, r, 0
		if version != "" {
			versions[name] = version
		}
	}
	if len(versions) > 0 {
		p.news.acks = append(p.news.acks, xds.Ack{Type: k.typ, Versions: versions})
	}
}

// interest brings an item to where it belongs after the Envoy's interest in it, or the
// target, has changed. Before the target is known there is nothing to say.
func (p *plan) interest(it *item, now time.Time) {
	if p.begun.IsZero() {
		return
	}
	k := it.kind
	switch {
	case it.want != nil && k.gated():
		if it.interested() && !same(it.ready, it.want) {
			k.review[it] = struct{}{}
		}
	case it.want == nil && it.sent != nil:
		p.leave(it)
	case it.want == nil && it.ready == nil && it.named && k.typ == xds.Endpoint:
		it.ready = emptyLoadAssignment(it.name)
	case it.want == nil && it.ready == nil && it.named:
		k.unknown[it] = now
	}
	k.touch(it)
	p.lag(it)
}

// unsubscribe forgets what the Envoy had of an item: it has dropped it.
func (p *plan) unsubscribe(it *item) {
	k := it.kind
	it.named = false
	if k.wildcard {
		return
	}
	it.sent, it.acked, it.staged, it.refused = nil, nil, nil, false
	if it.ready = it.want; k.gated() {
		it.ready = nil
	}
	delete(k.review, it)
	delete(k.staged, it)
	delete(k.unknown, it)
	k.touch(it)
	p.lag(it)
	if it.want == nil {
		p.stay(it)
		delete(k.items, it.name)
	}
}

// subscribeAll is subscribe for state of the world, where a request lists every name.
func (p *plan) subscribeAll(k *kind, wildcard bool, names map[string]struct{}, reconnected bool, now time.Time) {
	s := subscription{wildcard: wildcard}
	for name := range names {
		if it := k.items[name]; it == nil || !it.named {
			s.add = append(s.add, name)
		}
	}
	for name, it := range k.items {
		if _, ok := names[name]; it.named && !ok {
			s.remove = append(s.remove, name)
		}
	}
	if !k.asked && reconnected {
		s.held = map[string]string{}
		for name := range names {
			s.held[name] = ""
		}
	}
	p.subscribe(k, s, now)
}
