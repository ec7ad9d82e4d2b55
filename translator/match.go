package translator

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/extproc/contract"
)

// precedence orders the entries of a virtual host as the spec says (hostname:
// GatewayRouteHostnameIntersectionPrecedence; match: HTTPRouteRule.matches). Of regular
// expressions the spec says nothing: here they come after exact paths and before
// prefixes, longer expressions first, since whoever writes one beside "/" means it.
type precedence struct {
	// Host is the route's own hostname, not the intersection with the listener's.
	HostExact, HostWild int // characters, of one without and of one with a wildcard
	Path                pathKind
	PathLen             int
	Method              bool
	Headers, Queries    int
	Created             time.Time // zero where there is none (files)
	Route               key
	Rule, Match         int
}

// pathKind is a kind of path match, in the order of precedence.
type pathKind int

const (
	pathExact pathKind = iota
	pathRegex
	pathPrefix
)

// compare is negative if p goes before q.
func (p *precedence) compare(q *precedence) int {
	if c := cmp.Or(cmp.Compare(q.HostExact, p.HostExact), cmp.Compare(q.HostWild, p.HostWild),
		cmp.Compare(p.Path, q.Path), cmp.Compare(q.PathLen, p.PathLen)); c != 0 {
		return c
	}
	if p.Method != q.Method {
		if p.Method {
			return -1
		}
		return 1
	}
	if c := cmp.Or(cmp.Compare(q.Headers, p.Headers), cmp.Compare(q.Queries, p.Queries)); c != 0 {
		return c
	}
	return cmp.Or(p.Created.Compare(q.Created), strings.Compare(string(p.Route), string(q.Route)),
		cmp.Compare(p.Rule, q.Rule), cmp.Compare(p.Match, q.Match))
}

// ofHost sets the part of the precedence that a route's own hostname decides.
func (p precedence) ofHost(hostname string) precedence {
	if strings.HasPrefix(hostname, "*") {
		p.HostWild = len(hostname)
	} else {
		p.HostExact = len(hostname)
	}
	return p
}

// match is one HTTPRoute match.
type match struct {
	Envoy *routev3.RouteMatch // without the model headers that Model stands for
	// Precedence lacks host, age and place.
	Precedence precedence
	Model      modelDemand
	AnyModel   bool // it looks at a model header at all
	Shape      shape
}

// parseMatch translates a match. An error says, as a sentence without its subject, what
// Envoy would refuse or never match.
func parseMatch(m gatewayv1.HTTPRouteMatch) (match, error) {
	out := match{Envoy: &routev3.RouteMatch{}}
	if err := out.path(ptr.Deref(m.Path, gatewayv1.HTTPPathMatch{})); err != nil {
		return out, err
	}
	if m.Method != nil {
		out.Precedence.Method = true
		out.header(":method", exact(string(*m.Method)))
	}
	seen := map[string]bool{}
	for _, h := range m.Headers {
		name := strings.ToLower(string(h.Name))
		if seen[name] {
			continue // of equivalent names only the first counts (HTTPHeaderMatch.name)
		}
		seen[name] = true
		if err := out.headerMatch(name, h); err != nil {
			return out, err
		}
	}
	clear(seen)
	for _, q := range m.QueryParams {
		if seen[string(q.Name)] {
			continue // likewise (HTTPQueryParamMatch.name)
		}
		seen[string(q.Name)] = true
		if err := out.query(q); err != nil {
			return out, err
		}
	}
	out.Shape.finish()
	return out, nil
}

func (m *match) path(p gatewayv1.HTTPPathMatch) error {
	value := ptr.Deref(p.Value, "/")
	switch typ := ptr.Deref(p.Type, gatewayv1.PathMatchPathPrefix); typ {
	case gatewayv1.PathMatchExact:
		if err := checkPath(value); err != nil {
			return err
		}
		m.Envoy.PathSpecifier = &routev3.RouteMatch_Path{Path: value}
		m.Precedence.Path, m.Precedence.PathLen = pathExact, len(value)
	case gatewayv1.PathMatchPathPrefix:
		if err := checkPath(value); err != nil {
			return err
		}
		// Prefixes match by element, a trailing slash does not count.
		if value = strings.TrimRight(value, "/"); value == "" {
			m.Envoy.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
		} else {
			m.Envoy.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: value}
		}
		m.Precedence.Path, m.Precedence.PathLen = pathPrefix, len(value)
	case gatewayv1.PathMatchRegularExpression:
		if err := checkRegex(value); err != nil {
			return fmt.Errorf("path %q %w", value, err)
		}
		m.Envoy.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: value}}
		m.Precedence.Path, m.Precedence.PathLen = pathRegex, len(value)
	default:
		return fmt.Errorf("path match of type %q is not supported; use Exact, PathPrefix or RegularExpression", typ)
	}
	m.Shape.path, m.Shape.kind = value, m.Precedence.Path
	return nil
}

