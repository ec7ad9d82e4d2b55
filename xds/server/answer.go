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
	answered := k.flights[i : i+1]
	if p.sotw {
		answered = k.flights[:i+1] // Envoy answers only the last of several (facts: envoy-routes §3)
	}
	entries := map[*item]entry{}
	for _, f := range answered {
		for _, e := range f.entries {
			entries[e.it] = e
		}
	}
	k.flights = slices.Delete(k.flights, i+1-len(answered), i+1)
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
