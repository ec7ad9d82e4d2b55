package translator

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

// routeWorld is what the property tests of route tables start from: one Gateway, routes, and
// which model has which base, in the one namespace "ns".
type routeWorld struct {
	listeners []string // hostnames
	routes    []*gatewayv1.HTTPRoute
	bases     map[string][]string // base model → adapters
}

func (w routeWorld) objects() []source.Object {
	gateway := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "gw"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "signalbox"}}
	for i, h := range w.listeners {
		l := gatewayv1.Listener{Name: gatewayv1.SectionName(fmt.Sprintf("l%d", i)), Port: 80, Protocol: gatewayv1.HTTPProtocolType}
		if h != "" {
			l.Hostname = ptr.To(gatewayv1.Hostname(h))
		}
		gateway.Spec.Listeners = append(gateway.Spec.Listeners, l)
	}
	objects := []source.Object{
		&gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "signalbox"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: ControllerName}},
		gateway,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "svc"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}},
	}
	for base, adapters := range w.bases {
		objects = append(objects, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: base, Labels: map[string]string{modelLabels[0]: "true"}},
			Data:       map[string]string{"baseModel": base, "adapters": "[" + strings.Join(adapters, ",") + "]"},
		})
	}
	for _, r := range w.routes {
		objects = append(objects, r)
	}
	return objects
}

// request is what a table looks at, after the extractor.
type request struct {
	host, method, path, query, x, model string
}

// chosen reads the spec: which match of which rule of which route a request belongs to;
// "" if to none. It shares nothing with the translator.
func (w routeWorld) chosen(rq request) string {
	listener, ok := w.listener(rq.host)
	if !ok {
		return ""
	}
	type candidate struct {
		order []int // smaller goes first
		route *gatewayv1.HTTPRoute
		rule  int
		match int
	}
	var best *candidate
	for _, r := range w.routes {
		exactHost, wildHost, ok := w.hostOf(r, listener, rq.host)
		if !ok {
			continue
		}
		for i, rule := range r.Spec.Rules {
			for j, m := range rule.Matches {
				if !w.matches(m, rq) {
					continue
				}
				kind := map[gatewayv1.PathMatchType]int{gatewayv1.PathMatchExact: 0, gatewayv1.PathMatchRegularExpression: 1, gatewayv1.PathMatchPathPrefix: 2}[*m.Path.Type]
				method := 1
				if m.Method != nil {
					method = 0
				}
				c := &candidate{[]int{-exactHost, -wildHost, kind, -len(strings.TrimRight(*m.Path.Value, "/")), method, -len(m.Headers), -len(m.QueryParams), int(r.CreationTimestamp.Unix())}, r, i, j}
				if best == nil || cmp.Or(slices.Compare(c.order, best.order), strings.Compare(r.Name, best.route.Name)) < 0 {
					best = c // of one route the earlier rule stays
				}
			}
		}
	}
	if best == nil {
		return ""
	}
	return fmt.Sprintf("httproute/ns/%s/rule/%d/match/%d", best.route.Name, best.rule, best.match)
}

func hostMatches(pattern, host string) bool {
	if suffix, wild := strings.CutPrefix(pattern, "*"); wild {
		return strings.HasSuffix(host, suffix) && len(host) > len(suffix)
	}
	return pattern == "" || pattern == host
}

// listener returns the hostname of the most specific listener that takes a host.
func (w routeWorld) listener(host string) (best string, found bool) {
	for _, l := range w.listeners {
		if hostMatches(l, host) && (!found || l == host || best != host && len(l) > len(best)) {
			best, found = l, true
		}
	}
	return best, found
}

