package e2e

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
)

// This file is a reading of Gateway API's text: which rule does a request belong to? It
// knows no tables and no Envoy, and tries every match of every route. The text is quoted.

type specWorld struct {
	version   int
	listeners []string // hostnames; "": any
	routes    []specRoute
	aged      bool // routes have a creationTimestamp
}

type specRoute struct {
	namespace, name string
	age             int // seconds; larger is younger
	hostnames       []string
	section         int // index of the one listener that it attaches to; -1: all
	rules           [][]specMatch
}

type specMatch struct {
	path             string
	pathType         string // "": no path
	method           string
	headers, queries []specValue
}

type specValue struct {
	name, value string
	regex       bool
}

// specBases says which model has which base, as the ConfigMaps of worlds do.
var specBases = map[string]string{"base": "base", "lora-1": "base", "lora-2": "base", "other": "other"}

// candidate is a match that a request meets.
type candidate struct {
	route              specRoute
	rule, match        int
	exactHost, anyHost int
	m                  specMatch
}

// read returns "namespace/name/rule" of the rule that a request belongs to, and by which
// of specOrder it took precedence over the next; "" if there is no rule, or no next.
func (w specWorld) read(rq specRequest) (rule, decided string) {
	host, _, _ := strings.Cut(strings.ToLower(rq.host), ":")
	listener := w.listener(host)
	var found []candidate
	for _, route := range w.routes {
		if listener < 0 || route.section >= 0 && route.section != listener {
			continue
		}
		exact, longest, ok := route.hostname(host)
		if !ok {
			continue
		}
		for i, rule := range route.rules {
			for j, m := range rule {
				if m.meets(rq) {
					found = append(found, candidate{route, i, j, exact, longest, m})
				}
			}
		}
	}
	if len(found) == 0 {
		return "", ""
	}
	slices.SortFunc(found, func(a, b candidate) int { return cmp.Or(w.compare(a, b)...) })
	best := found[0]
	if len(found) > 1 {
		decided = specOrder[slices.IndexFunc(w.compare(best, found[1]), func(c int) bool { return c != 0 })]
	}
	return fmt.Sprintf("%s/%s/%d", best.route.namespace, best.route.name, best.rule), decided
}

// listener: "requests SHOULD be matched against at most one Listener", "the most specific
// match": exact before wildcard, of wildcards the longest, then the one without hostname.
func (w specWorld) listener(host string) int {
	best := -1
	rank := func(i int) (exact, length int) {
		if !strings.HasPrefix(w.listeners[i], "*") && w.listeners[i] != "" {
			exact = 1
		}
		return exact, len(w.listeners[i])
	}
	for i, pattern := range w.listeners {
		if !specHost(pattern, host) {
			continue
		}
		if best >= 0 {
			e, l := rank(i)
			be, bl := rank(best)
			if cmp.Or(cmp.Compare(be, e), cmp.Compare(bl, l)) > 0 {
				continue
			}
		}
		best = i
	}
	return best
}

// specHost: "a wildcard label must appear by itself as the first label", and
// "*.example.com would match test.example.com, and foo.test.example.com", not example.com.
func specHost(pattern, host string) bool {
	if pattern == "" {
		return true
	}
	if suffix, wild := strings.CutPrefix(pattern, "*"); wild {
		return strings.HasSuffix(host, suffix) && host != suffix[1:]
	}
	return host == pattern
}

// hostname: "precedence must be given to rules from the HTTPRoute with the largest number
// of: Characters in a matching non-wildcard hostname. Characters in a matching hostname."
func (r specRoute) hostname(host string) (exact, longest int, ok bool) {
	for _, h := range r.hostnames {
		if specHost(h, host) {
			ok, longest = true, max(longest, len(h))
			if !strings.HasPrefix(h, "*") {
				exact = max(exact, len(h))
			}
		}
	}
	return exact, longest, ok || len(r.hostnames) == 0
}

