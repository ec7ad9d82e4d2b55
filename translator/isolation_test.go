package translator_test

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"signalbox.dev/source"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// TestOneObjectIsItsOwn: whatever becomes of one object, others get what they got. What
// that means for a kind is said by isolations.
func TestOneObjectIsItsOwn(t *testing.T) {
	all := goldens(t)
	m := newMutator(all)
	for _, kind := range slices.Sorted(maps.Keys(isolations)) {
		with := goldensWith(all, kind)
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				g := rapid.SampledFrom(with).Draw(t, "golden")
				one := rapid.SampledFrom(of(g.objects, kind)).Draw(t, "object")
				others := slices.DeleteFunc(slices.Clone(g.objects), func(o source.Object) bool { return source.RefOf(o) == source.RefOf(one) })
				c := comparison{one: source.RefOf(one), options: g.options.translator()}
				c.before = worldOf(translator.Translate(g.objects, c.options))
				c.without = worldOf(translator.Translate(others, c.options))
				c.after = c.without
				if rapid.IntRange(0, 4).Draw(t, "removed") > 0 {
					mutated := m.mutate(t, one)
					t.Logf("%s: %s", c.one, mustJSON(mutated))
					c.after = worldOf(translator.Translate(append(others, mutated), c.options))
				}
				for _, check := range isolations[kind] {
					if err := check(c); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

func of(objects []source.Object, kind source.Kind) []source.Object {
	return slices.DeleteFunc(slices.Clone(objects), func(o source.Object) bool { return source.RefOf(o).Kind != kind })
}

func goldensWith(all []*golden, kind source.Kind) []*golden {
	return slices.DeleteFunc(slices.Clone(all), func(g *golden) bool { return len(of(g.objects, kind)) == 0 })
}

// comparison is what to compare: before and after one object was changed or removed, and
// without it.
type comparison struct {
	one                    source.Ref
	options                translator.Options
	before, after, without *world
}

// isolations are, for a kind, what must not change when one object of it does. (What may
// change is for the goldens and the scripts to say.)
var isolations = map[source.Kind][]func(comparison) error{
	source.KindHTTPRoute: {
		sameResources(xds.Listener, xds.Secret), sharedResources(xds.Cluster, xds.Endpoint), othersOnlyCovered,
		sameStatuses(source.KindGatewayClass, source.KindHTTPRoute, source.KindGateway),
	},
	source.KindInferencePool: {
		sameResources(xds.Listener, xds.Secret), sameBut(xds.Cluster, ofPool), sameBut(xds.Endpoint, ofPool), sameEntriesBut(ofPool),
		sameStatuses(source.KindGatewayClass, source.KindGateway, source.KindInferencePool),
	},
	source.KindService: {
		sameResources(xds.Listener, xds.Secret), sameBut(xds.Cluster, ofServiceOrPicked), sameBut(xds.Endpoint, ofServiceOrPicked), sameEntriesBut(ofServiceOrPicked),
		sameStatuses(source.KindGatewayClass),
	},
	source.KindEndpointSlice: {
		sameResources(xds.Listener, xds.Secret, xds.Cluster), sameEntriesBut(ofServiceOrPicked),
		sameStatuses(source.KindGatewayClass, source.KindGateway, source.KindHTTPRoute),
	},
	source.KindPod: {
		// It may be a lost one behind the Service of a picker, whose addresses are in the pool's routes.
		sameResources(xds.Listener, xds.Secret, xds.Cluster), sameEntriesBut(ofServiceOrPicked),
		sameStatuses(source.KindGatewayClass, source.KindGateway, source.KindHTTPRoute, source.KindBackendTLSPolicy),
	},
	source.KindSecret: {
		sameResources(xds.Listener, xds.Cluster, xds.Endpoint, xds.Route), sameBut(xds.Secret, ofSecret),
		sameStatuses(source.KindGatewayClass, source.KindHTTPRoute, source.KindInferencePool, source.KindBackendTLSPolicy),
	},
	source.KindConfigMap: {
		unlessParameters(sameResources(xds.Listener, xds.Secret, xds.Endpoint)), sameBytesOfEntries,
		unlessParameters(sameStatuses(source.KindGatewayClass, source.KindGateway)),
	},
	source.KindBackendTLSPolicy: {
		sameResources(xds.Listener, xds.Secret, xds.Endpoint), sameEntriesBut(ofServiceOrPicked),
		sameStatuses(source.KindGatewayClass, source.KindGateway, source.KindHTTPRoute),
	},
	source.KindNamespace: {
		sameResources(xds.Listener, xds.Secret), sharedResources(xds.Cluster, xds.Endpoint), sameBytesOfEntries,
		sameStatuses(source.KindGatewayClass),
	},
	source.KindGateway: {
		otherGroups, sameStatuses(source.KindGatewayClass, source.KindGateway),
	},
}

// sameResources: not one byte of the types changes, and none comes or goes.
func sameResources(types ...xds.Type) func(comparison) error {
	return func(c comparison) error {
		for _, t := range types {
			if err := sameBut(t, func(comparison, []byte) bool { return false })(c); err != nil {
				return err
			}
		}
		return nil
	}
}

// sameBut: of the type only those change, come or go that mention the object.
func sameBut(typ xds.Type, mentions func(comparison, []byte) bool) func(comparison) error {
	return func(c comparison) error {
		for _, pair := range [][2]*world{{c.before, c.after}, {c.after, c.before}} {
			for p, r := range pair[0].resources {
				other := pair[1].resources[p]
				if p.Type == typ && (other == nil || other.Version != r.Version) && !mentions(c, r.Any.Value) {
					return fmt.Errorf("%s changes with %s", p, c.one)
				}
			}
		}
		return nil
	}
}

// sharedResources: those of the types that are there with and without the object are the
// same.
func sharedResources(types ...xds.Type) func(comparison) error {
	return func(c comparison) error {
		for p, r := range c.after.resources {
			if other := c.without.resources[p]; slices.Contains(types, p.Type) && other != nil && other.Version != r.Version {
				return fmt.Errorf("%s changes with %s", p, c.one)
			}
		}
		return nil
	}
}

// otherGroups: other Gateways' Envoys notice nothing, unless they share a host.
func otherGroups(c comparison) error {
	if c.options.OneHost {
		return nil
	}
	for p, r := range c.before.resources {
		if other := c.after.resources[p]; string(p.Group) != c.one.Namespace+"/"+c.one.Name && (other == nil || other.Version != r.Version) {
			return fmt.Errorf("%s changes with %s", p, c.one)
		}
	}
	return nil
}

// unlessParameters: a ConfigMap with a Gateway's parameters is part of the Gateway.
func unlessParameters(check func(comparison) error) func(comparison) error {
	return func(c comparison) error {
		if c.options.Provision {
			return nil
		}
		return check(c)
	}
}

func ofPool(c comparison, b []byte) bool {
	return bytes.Contains(b, []byte("pool/"+c.one.Namespace+"/"+c.one.Name))
}

// ofServiceOrPicked: it is the Service's, or of a pool whose picker may be behind it.
func ofServiceOrPicked(c comparison, b []byte) bool {
	return bytes.Contains(b, []byte("service/"+c.one.Namespace+"/")) || bytes.Contains(b, []byte("pool/"+c.one.Namespace+"/"))
}

func ofSecret(c comparison, b []byte) bool {
	return bytes.Contains(b, []byte("secret/"+c.one.Namespace+"/"+c.one.Name))
}

// sameStatuses: nothing else is said of the other objects of the kinds, but how many
// routes a listener has.
func sameStatuses(kinds ...source.Kind) func(comparison) error {
	return func(c comparison) error {
		for ref, s := range c.before.statuses {
			if !slices.Contains(kinds, ref.Kind) || ref == c.one {
				continue
			}
			other := c.after.statuses[ref]
			for _, s := range []*translator.Status{&s, &other} {
				if s.Gateway != nil {
					s.Gateway = s.Gateway.DeepCopy()
					for i := range s.Gateway.Listeners {
						s.Gateway.Listeners[i].AttachedRoutes = 0
					}
				}
				if s.Pool != nil && c.one.Kind == source.KindHTTPRoute {
					s.Pool = nil
				}
			}
			if !reflect.DeepEqual(s, other) && !(c.options.OneHost && c.one.Kind == source.KindGateway) {
				return fmt.Errorf("the status of %s changes with %s: %s", ref, c.one, mustJSON([]translator.Status{s, other}))
			}
		}
		return nil
	}
}

// list is the routes of a virtual host: those of a model, or of no model ("").
type list struct {
	table       place
	host, model string
}

// listed is one route of a list: its bytes without the base model's header, which says
// what other routes know of the model.
type listed struct {
	name  string
	bytes []byte
	match *routev3.RouteMatch
}

func (l listed) ofRoute(ref source.Ref) bool {
	return strings.HasPrefix(l.name, "httproute/"+ref.Namespace+"/"+ref.Name+"/")
}

// lists takes the world's route tables apart.
func (w *world) lists() map[list][]listed {
	out := map[list][]listed{}
	for p, r := range w.resources {
		if p.Type != xds.Route {
			continue
		}
		var rc routev3.RouteConfiguration
		if err := r.Any.UnmarshalTo(&rc); err != nil {
			panic(err)
		}
		for _, h := range rc.VirtualHosts {
			out[list{p, h.Domains[0], ""}] = takeApart(h.Routes)
			if h.Matcher == nil {
				continue
			}
			var routes routev3.RouteList
			if err := h.Matcher.OnNoMatch.GetAction().TypedConfig.UnmarshalTo(&routes); err != nil {
				panic(err)
			}
			out[list{p, h.Domains[0], ""}] = takeApart(routes.Routes)
			for model, on := range h.Matcher.GetMatcherTree().GetExactMatchMap().Map {
				var routes routev3.RouteList
				if err := on.GetAction().TypedConfig.UnmarshalTo(&routes); err != nil {
					panic(err)
				}
				out[list{p, h.Domains[0], model}] = takeApart(routes.Routes)
			}
		}
	}
	return out
}

func takeApart(routes []*routev3.Route) []listed {
	var out []listed
	for _, r := range routes {
		r.RequestHeadersToAdd = slices.DeleteFunc(r.RequestHeadersToAdd, func(h *corev3.HeaderValueOption) bool { return h.Header.Key == "x-gateway-base-model-name" })
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		if err != nil {
			panic(err)
		}
		out = append(out, listed{r.Name, b, r.Match})
	}
	return out
}

// sameEntriesBut: every list has the same routes in the same order, and only those change
// that mention the object.
func sameEntriesBut(mentions func(comparison, []byte) bool) func(comparison) error {
	return func(c comparison) error {
		before, after := c.before.lists(), c.after.lists()
		if len(before) != len(after) {
			return fmt.Errorf("%d lists of routes became %d", len(before), len(after))
		}
		for l, was := range before {
			is := after[l]
			if len(was) != len(is) {
				return fmt.Errorf("%v: %d routes became %d", l, len(was), len(is))
			}
			for i := range was {
				if was[i].name != is[i].name || !bytes.Equal(was[i].bytes, is[i].bytes) && !mentions(c, was[i].bytes) && !mentions(c, is[i].bytes) {
					return fmt.Errorf("%v: %s became %s", l, was[i].name, is[i].name)
				}
			}
		}
		return nil
	}
}

// sameBytesOfEntries: a route that is in a list before and after is the same.
func sameBytesOfEntries(c comparison) error {
	after := c.after.lists()
	for l, was := range c.before.lists() {
		for _, r := range was {
			i := slices.IndexFunc(after[l], func(x listed) bool { return x.name == r.name })
			if i >= 0 && !bytes.Equal(after[l][i].bytes, r.bytes) && !strings.HasPrefix(r.name, "signalbox/") && !ofServiceOrPicked(c, r.bytes) {
				return fmt.Errorf("%v: %s changes with %s", l, r.name, c.one)
			}
		}
	}
	return nil
}

// covers says whether a matches whatever b matches.
func covers(a, b *routev3.RouteMatch) bool {
	for _, h := range a.Headers {
		if !slices.ContainsFunc(b.Headers, func(x *routev3.HeaderMatcher) bool { return proto.Equal(h, x) }) {
			return false
		}
	}
	for _, q := range a.QueryParameters {
		if !slices.ContainsFunc(b.QueryParameters, func(x *routev3.QueryParameterMatcher) bool { return proto.Equal(q, x) }) {
			return false
		}
	}
	path := cmp.Or(b.GetPath(), b.GetPathSeparatedPrefix())
	switch {
	case a.GetPrefix() == "/":
		return true
	case a.GetPath() != "":
		return a.GetPath() == b.GetPath()
	case a.GetSafeRegex() != nil:
		return a.GetSafeRegex().GetRegex() == b.GetSafeRegex().GetRegex()
	}
	return path == a.GetPathSeparatedPrefix() || strings.HasPrefix(path, a.GetPathSeparatedPrefix()+"/")
}

// isIn says whether the route is in a table: one of its matches is, or it makes a host
// look at models, be it at none that is known.
func (c comparison) isIn(table place, after, without map[list][]listed) bool {
	answers := func(routes []listed) int {
		return len(slices.DeleteFunc(slices.Clone(routes), func(r listed) bool { return !strings.HasPrefix(r.name, "signalbox/") }))
	}
	for l, routes := range after {
		if l.table == table && (slices.ContainsFunc(routes, func(r listed) bool { return r.ofRoute(c.one) }) || answers(routes) != answers(without[l])) {
			return true
		}
	}
	return false
}

// othersOnlyCovered: beside an HTTPRoute, whatever it says, every list has the others'
// routes, in their order and unchanged, but for those that one of its own covers; and a
// table in which it has none is what it is without it, byte for byte.
func othersOnlyCovered(c comparison) error {
	after, without := c.after.lists(), c.without.lists()
	for p, r := range c.without.resources {
		if now := c.after.resources[p]; p.Type == xds.Route && !c.isIn(p, after, without) && (now == nil || now.Version != r.Version) {
			return fmt.Errorf("%s changes with %s, which is not in it", p, c.one)
		}
	}
	for l, was := range without {
		is := after[l]
		var mine []*routev3.RouteMatch // of its own, so far
		for _, r := range was {
			if strings.HasPrefix(r.name, "signalbox/") {
				continue // the answers to what nothing matches
			}
			for len(is) > 0 && (is[0].ofRoute(c.one) || strings.HasPrefix(is[0].name, "signalbox/")) {
				if is[0].ofRoute(c.one) {
					mine = append(mine, is[0].match)
				}
				is = is[1:]
			}
			switch {
			case len(is) > 0 && is[0].name == r.name:
				if !bytes.Equal(is[0].bytes, r.bytes) {
					return fmt.Errorf("%v: %s changes with %s", l, r.name, c.one)
				}
				is = is[1:]
			case !slices.ContainsFunc(mine, func(m *routev3.RouteMatch) bool { return covers(m, r.match) }):
				return fmt.Errorf("%v: %s is gone, and nothing of %s covers it", l, r.name, c.one)
			}
		}
		for _, r := range is {
			if !r.ofRoute(c.one) && !strings.HasPrefix(r.name, "signalbox/") {
				return fmt.Errorf("%v: %s is new or elsewhere with %s", l, r.name, c.one)
			}
		}
	}
	return nil
}