// hostOf says whether a route serves a host on a listener, and by how many characters of
// a hostname of its own.
func (w routeWorld) hostOf(r *gatewayv1.HTTPRoute, listener, host string) (exact, wild int, ok bool) {
	if len(r.Spec.Hostnames) == 0 {
		return 0, 0, true
	}
	for _, h := range r.Spec.Hostnames {
		if !hostMatches(string(h), host) {
			continue
		}
		ok = true
		if strings.HasPrefix(string(h), "*") {
			wild = max(wild, len(h))
		} else {
			exact = len(h)
		}
	}
	if exact > 0 {
		wild = 0 // of one route only its best hostname counts
	}
	return exact, wild, ok
}

func (w routeWorld) matches(m gatewayv1.HTTPRouteMatch, rq request) bool {
	value := *m.Path.Value
	switch *m.Path.Type {
	case gatewayv1.PathMatchExact:
		if rq.path != value {
			return false
		}
	case gatewayv1.PathMatchPathPrefix:
		if prefix := strings.TrimRight(value, "/"); rq.path != prefix && !strings.HasPrefix(rq.path, prefix+"/") {
			return false
		}
	default:
		if !whole(value, rq.path) {
			return false
		}
	}
	if m.Method != nil && string(*m.Method) != rq.method {
		return false
	}
	for _, h := range m.Headers {
		got := map[string]string{"x": rq.x, "x-gateway-model-name": rq.model, "x-gateway-base-model-name": w.base(rq.model)}[strings.ToLower(string(h.Name))]
		if got == "" || !w.value(ptr.Deref(h.Type, gatewayv1.HeaderMatchExact) == gatewayv1.HeaderMatchExact, h.Value, got) {
			return false
		}
	}
	for _, q := range m.QueryParams {
		if rq.query == "" || !w.value(ptr.Deref(q.Type, gatewayv1.QueryParamMatchExact) == gatewayv1.QueryParamMatchExact, q.Value, rq.query) {
			return false
		}
	}
	return true
}

func (w routeWorld) value(exact bool, want, got string) bool {
	if exact {
		return want == got
	}
	return whole(want, got)
}

func whole(re, s string) bool { return regexp.MustCompile("^(?:" + re + ")$").MatchString(s) }

func (w routeWorld) base(model string) string {
	for base, adapters := range w.bases {
		if base == model || slices.Contains(adapters, model) {
			return base
		}
	}
	return ""
}

var (
	hostnames = []string{"", "a.example.com", "b.example.com", "*.example.com", "*.a.example.com", "*.com", "x.a.example.com"}
	modelsAll = []string{"base", "lora-1", "lora-2", "other", "unknown"}
	prefixes  = []string{"/", "/v1", "/v1/", "/v1/chat", "/other"}
	exacts    = []string{"/", "/v1", "/v1/", "/v1/chat", "/v1/chat/more"}
	regexes   = []string{"/v1/.*", "/.*", "/v1/c[a-z]+"}
)

func drawMatch(t *rapid.T) gatewayv1.HTTPRouteMatch {
	typ := rapid.SampledFrom([]gatewayv1.PathMatchType{gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix, gatewayv1.PathMatchPathPrefix, gatewayv1.PathMatchRegularExpression}).Draw(t, "type")
	values := map[gatewayv1.PathMatchType][]string{gatewayv1.PathMatchExact: exacts, gatewayv1.PathMatchPathPrefix: prefixes, gatewayv1.PathMatchRegularExpression: regexes}[typ]
	m := gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{Type: &typ, Value: ptr.To(rapid.SampledFrom(values).Draw(t, "path"))}}
	if rapid.IntRange(0, 3).Draw(t, "method") == 0 {
		m.Method = ptr.To(gatewayv1.HTTPMethodPost)
	}
	re := ptr.To(gatewayv1.HeaderMatchRegularExpression)
	headers := map[int]gatewayv1.HTTPHeaderMatch{
		0: {Name: "X-Gateway-Model-Name", Value: rapid.SampledFrom(modelsAll).Draw(t, "model")},
		1: {Name: "x-gateway-model-name", Type: re, Value: "lora-.*"},
		2: {Name: "X-Gateway-Base-Model-Name", Value: rapid.SampledFrom([]string{"base", "other", "absent"}).Draw(t, "base")},
		3: {Name: "X-Gateway-Base-Model-Name", Type: re, Value: "(base|oth.*)"},
	}
	if h, ok := headers[rapid.IntRange(0, 6).Draw(t, "by model")]; ok {
		m.Headers = append(m.Headers, h)
	}
	if len(m.Headers) > 0 && m.Headers[0].Name == "X-Gateway-Model-Name" && rapid.IntRange(0, 3).Draw(t, "both") == 0 {
		m.Headers = append(m.Headers, headers[2])
	}
	switch rapid.IntRange(0, 3).Draw(t, "x") {
	case 0:
		m.Headers = append(m.Headers, gatewayv1.HTTPHeaderMatch{Name: "X", Value: rapid.SampledFrom([]string{"1", "2"}).Draw(t, "x value")})
	case 1:
		m.Headers = append(m.Headers, gatewayv1.HTTPHeaderMatch{Name: "x", Type: re, Value: "[12]"})
	}
	if rapid.IntRange(0, 3).Draw(t, "query") == 0 {
		m.QueryParams = []gatewayv1.HTTPQueryParamMatch{{Name: "q", Value: rapid.SampledFrom([]string{"1", "2"}).Draw(t, "q")}}
	}
	return m
}