// specOrder names what compare compares.
var specOrder = []string{"exact hostname", "hostname", "kind of path", "length of path", "method", "headers", "query parameters", "age", "name", "rule", "match"}

// compare says, for each of specOrder, whether a takes precedence (negative) or b: "Exact
// path match. Prefix path match with largest number of characters. Method match. Largest
// number of header matches. Largest number of query param matches." Then "the oldest Route
// based on creation timestamp", "appearing first in alphabetical order by
// {namespace}/{name}", "the FIRST matching rule (in list order)". Regular expressions are
// the implementation's: ours go after exact paths and before prefixes, longer ones first.
func (w specWorld) compare(a, b candidate) []int {
	kinds := map[string]int{"Exact": 0, "RegularExpression": 1, "PathPrefix": 2, "": 2}
	age := 0
	if w.aged {
		age = cmp.Compare(a.route.age, b.route.age)
	}
	return []int{
		cmp.Compare(b.exactHost, a.exactHost),
		cmp.Compare(b.anyHost, a.anyHost),
		cmp.Compare(kinds[a.m.pathType], kinds[b.m.pathType]),
		cmp.Compare(b.m.length(), a.m.length()),
		cmp.Compare(min(len(b.m.method), 1), min(len(a.m.method), 1)),
		cmp.Compare(len(distinct(b.m.headers)), len(distinct(a.m.headers))),
		cmp.Compare(len(b.m.queries), len(a.m.queries)),
		age,
		strings.Compare(a.route.namespace+"/"+a.route.name, b.route.namespace+"/"+b.route.name),
		cmp.Compare(a.rule, b.rule),
		cmp.Compare(a.match, b.match),
	}
}

// length of a path; "a trailing slash is ignored" in prefixes.
func (m specMatch) length() int {
	if m.pathType == "PathPrefix" {
		return len(strings.TrimRight(m.path, "/"))
	}
	return len(m.path)
}

// distinct: "If multiple entries specify equivalent header names, only the first entry
// with an equivalent name MUST be considered for a match."
func distinct(of []specValue) []specValue {
	var out []specValue
	for _, v := range of {
		if !slices.ContainsFunc(out, func(o specValue) bool { return strings.EqualFold(o.name, v.name) }) {
			out = append(out, v)
		}
	}
	return out
}

// meets: "a match will be true only if all conditions are".
func (m specMatch) meets(rq specRequest) bool {
	headers := map[string]string{"x": rq.x, "y": rq.y, "x-gateway-model-name": rq.model, "x-gateway-base-model-name": specBases[rq.model]}
	for _, h := range distinct(m.headers) {
		if got := headers[strings.ToLower(h.name)]; got == "" || !h.meets(got) {
			return false
		}
	}
	for _, q := range m.queries {
		if rq.query == "" || !q.meets(rq.query) {
			return false
		}
	}
	return (m.method == "" || m.method == rq.method) && m.meetsPath(rq.path)
}

func (v specValue) meets(got string) bool {
	if v.regex {
		return regexp.MustCompile("^(?:" + v.value + ")$").MatchString(got)
	}
	return v.value == got
}

// meetsPath: prefixes match "on a path element by element basis"; "/abc", "/abc/" and
// "/abc/def" match the prefix "/abc", "/abcd" does not.
func (m specMatch) meetsPath(path string) bool {
	elements := func(p string) []string { return strings.Split(strings.Trim(p, "/"), "/") }
	switch m.pathType {
	case "Exact":
		return path == m.path
	case "RegularExpression":
		return specValue{value: m.path, regex: true}.meets(path)
	case "":
		return true
	}
	prefix, got := elements(m.path), elements(path)
	if prefix[0] == "" {
		return true
	}
	return len(got) >= len(prefix) && slices.Equal(got[:len(prefix)], prefix)
}

// specProbe is the hostname of a route that says which world is served. No other route
// has it, and a listener of every world takes it.
const specProbe = "probe.example.com"

