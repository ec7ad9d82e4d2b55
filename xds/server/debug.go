package server

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"signalbox.dev/xds"
)

// ClientState is what /debug/xds shows of one connected Envoy.
type ClientState struct {
	Node           string               `json:"node"`    // node.id
	Cluster        string               `json:"cluster"` // node.cluster, as the Envoy says it
	Group          xds.Group            `json:"group"`   // the Gateway whose configuration it gets; empty: it waits for one
	Version        string               `json:"version"` // of Envoy
	Stream         string               `json:"stream"`  // "delta" or "state of the world"
	ConnectedSince time.Time            `json:"connectedSince"`
	Step           string               `json:"step"`
	Types          map[string]TypeState `json:"types"` // by short type name
}

// TypeState is what one Envoy has of one resource type. Versions are hashes of the
// names and versions of all its resources: equal ones mean equal states, also of two
// Envoys.
type TypeState struct {
	Subscribed    string     `json:"subscribed"` // "all", "named" or "no"
	Wanted        int        `json:"wanted"`     // resources that it should have, of those it asked for
	Sent          int        `json:"sent"`
	Acked         int        `json:"acked"`
	WantedVersion string     `json:"wantedVersion"`
	SentVersion   string     `json:"sentVersion"`
	AckedVersion  string     `json:"ackedVersion"`
	Unanswered    int        `json:"unanswered"` // responses
	LastSent      *time.Time `json:"lastSent,omitempty"`
	LastAck       *time.Time `json:"lastAck,omitempty"`
	LastNack      *time.Time `json:"lastNack,omitempty"`
	LastError     string     `json:"lastError,omitempty"`   // Envoy's words of the last NACK
	LastRefused   []string   `json:"lastRefused,omitempty"` // what was in it
	Refused       []string   `json:"refused,omitempty"`     // what is refused now
}

// Clients returns the connected Envoys, sorted by group and node.
func (s *Server) Clients() []ClientState {
	s.mu.Lock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	out := make([]ClientState, 0, len(streams))
	for _, st := range streams {
		out = append(out, st.state(time.Now()))
	}
	slices.SortFunc(out, func(a, b ClientState) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Node, b.Node), a.ConnectedSince.Compare(b.ConnectedSince))
	})
	return out
}

// Config returns what each group is to be served, sorted by type and name. Secrets are
// there by name and version, without their content.
func (s *Server) Config() map[xds.Group][]*xds.Resource {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[xds.Group][]*xds.Resource{}
	for name, g := range s.groups {
		list := []*xds.Resource{}
		for _, t := range xds.Types {
			of := make([]*xds.Resource, 0, len(g.target[t]))
			for _, r := range g.target[t] {
				if t == xds.Secret {
					hidden := *xds.NewResource(t, r.Name, &tlsv3.Secret{Name: r.Name})
					hidden.Version = r.Version
					r = &hidden
				}
				of = append(of, r)
			}
			slices.SortFunc(of, func(a, b *xds.Resource) int { return cmp.Compare(a.Name, b.Name) })
			list = append(list, of...)
		}
		out[name] = list
	}
	return out
}

func (st *stream) state(now time.Time) ClientState {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := ClientState{
		Node: st.node.GetId(), Cluster: st.node.GetCluster(), Group: st.group, Version: version(st.node),
		Stream: st.protocol(), ConnectedSince: st.since, Step: st.plan.where(now), Types: map[string]TypeState{},
	}
	for t, k := range st.plan.kinds {
		out.Types[t.Short()] = k.describe()
	}
	return out
}

// describe says what the Envoy has of a type.
func (k *kind) describe() TypeState {
	out := TypeState{Subscribed: "no", Unanswered: len(k.flights), LastError: k.lastError, LastRefused: k.lastRefused,
		LastSent: moment(k.lastSent), LastAck: moment(k.lastAck), LastNack: moment(k.lastNack)}
	switch {
	case k.wildcard:
		out.Subscribed = "all"
	case k.asked:
		out.Subscribed = "named"
	}
	out.Wanted, out.WantedVersion = k.digest(func(it *item) *xds.Resource { return it.want })
	out.Sent, out.SentVersion = k.digest(func(it *item) *xds.Resource { return it.sent })
	out.Acked, out.AckedVersion = k.digest(func(it *item) *xds.Resource { return it.acked })
	for _, it := range k.items {
		if it.refused {
			out.Refused = append(out.Refused, it.name)
		}
	}
	slices.Sort(out.Refused)
	return out
}

// digest counts and hashes one version of all resources that the Envoy asked for.
func (k *kind) digest(pick func(*item) *xds.Resource) (int, string) {
	var lines []string
	for _, it := range k.items {
		if r := pick(it); r != nil && it.interested() {
			lines = append(lines, it.name+"\x00"+r.Version+"\x00")
		}
	}
	if len(lines) == 0 {
		return 0, ""
	}
	slices.Sort(lines)
	sum := sha256.New()
	for _, l := range lines {
		_, _ = io.WriteString(sum, l)
	}
	return len(lines), hex.EncodeToString(sum.Sum(nil)[:12])
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// where names the step of the order table that the Envoy is in.
func (p *plan) where(now time.Time) string {
	moving := func(types ...xds.Type) bool {
		for _, t := range types {
			if k := p.kinds[t]; k.owed || len(k.dirty)+len(k.review)+len(k.staged) > 0 || k.busy(now) {
				return true
			}
		}
		return false
	}
	switch {
	case p.begun.IsZero():
		return "0 waits for a first translation and a Gateway"
	case moving(xds.Secret, xds.Cluster, xds.Endpoint):
		return "1 clusters: until they are warm"
	case moving(xds.Listener, xds.Route):
		return "2 listeners and routes: until they are taken"
	case len(p.behind) > 0:
		return "2 listeners and routes: not all were taken"
	case len(p.departures) > 0:
		return "3 linger: what is not needed any more still serves"
	}
	return "in sync"
}
