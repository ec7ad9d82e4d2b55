package server

import (
	"slices"
	"strings"
	"time"

	"signalbox.dev/xds"
)

// maxFlights bounds what is remembered of responses that an Envoy never answers.
const maxFlights = 64

// answer notes an ACK, or with words a NACK. It returns false for a nonce that waits
// for no answer: a request that only subscribes, or an answer that came twice.
func (p *plan) answer(k *kind, nonce, words string, now time.Time) bool {
	i := slices.IndexFunc(k.flights, func(f *flight) bool { return nonce != "" && f.nonce == nonce })
	if i < 0 {
		return false
	}
	entries := map[*item]entry{}
	for _, e := range k.flights[i].entries {
		entries[e.it] = e
	}
	first := i
	if p.sotw {
		first = 0
		p.skipped(k, k.flights[:i], entries)
	}
	k.flights = slices.Delete(k.flights, first, i+1)
	p.review = true

	good, bad := map[string]string{}, map[string]string{}
	blamed := offenders(k.typ, words, entries)
	for it, e := range entries {
		if words != "" && (blamed == nil || blamed[it]) {
			bad[it.name] = e.res.Version
			it.refused = it.refused || it.sent == e.res
		} else {
			good[it.name] = e.res.Version
			it.acked, it.ackedAt = e.res, e.epoch
			it.refused = it.refused && it.sent != e.res
		}
		p.lag(it)
	}
	p.report(k, words, good, bad, now)
	return true
}

// skipped handles responses that a state-of-the-world Envoy passed over: of several it
// may answer only the last (facts: envoy-routes §3). Where a response is the whole
// state, that answer is about all of it. Where it is a part, nobody knows what became
// of the earlier parts, so they are sent again.
func (p *plan) skipped(k *kind, flights []*flight, answered map[*item]entry) {
	for _, f := range slices.Backward(flights) {
		for _, e := range f.entries {
			if _, ok := answered[e.it]; ok {
				continue
			}
			if k.wildcard {
				answered[e.it] = e
			} else if e.it.sent == e.res {
				e.it.sent = nil
				k.touch(e.it)
				p.lag(e.it)
			}
		}
	}
}

// report tells an answer: as a refusal what Envoy's words are about, as an ACK the rest.
func (p *plan) report(k *kind, words string, good, bad map[string]string, now time.Time) {
	if words != "" {
		k.lastNack, k.lastError, k.lastRefused = now, words, nil
		for name := range bad {
			k.lastRefused = append(k.lastRefused, name)
		}
		slices.Sort(k.lastRefused)
		p.news.acks = append(p.news.acks, xds.Ack{Type: k.typ, Versions: bad, Error: words})
	} else {
		k.lastAck = now
	}
	if len(good) > 0 {
		p.news.acks = append(p.news.acks, xds.Ack{Type: k.typ, Versions: good})
	}
}

// offenders finds the resources that Envoy's words are about: for clusters and listeners
// "Error adding/updating cluster(s) NAME: …, NAME: …"; the others of that response it
// has applied. nil: it cannot be told, so all count as refused.
func offenders(t xds.Type, words string, entries map[*item]entry) map[*item]bool {
	if t != xds.Cluster && t != xds.Listener || !strings.HasPrefix(words, "Error adding/updating ") || strings.HasSuffix(words, "...(truncated)") {
		return nil
	}
	var found map[*item]bool
	for it := range entries {
		if strings.Contains(words, " "+it.name+": ") {
			if found == nil {
				found = map[*item]bool{}
			}
			found[it] = true
		}
	}
	return found
}