func drawSpecWorld(r *rand.Rand, version int) specWorld {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	hostnames := []string{"a.example.com", "b.example.com", "*.example.com", "*.a.example.com", "*.com", "x.a.example.com", "example.com"}
	some := func(of []string, most int) []string {
		of = slices.Clone(of)
		r.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		return of[:r.IntN(most+1)]
	}
	w := specWorld{version: version, aged: r.IntN(2) == 0, listeners: []string{pick("", "*.com", "*.example.com")}}
	for _, h := range some(hostnames, 3) {
		if h != w.listeners[0] {
			w.listeners = append(w.listeners, h)
		}
	}
	var common []specMatch // in several rules, so that ages and names decide
	for range 4 {
		common = append(common, drawSpecMatch(r))
	}
	draw := func() specMatch {
		if r.IntN(2) == 0 {
			return common[r.IntN(len(common))]
		}
		return drawSpecMatch(r)
	}
	for left := 1 + r.IntN(25); left > 0; {
		route := specRoute{namespace: pick("default", "default-2"), name: fmt.Sprintf("%s%d", pick("a", "b", "c"), len(w.routes)),
			age: r.IntN(3), section: -1}
		if r.IntN(2) == 0 {
			route.hostnames = some(hostnames, 2)
		}
		if r.IntN(3) == 0 {
			route.section = r.IntN(len(w.listeners))
		}
		for range min(left, 1+r.IntN(4)) {
			left--
			rule := []specMatch{draw()}
			for range r.IntN(3) {
				rule = append(rule, draw())
			}
			route.rules = append(route.rules, rule)
		}
		w.routes = append(w.routes, route)
	}
	return w
}

func drawSpecMatch(r *rand.Rand) specMatch {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	one := func(in int) bool { return r.IntN(in) == 0 }
	var m specMatch
	switch m.pathType = pick("", "Exact", "PathPrefix", "PathPrefix", "PathPrefix", "RegularExpression"); m.pathType {
	case "Exact":
		m.path = pick("/", "/v1", "/v1/", "/v1/chat", "/v1/chat/more")
	case "PathPrefix":
		m.path = pick("/", "/v1", "/v1/", "/v1/chat", "/v2")
	case "RegularExpression":
		m.path = pick("/v1/.*", "/.*", "/v1/c[a-z]+", "/v[12](/.*)?")
	}
	if one(3) {
		m.method = pick("GET", "POST", "PUT")
	}
	switch r.IntN(9) {
	case 0, 1, 2:
		m.headers = append(m.headers, specValue{name: "X-Gateway-Model-Name", value: pick("base", "lora-1", "lora-2", "other")})
	case 3:
		m.headers = append(m.headers, specValue{name: "x-gateway-model-name", value: pick("lora-.*", ".+", "lora"), regex: true})
	case 4:
		m.headers = append(m.headers, specValue{name: "X-Gateway-Base-Model-Name", value: pick("base", "other", "absent")})
	case 5:
		m.headers = append(m.headers, specValue{name: "X-Gateway-Base-Model-Name", value: pick("(base|oth.*)", "b"), regex: true})
	}
	if one(8) {
		m.headers = append(m.headers, specValue{name: "X-Gateway-Model-Name", value: "lora-1"}) // the second of its name, perhaps
	}
	m.headers = slices.CompactFunc(m.headers, func(a, b specValue) bool { return a.name == b.name })
	if one(3) {
		m.headers = append(m.headers, specValue{"X", pick("1", "2", "[12]", "1.*"), false})
		last := &m.headers[len(m.headers)-1]
		last.regex = strings.ContainsAny(last.value, "[*")
	}
	if one(8) {
		m.headers = append(m.headers, specValue{name: "x", value: "2"}, specValue{name: "Y", value: "1"})
	}
	if one(3) {
		m.queries = append(m.queries, specValue{"q", pick("1", "2", "[12]+", "1.?"), false})
		m.queries[0].regex = strings.ContainsAny(m.queries[0].value, "[?")
	}
	return m
}