func (m *match) headerMatch(name string, h gatewayv1.HTTPHeaderMatch) error {
	m.Precedence.Headers++
	if err := checkHeaderName(name); err != nil {
		return err
	}
	if !utf8.ValidString(h.Value) {
		return fmt.Errorf("header %s: %q is not UTF-8", name, h.Value)
	}
	typ := ptr.Deref(h.Type, gatewayv1.HeaderMatchExact)
	m.AnyModel = m.AnyModel || name == contract.HeaderModel || name == contract.HeaderBaseModel
	switch {
	case typ == gatewayv1.HeaderMatchExact && name == contract.HeaderModel:
		m.Model.Exact = h.Value
	case typ == gatewayv1.HeaderMatchExact && name == contract.HeaderBaseModel:
		m.Model.Base = h.Value
	case typ == gatewayv1.HeaderMatchExact:
		m.header(name, exact(h.Value))
	case typ != gatewayv1.HeaderMatchRegularExpression:
		return fmt.Errorf("header match of type %q is not supported; use Exact or RegularExpression", typ)
	default:
		if err := checkRegex(h.Value); err != nil {
			return fmt.Errorf("header %s: %q %w", name, h.Value, err)
		}
		if name == contract.HeaderBaseModel {
			// The base is known to the translator alone, so it is matched here.
			if _, err := regexp.Compile(h.Value); err != nil {
				return fmt.Errorf("header %s: %q is not a regular expression: %w", name, h.Value, err)
			}
			m.Model.BaseRegex = h.Value
		} else {
			m.header(name, regex(h.Value))
		}
	}
	return nil
}

func (m *match) query(q gatewayv1.HTTPQueryParamMatch) error {
	m.Precedence.Queries++
	s := exact(q.Value)
	switch typ := ptr.Deref(q.Type, gatewayv1.QueryParamMatchExact); typ {
	case gatewayv1.QueryParamMatchExact:
	case gatewayv1.QueryParamMatchRegularExpression:
		if err := checkRegex(q.Value); err != nil {
			return fmt.Errorf("query parameter %s: %q %w", q.Name, q.Value, err)
		}
		s = regex(q.Value)
	default:
		return fmt.Errorf("query parameter match of type %q is not supported; use Exact or RegularExpression", typ)
	}
	m.Envoy.QueryParameters = append(m.Envoy.QueryParameters, &routev3.QueryParameterMatcher{
		Name: string(q.Name), QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: s},
	})
	m.Shape.add("query", string(q.Name), s)
	return nil
}

func (m *match) header(name string, s *matcherv3.StringMatcher) {
	m.Envoy.Headers = append(m.Envoy.Headers, &routev3.HeaderMatcher{
		Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: s},
	})
	m.Shape.add("header", name, s)
}

func exact(v string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: v}}
}

// regex matches the whole value, as Envoy's string matcher does.
func regex(v string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: v}}}
}

// shape is a match as something that can be looked up: whether one covers another, so
// that the later of the two never matches, is one set membership.
type shape struct {
	kind       pathKind
	path       string
	conditions []string
	// Key is equal for matches that match the same requests (the model apart).
	Key string
	// CoveredBy lists the keys of matches that match at least what this one matches:
	// all of them, as far as paths go; of the subsets of its conditions all if there are
	// few, else none, each one, and all.
	CoveredBy []string
}

func (s *shape) add(what, name string, m *matcherv3.StringMatcher) {
	kind, value := "=", m.GetExact()
	if re := m.GetSafeRegex(); re != nil {
		kind, value = "~", re.Regex
	}
	s.conditions = append(s.conditions, fmt.Sprintf("%s %s %s %q", what, name, kind, value))
}

// maxSubsets bounds CoveredBy: so many conditions have 16 subsets.
const maxSubsets = 4

func (s *shape) finish() {
	slices.Sort(s.conditions)
	var subsets []string
	if n := len(s.conditions); n <= maxSubsets {
		for bits := range 1 << n {
			var subset []string
			for i, c := range s.conditions {
				if bits&(1<<i) != 0 {
					subset = append(subset, c)
				}
			}
			subsets = append(subsets, strings.Join(subset, "\n"))
		}
	} else {
		subsets = append(append(subsets, ""), s.conditions...)
		subsets = append(subsets, strings.Join(s.conditions, "\n"))
	}
	paths := s.wider()
	for _, p := range paths {
		for _, c := range subsets {
			s.CoveredBy = append(s.CoveredBy, p+"\n"+c)
		}
	}
	s.Key = paths[len(paths)-1] + "\n" + strings.Join(s.conditions, "\n")
}

// wider returns the paths that match at least what the path matches, itself last.
func (s *shape) wider() []string {
	const prefix, root = "prefix ", "prefix /"
	switch s.kind {
	case pathRegex:
		return []string{root, "regex " + s.path}
	case pathExact:
		return append(append([]string{root}, ancestors(prefix, s.path)...), "exact "+s.path)
	default:
		if s.path == "" {
			return []string{root}
		}
		return append([]string{root}, ancestors(prefix, s.path)...)
	}
}

// ancestors returns the prefixes by element that match a path, the longest last.
func ancestors(label, path string) []string {
	var out []string
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			out = append(out, label+path[:i])
		}
	}
	if p := strings.TrimSuffix(path, "/"); p == path && p != "" {
		out = append(out, label+p)
	}
	return out
}
