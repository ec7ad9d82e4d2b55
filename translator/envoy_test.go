package translator

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"signalbox.dev/source"
	"signalbox.dev/xds"
)

// fataler is what of testing.T and rapid.T the helpers below need.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// tablesOf translates objects and returns the RouteConfigurations by name. Each must be
// valid and the very bytes that marshalling it would give.
func tablesOf(t fataler, objects []source.Object) map[string]*routev3.RouteConfiguration {
	t.Helper()
	out := map[string]*routev3.RouteConfiguration{}
	for _, c := range Translate(objects, Options{ExtProc: "127.0.0.1:9004"}).Resources {
		if c.Type != xds.Route {
			continue
		}
		rc := &routev3.RouteConfiguration{}
		if err := c.Resource.Any.UnmarshalTo(rc); err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		if err := rc.ValidateAll(); err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(rc)
		if err != nil {
			t.Fatal(err)
		}
		if string(again) != string(c.Resource.Any.Value) {
			t.Fatalf("%s: the spliced bytes are not those of marshalling: %d and %d bytes", c.Name, len(c.Resource.Any.Value), len(again))
		}
		out[c.Name] = rc
	}
	return out
}

// choose does what Envoy does with a request: the name of the route, "" for none.
func choose(rc *routev3.RouteConfiguration, rq request) string {
	if r := chooseRoute(rc, rq); r != nil {
		return r.Name
	}
	return ""
}

func chooseRoute(rc *routev3.RouteConfiguration, rq request) *routev3.Route {
	var host *routev3.VirtualHost
	best := -1
	for _, h := range rc.GetVirtualHosts() {
		for _, d := range h.Domains {
			n := len(d)
			if d == rq.host {
				n += 1000 // a domain without a wildcard goes first, however short
			} else if d != "*" && !hostMatches(d, rq.host) {
				continue
			}
			if n > best {
				host, best = h, n
			}
		}
	}
	if host == nil {
		return nil
	}
	routes := host.Routes
	if m := host.Matcher; m != nil {
		on := m.OnNoMatch
		if found, ok := m.GetMatcherTree().GetExactMatchMap().Map[rq.model]; ok {
			on = found
		}
		var list routev3.RouteList
		if err := on.GetAction().GetTypedConfig().UnmarshalTo(&list); err != nil {
			panic(err)
		}
		routes = list.Routes
	}
	for _, r := range routes {
		if routeMatches(r.Match, rq) {
			return r
		}
	}
	return nil
}

func routeMatches(m *routev3.RouteMatch, rq request) bool {
	switch p := m.PathSpecifier.(type) {
	case *routev3.RouteMatch_Path:
		if rq.path != p.Path {
			return false
		}
	case *routev3.RouteMatch_Prefix:
		if !strings.HasPrefix(rq.path, p.Prefix) {
			return false
		}
	case *routev3.RouteMatch_PathSeparatedPrefix:
		if rq.path != p.PathSeparatedPrefix && !strings.HasPrefix(rq.path, p.PathSeparatedPrefix+"/") {
			return false
		}
	case *routev3.RouteMatch_SafeRegex:
		if !whole(p.SafeRegex.Regex, rq.path) {
			return false
		}
	}
	have := map[string]string{":method": rq.method, "x": rq.x, "x-gateway-model-name": rq.model}
	for _, h := range m.Headers {
		if v := have[h.Name]; v == "" || !stringMatches(h.GetStringMatch(), v) {
			return false
		}
	}
	for _, q := range m.QueryParameters {
		if rq.query == "" || !stringMatches(q.GetStringMatch(), rq.query) {
			return false
		}
	}
	return true
}

func stringMatches(m *matcherv3.StringMatcher, v string) bool {
	if re := m.GetSafeRegex(); re != nil {
		return whole(re.Regex, v)
	}
	return m.GetExact() == v
}