// yaml returns the objects of a world; every rule is of the one pod, and puts its name on
// its answers.
func (w specWorld) yaml(p *pod) string {
	out, _, _ := strings.Cut(yamlGateway, "  listeners:")
	out += "  listeners:\n"
	for i, h := range w.listeners {
		out += fmt.Sprintf("  - {name: l%d, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}", i)
		if h != "" {
			out += fmt.Sprintf(", hostname: %q", h)
		}
		out += "}\n"
	}
	for _, namespace := range []string{"default", "default-2"} {
		out += fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: pod, namespace: %[1]s}
spec:
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pod, namespace: %[1]s, labels: {kubernetes.io/service-name: pod}}
addressType: IPv4
ports: [{name: http, port: %[2]s}]
endpoints: [{addresses: [127.0.0.1], conditions: {ready: true}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: models, namespace: %[1]s, labels: {inference-gateway.k8s.io/managed: "true"}}
data: {baseModel: base, adapters: "[lora-1, lora-2]"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: others, namespace: %[1]s, labels: {inference.llm-d.ai/ipp-managed: "true"}}
data: {baseModel: other, adapters: "[]"}
`, namespace, p.Port())
	}
	probe := specRoute{namespace: "default", name: "version", section: -1, hostnames: []string{specProbe}, rules: [][]specMatch{{{}}}}
	out += probe.yaml(w, func(int) string { return fmt.Sprintf("{name: X-Version, value: %q}", fmt.Sprint(w.version)) })
	for _, route := range w.routes {
		out += route.yaml(w, func(rule int) string {
			return fmt.Sprintf("{name: X-Rule, value: %s/%s/%d}", route.namespace, route.name, rule)
		})
	}
	// A file that got shorter is believed a second later only.
	return out + "#" + strings.Repeat(".", max(64<<10-len(out), 0)+w.version) + "\n"
}

func (r specRoute) yaml(w specWorld, header func(rule int) string) string {
	out := fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: %s, namespace: %s", r.name, r.namespace)
	if w.aged {
		out += fmt.Sprintf(", creationTimestamp: \"2026-01-01T00:00:%02dZ\"", r.age)
	}
	out += "}\nspec:\n  parentRefs: [{name: gw, namespace: default"
	if r.section >= 0 {
		out += fmt.Sprintf(", sectionName: l%d", r.section)
	}
	out += "}]\n"
	if len(r.hostnames) > 0 {
		out += fmt.Sprintf("  hostnames: [%q", r.hostnames[0])
		for _, h := range r.hostnames[1:] {
			out += fmt.Sprintf(", %q", h)
		}
		out += "]\n"
	}
	out += "  rules:\n"
	for i, rule := range r.rules {
		out += "  - backendRefs: [{name: pod, port: 80}]\n    filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [" + header(i) + "]}}]\n    matches:\n"
		for _, m := range rule {
			out += "    - " + m.yaml() + "\n"
		}
	}
	return out
}

func (m specMatch) yaml() string {
	var parts []string
	if m.pathType != "" {
		parts = append(parts, fmt.Sprintf("path: {type: %s, value: %q}", m.pathType, m.path))
	}
	if m.method != "" {
		parts = append(parts, "method: "+m.method)
	}
	for what, values := range map[string][]specValue{"headers": m.headers, "queryParams": m.queries} {
		var list []string
		for _, v := range values {
			typ := map[bool]string{true: "RegularExpression", false: "Exact"}[v.regex]
			list = append(list, fmt.Sprintf("{name: %q, type: %s, value: %q}", v.name, typ, v.value))
		}
		if len(list) > 0 {
			parts = append(parts, what+": ["+strings.Join(list, ", ")+"]")
		}
	}
	slices.Sort(parts) // the same world, the same YAML
	return "{" + strings.Join(parts, ", ") + "}"
}