func drawWorld(t *rapid.T) routeWorld {
	w := routeWorld{bases: map[string][]string{"base": {"lora-1", "lora-2"}, "other": nil}}
	w.listeners = rapid.SliceOfNDistinct(rapid.SampledFrom(hostnames), 1, 4, rapid.ID).Draw(t, "listeners")
	for i := range rapid.IntRange(1, 6).Draw(t, "routes") {
		r := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("r%d", i)}}
		r.CreationTimestamp = metav1.NewTime(time.Unix(int64(rapid.IntRange(1, 3).Draw(t, "age")), 0))
		r.Spec.ParentRefs = []gatewayv1.ParentReference{{Name: "gw"}}
		for _, h := range rapid.SliceOfNDistinct(rapid.SampledFrom(hostnames[1:]), 0, 2, rapid.ID).Draw(t, "hostnames") {
			r.Spec.Hostnames = append(r.Spec.Hostnames, gatewayv1.Hostname(h))
		}
		for range rapid.IntRange(1, 3).Draw(t, "rules") {
			rule := gatewayv1.HTTPRouteRule{BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{Name: "svc", Port: ptr.To[gatewayv1.PortNumber](80)}}}}}
			for range rapid.IntRange(1, 3).Draw(t, "matches") {
				rule.Matches = append(rule.Matches, drawMatch(t))
			}
			r.Spec.Rules = append(r.Spec.Rules, rule)
		}
		w.routes = append(w.routes, r)
	}
	return w
}

func drawRequest(t *rapid.T) request {
	pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	return request{
		host:   pick("host", "a.example.com", "b.example.com", "c.example.com", "x.a.example.com", "y.a.example.com", "example.com", "z.com", "net"),
		method: pick("method", "GET", "POST"),
		path:   pick("path", "/", "/v1", "/v1/", "/v1/chat", "/v1/chat/", "/v1/chat/more", "/v1chat", "/other"),
		query:  pick("query", "", "1", "2"),
		x:      pick("x", "", "1", "2", "3"),
		model:  pick("model", append([]string{"", "nobody's"}, modelsAll...)...),
	}
}

// TestPrecedence: for any routes and any request, the table chooses what the spec, read
// directly, chooses; and where the spec chooses nothing, nothing or a catch.
func TestPrecedence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		table := tablesOf(t, w.objects())["http/80"]
		for range 40 {
			rq := drawRequest(t)
			got := choose(table, rq)
			if strings.HasPrefix(got, "signalbox/") {
				got = ""
			}
			if want := w.chosen(rq); got != want {
				t.Fatalf("%+v\nwent to %q\nthe spec says %q", rq, got, want)
			}
		}
	})
}
