package translator

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// routeTable puts the RouteConfiguration of a listener, or of all HTTP listeners of a
// port, together from the entries of all routes.
func (t *tables) routeTable(r *incr.Reads, x key, gateways []key) (*xds.Resource, bool) {
	_, name := splitGroup(x)
	gateway, ok := t.gatewayRows.Get(r, gateways[0]) // a group is one Gateway's
	if !ok {
		return nil, false
	}
	table := newTable(name, gateway)
	for _, k := range t.routesByTable.Keys(r, x) {
		row, _ := t.routeRows.Get(r, k)
		entries := row.Entries[x]
		for i := range entries {
			table.add(&entries[i])
		}
	}
	return xds.NewRawResource(xds.Route, name, table.marshal()), true
}

// hostTable is a RouteConfiguration in the making.
type hostTable struct {
	name string
	// listeners are those that share the port, also of other tables: each host is of the
	// most specific listener that takes it, and no other listener's routes are tried
	// (GatewayHTTPListenerIsolation).
	listeners []listenerRow
	entries   map[listenedHost][]*entry
	domains   map[string]bool
	owners    map[string]*listenerRow // by domain, as far as asked
}

// listenedHost is a domain and the listener through which it is reached.
type listenedHost struct{ listener, host string }

func newTable(name string, gateway gatewayRow) *hostTable {
	t := &hostTable{name: name, entries: map[listenedHost][]*entry{}, domains: map[string]bool{}, owners: map[string]*listenerRow{}}
	own := slices.IndexFunc(gateway.Listeners, func(l listenerRow) bool { return l.RouteConfig == name })
	for _, l := range gateway.Listeners {
		if own >= 0 && l.RouteConfig != "" && l.Bound == gateway.Listeners[own].Bound {
			t.listeners = append(t.listeners, l)
			t.domains[l.Hostname] = true
		}
	}
	return t
}

// add adds an entry, unless its host is another listener's: nothing reaches it then.
func (t *hostTable) add(e *entry) {
	if l := t.owner(e.Host); l == nil || l.Name != e.Listener {
		return
	}
	k := listenedHost{e.Listener, e.Host}
	t.entries[k] = append(t.entries[k], e)
	t.domains[e.Host] = true
}

// hosts returns the virtual hosts, by domain.
func (t *hostTable) hosts() []virtualHost {
	var out []virtualHost
	for _, domain := range slices.Sorted(maps.Keys(t.domains)) {
		l := t.owner(domain)
		switch {
		case l == nil:
		case l.RouteConfig != t.name:
			out = append(out, virtualHost{name: "misdirected/" + domainName(domain), domain: domainName(domain), plain: []listed{{envoyRoute: misdirected}}})
		default:
			out = append(out, newHost(domainName(domain), t.of(l.Name, domain)))
		}
	}
	return out
}

// owner returns the most specific listener that takes all of a domain: the one of its
// very hostname, else the one of the longest wildcard, else the one without a hostname.
func (t *hostTable) owner(domain string) *listenerRow {
	if l, asked := t.owners[domain]; asked {
		return l
	}
	var best *listenerRow
	for i, l := range t.listeners {
		if covers(l.Hostname, domain) && (best == nil || l.Hostname == domain || best.Hostname != domain && len(l.Hostname) > len(best.Hostname)) {
			best = &t.listeners[i]
		}
	}
	t.owners[domain] = best
	return best
}

// covers says whether a listener's hostname takes every host of a domain. A wildcard
// takes any number of labels, but not the bare domain.
func covers(hostname, domain string) bool {
	suffix, wild := strings.CutPrefix(hostname, "*")
	return hostname == "" || hostname == domain || wild && strings.HasSuffix(domain, suffix) && domain != suffix
}

// of returns a listener's entries that can match requests for a domain, sorted. Those of
// wider domains are among them: what a route with the very hostname does not match falls
// through to them, while Envoy looks into one virtual host only.
func (t *hostTable) of(listener, domain string) []*entry {
	out := slices.Clone(t.entries[listenedHost{listener, domain}])
	for wider, ok := parentDomain(domain); ok; wider, ok = parentDomain(wider) {
		out = append(out, t.entries[listenedHost{listener, wider}]...)
	}
	slices.SortFunc(out, func(a, b *entry) int { return a.Precedence.compare(&b.Precedence) })
	return out
}

// parentDomain returns the next wider domain: a.b.c, *.b.c, *.c, "".
func parentDomain(domain string) (string, bool) {
	if domain == "" {
		return "", false
	}
	rest := strings.TrimPrefix(domain, "*.")
	if i := strings.IndexByte(rest, '.'); i >= 0 {
		return "*" + rest[i:], true
	}
	return "", true
}

// domainName returns a domain as Envoy writes it.
func domainName(domain string) string { return cmp.Or(domain, "*") }

// virtualHost is one virtual host in the making.
type virtualHost struct {
	name, domain string
	// plain are the routes for every model and none.
	plain []listed
	// models has the routes for each model that a rule names, plain's merged in, so that
	// looking a model up costs the same however many there are (facts: envoy-routes §1).
	models map[string][]listed
	// extract is true if a rule looks at a model: the extractor runs here.
	extract bool
}

// listed is a route in the list of a host or model.
type listed struct {
	*envoyRoute
	base string // the base model to tell the backend; "" if it is not known
}

// newHost sorts out the entries of a domain, which are in their order of precedence.
func newHost(domain string, entries []*entry) virtualHost {
	h := virtualHost{name: domain, domain: domain}
	var plain []*entry
	byModel := map[string][]*entry{}
	for _, e := range entries {
		h.extract = h.extract || e.AnyModel
		if !e.ForModels {
			plain = append(plain, e)
		}
		for _, m := range e.Models {
			byModel[m.Name] = append(byModel[m.Name], e)
		}
	}
	if !h.extract {
		h.plain = prune(listAll("", plain))
		return h
	}
	h.plain = prune(append(listAll("", plain), catchAll...))
	h.models = make(map[string][]listed, len(byModel))
	for model, own := range byModel {
		h.models[model] = prune(append(listAll(model, merge(own, plain)), catchUnmatched))
	}
	return h
}

// merge merges two sorted lists.
func merge(a, b []*entry) []*entry {
	out := make([]*entry, 0, len(a)+len(b)+1)
	for len(a) > 0 && len(b) > 0 {
		if a[0].Precedence.compare(&b[0].Precedence) < 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// listAll makes the list of a model, or of none. What the base of the model is, each
// route's own namespace says; the routes that are for the model know it.
func listAll(model string, entries []*entry) []listed {
	var bases map[string]string // by namespace; mostly there are none
	for _, e := range entries {
		i, ok := slices.BinarySearchFunc(e.Models, model, func(m modelName, name string) int { return strings.Compare(m.Name, name) })
		if !ok || e.Models[i].Base == "" {
			continue
		}
		if bases == nil {
			bases = map[string]string{}
		}
		bases[e.Namespace] = e.Models[i].Base
	}
	out := make([]listed, 0, len(entries)+len(catchAll))
	for _, e := range entries {
		base := bases[e.Namespace]
		if e.OwnsBase {
			base = ""
		}
		out = append(out, listed{e.envoyRoute, base})
	}
	return out
}

// prune leaves out what an earlier route covers: it can never match.
func prune(in []listed) []listed {
	kept := make(map[string]bool, len(in))
	return slices.DeleteFunc(in, func(l listed) bool {
		if slices.ContainsFunc(l.Shape.CoveredBy, func(k string) bool { return kept[k] }) {
			return true
		}
		kept[l.Shape.Key] = true
		return false
	})
}
