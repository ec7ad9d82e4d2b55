package translator

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/extproc/contract"
	"signalbox.dev/source"
)

// routeBase is what the tests of routes build on: a Gateway with an HTTP listener, and
// Services and pools to go to.
const routeBase = `
kind: GatewayClass
metadata: {name: signalbox}
spec: {controllerName: signalbox.dev/gateway-controller}
---
kind: Gateway
metadata: {namespace: default, name: gw}
spec:
  gatewayClassName: signalbox
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
kind: Service
metadata: {namespace: default, name: a}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {namespace: default, name: b}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {namespace: default, name: epp}
spec: {ports: [{port: 9002}]}
---
kind: InferencePool
metadata: {namespace: default, name: picked}
spec: {selector: {matchLabels: {app: x}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: epp, port: {number: 9002}}}
`

const (
	toA      = "backendRefs: [{name: a, port: 80}]"
	toPicked = "backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: picked}]"
)

// routeOf returns an HTTPRoute with the rules, one flow mapping each.
func routeOf(name string, rules ...string) string {
	return "kind: HTTPRoute\nmetadata: {namespace: default, name: " + name + ", generation: 3}\nspec:\n  parentRefs: [{name: gw}]\n  rules:\n  - {" + strings.Join(rules, "}\n  - {") + "}\n"
}

// routesOf returns every Envoy route of the table http/80 by name.
func routesOf(t *testing.T, documents ...string) map[string]*routev3.Route {
	t.Helper()
	out := map[string]*routev3.Route{}
	for _, h := range tablesOf(t, decode(t, append([]string{routeBase}, documents...)...))["http/80"].VirtualHosts {
		for _, r := range listOf(t, h, "") {
			out[r.Name] = r
		}
		for model := range h.Matcher.GetMatcherTree().GetExactMatchMap().GetMap() {
			for _, r := range listOf(t, h, model) {
				out[r.Name] = r
			}
		}
	}
	return out
}

// listOf returns the routes of a virtual host for a model, "" for those without.
func listOf(t *testing.T, h *routev3.VirtualHost, model string) []*routev3.Route {
	t.Helper()
	if h.Matcher == nil {
		return h.Routes
	}
	on := h.Matcher.OnNoMatch
	if model != "" {
		on = h.Matcher.GetMatcherTree().GetExactMatchMap().Map[model]
	}
	list := &routev3.RouteList{}
	unpack(t, on.GetAction().GetTypedConfig(), list)
	return list.Routes
}

func unpack(t *testing.T, a *anypb.Any, into proto.Message) {
	t.Helper()
	if err := a.UnmarshalTo(into); err != nil {
		t.Fatal(err)
	}
}

// only returns the route of the first match of the first rule of the route "r".
func only(t *testing.T, rule string, documents ...string) *routev3.Route {
	t.Helper()
	r := routesOf(t, append(documents, routeOf("r", rule))...)["httproute/default/r/rule/0/match/0"]
	if r == nil {
		t.Fatalf("rule %s came to no route", rule)
	}
	return r
}

// routeConditions returns the conditions of the HTTPRoutes, "name Type=Status/Reason: message".
func routeConditions(t *testing.T, documents ...string) []string {
	t.Helper()
	var out []string
	for _, s := range Translate(decode(t, append([]string{routeBase}, documents...)...), Options{}).Statuses {
		if s.HTTPRoute == nil {
			continue
		}
		for _, p := range s.HTTPRoute.Parents {
			for _, c := range p.Conditions {
				if c.ObservedGeneration != s.Generation {
					t.Errorf("%s: %s is of generation %d, not %d", s.Ref, c.Type, c.ObservedGeneration, s.Generation)
				}
				out = append(out, fmt.Sprintf("%s %s=%s/%s: %s", s.Ref.Name, c.Type, c.Status, c.Reason, c.Message))
			}
		}
	}
	return out
}

func TestTimeouts(t *testing.T) {
	const off, idle = "0s", "10m0s"
	for _, c := range []struct{ rule, timeout, idle string }{
		{toA, off, idle},
		{toPicked, off, idle},
		{toA + ", timeouts: {request: 10s}", "10s", idle},
		{toA + ", timeouts: {backendRequest: 500ms}", "500ms", idle},
		{toA + ", timeouts: {request: 1m, backendRequest: 5s}", "5s", idle},
		{toA + ", timeouts: {request: 0s, backendRequest: 5s}", "5s", idle},
		{toA + ", timeouts: {request: 0s}", off, idle},
		{toPicked + ", timeouts: {request: 1h}", "1h0m0s", "1h0m0s"},
	} {
		action := only(t, c.rule).GetRoute()
		if got := action.Timeout.AsDuration().String(); got != c.timeout {
			t.Errorf("%s: timeout %s, want %s", c.rule, got, c.timeout)
		}
		if got := action.IdleTimeout.AsDuration().String(); got != c.idle {
			t.Errorf("%s: idle timeout %s, want %s", c.rule, got, c.idle)
		}
	}
}

func TestWeights(t *testing.T) {
	for _, c := range []struct{ backends, want string }{
		{"[]", "500"},
		{"[{name: a, port: 80, weight: 0}]", "500"},
		{"[{name: gone, port: 80}]", "500"},
		{"[{name: gone, port: 80}, {name: gone, port: 81}]", "500"},
		{"[{name: a, port: 80, weight: 7}]", "service/default/a/80"},
		{"[{name: a, port: 80, weight: 7}, {name: b, port: 80, weight: 0}]", "service/default/a/80"},
		{"[{name: a, port: 80, weight: 7}, {name: b, port: 80}]", "service/default/a/80=7 service/default/b/80=1"},
		{"[{name: a, port: 80, weight: 7}, {name: gone, port: 80, weight: 3}]", "service/default/a/80=7 signalbox-invalid-backend=3 else 500"},
		{"[{name: a, port: 80, weight: 7}, {name: gone, port: 80, weight: 0}]", "service/default/a/80"},
	} {
		if got := destinations(only(t, "backendRefs: "+c.backends)); got != c.want {
			t.Errorf("%s goes to %s, want %s", c.backends, got, c.want)
		}
	}
}

// destinations says where a route goes.
func destinations(r *routev3.Route) string {
	if d := r.GetDirectResponse(); d != nil {
		return fmt.Sprint(d.Status)
	}
	var out []string
	for _, c := range r.GetRoute().GetWeightedClusters().GetClusters() {
		out = append(out, fmt.Sprintf("%s=%d", c.Name, c.Weight.Value))
	}
	if c := r.GetRoute().GetCluster(); c != "" {
		out = append(out, c)
	}
	if r.GetRoute().GetClusterNotFoundResponseCode() == routev3.RouteAction_INTERNAL_SERVER_ERROR {
		out = append(out, "else 500")
	}
	return strings.Join(out, " ")
}

func TestPickerIsAskedForItsPoolOnly(t *testing.T) {
	one := only(t, toPicked)
	if len(pickerOf(t, one.TypedPerFilterConfig).GrpcInitialMetadata) == 0 {
		t.Error("the one pool's picker is not told which it is")
	}
	split := only(t, "backendRefs: [{name: a, port: 80}, {group: inference.networking.k8s.io, kind: InferencePool, name: picked}]")
	clusters := split.GetRoute().GetWeightedClusters().Clusters
	if len(split.TypedPerFilterConfig) != 0 || len(clusters[0].TypedPerFilterConfig) != 0 {
		t.Error("a Service's share would ask a picker")
	}
	if pickerOf(t, clusters[1].TypedPerFilterConfig).FailureModeAllow.GetValue() {
		t.Error("a FailClose pool would be failed open")
	}
}

func pickerOf(t *testing.T, configs map[string]*anypb.Any) *extprocv3.ExtProcOverrides {
	t.Helper()
	var out extprocv3.ExtProcPerRoute
	if configs[pickerFilter] == nil {
		t.Fatalf("no config of the picker in %v", configs)
	}
	unpack(t, configs[pickerFilter], &out)
	return out.GetOverrides()
}

func TestPickerModes(t *testing.T) {
	for mode, want := range map[contract.ResponseMode]string{
		contract.ResponseFull:    "SEND FULL_DUPLEX_STREAMED SEND",
		contract.ResponseHeaders: "SEND NONE SKIP",
		contract.ResponseNone:    "SKIP NONE SKIP",
	} {
		o := pickerOf(t, perFilter(&contract.Picker{Pool: "ns/p", Response: mode, FailOpen: true}))
		m := o.ProcessingMode
		if got := fmt.Sprint(m.ResponseHeaderMode, " ", m.ResponseBodyMode, " ", m.ResponseTrailerMode); got != want {
			t.Errorf("response mode %s: %s, want %s", mode, got, want)
		}
		if got := fmt.Sprint(m.RequestHeaderMode, " ", m.RequestBodyMode, " ", m.RequestTrailerMode); got != "SEND FULL_DUPLEX_STREAMED SEND" {
			t.Errorf("request mode %s", got)
		}
		if !o.FailureModeAllow.GetValue() {
			t.Error("a FailOpen pool must go on without the process beside Envoy")
		}
	}
}

// TestProblems: what a rule's problem says, and that a rule's filter is never skipped.
func TestProblems(t *testing.T) {
	const works = "matches: [{path: {value: /works}}], " + toA
	for _, c := range []struct{ rule, reason, message, answer string }{
		{"filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}}}], " + toA, "UnsupportedValue", "type RequestMirror", "500"},
		{"filters: [{type: CORS, cors: {}}], " + toA, "UnsupportedValue", "type CORS", "500"},
		{"filters: [{type: ExternalAuth}], " + toA, "UnsupportedValue", "type ExternalAuth", "500"},
		{"filters: [{type: URLRewrite}], " + toA, "UnsupportedValue", "type URLRewrite", "500"},
		{"retry: {attempts: 2}, " + toA, "UnsupportedValue", "rules[0].retry", "500"},
		{"sessionPersistence: {}, " + toA, "UnsupportedValue", "rules[0].sessionPersistence", "500"},
		{"timeouts: {request: soon}, " + toA, "UnsupportedValue", `"soon" is not a duration`, "500"},
		{"filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: x}]}}], " + toA, "UnsupportedValue", "URLRewrite filter with hostname", "500"},
		{"filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [':status']}}], " + toA, "UnsupportedValue", "is not a header name", "500"},
		{"filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: 'a b', value: x}]}}], " + toA, "UnsupportedValue", "is not a header name", "500"},
		{"filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: a, value: \"x\\ny\"}]}}], " + toA, "UnsupportedValue", "Envoy does not take it", "500"},
		{"filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]", "UnsupportedValue", "status 304", "500"},
		{"filters: [{type: RequestRedirect, requestRedirect: {scheme: ftp}}]", "UnsupportedValue", `scheme "ftp"`, "500"},
		{"filters: [{type: RequestRedirect, requestRedirect: {}}], " + toA, "IncompatibleFilters", "backendRefs", "500"},
		{"filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {hostname: x}}]", "IncompatibleFilters", "URLRewrite", "500"},
		{"matches: [{path: {type: Exact, value: /x}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}], " + toA, "UnsupportedValue", "needs a match of type PathPrefix", "500"},
		{"backendRefs: [{name: a, port: 80, filters: [{type: RequestRedirect, requestRedirect: {}}]}]", "UnsupportedValue", "backendRefs[0]", "500"},
		{"backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /x}}}]}, {name: b, port: 80}]", "IncompatibleFilters", "several backendRefs", "500"},
		{"matches: [{path: {type: RegularExpression, value: '/['}}], " + toA, "UnsupportedValue", "not a regular expression", ""},
		{"matches: [{path: {type: RegularExpression, value: '[a-z]{1,1000}'}}], " + toA, "UnsupportedValue", "too large", ""},
		{"matches: [{path: {type: Exact, value: '/x?y'}}], " + toA, "UnsupportedValue", `"/x?y"`, ""},
		{"matches: [{path: {type: Glob, value: /x}}], " + toA, "UnsupportedValue", `"Glob"`, ""},
		{"matches: [{headers: [{name: x, type: Glob, value: x}]}], " + toA, "UnsupportedValue", `"Glob"`, ""},
		{"matches: [{queryParams: [{name: x, type: Glob, value: x}]}], " + toA, "UnsupportedValue", `"Glob"`, ""},
		{"matches: [{headers: [{name: 'a b', value: x}]}], " + toA, "UnsupportedValue", "is not a header name", ""},
		{"matches: [{queryParams: [{name: q, type: RegularExpression, value: '('}]}], " + toA, "UnsupportedValue", "query parameter q", ""},
		{"matches: [{headers: [{name: x, value: ok}]}, {headers: [{name: x, type: RegularExpression, value: '('}]}], " + toA, "UnsupportedValue", "rules[0].matches[1]", ""},
	} {
		alone := routeConditions(t, routeOf("r", c.rule))
		if want := "r Accepted=False/" + c.reason; !strings.HasPrefix(alone[0], want) || !strings.Contains(alone[0], c.message) {
			t.Errorf("rule %s:\n%s\nwant %s with %q", c.rule, alone[0], want, c.message)
		}
		both := routeConditions(t, routeOf("r", c.rule, works))
		if !strings.HasPrefix(both[0], "r Accepted=True/Accepted") || !strings.HasPrefix(both[len(both)-1], "r PartiallyInvalid=True/UnsupportedValue: Dropped Rule") {
			t.Errorf("rule %s beside one that works: %q", c.rule, both)
		}
		routes := routesOf(t, routeOf("r", c.rule, works))
		got := ""
		if r := routes["httproute/default/r/rule/0/match/0"]; r != nil {
			got = destinations(r)
		}
		if got != c.answer {
			t.Errorf("rule %s: goes to %q, want %q", c.rule, got, c.answer)
		}
		if got := destinations(routes["httproute/default/r/rule/1/match/0"]); got != "service/default/a/80" {
			t.Errorf("rule %s: the rule beside it goes to %q", c.rule, got)
		}
	}
}

func TestBadHostname(t *testing.T) {
	bad := strings.Replace(routeOf("r", toA), "spec:", "spec:\n  hostnames: [ok.example.com, a.*.com]", 1)
	if got := routeConditions(t, bad); !strings.HasPrefix(got[0], "r Accepted=False/UnsupportedValue: hostnames[1]") {
		t.Errorf("conditions %q", got)
	}
	if got := routesOf(t, bad); len(got) != 0 {
		t.Errorf("routes %v", got)
	}
}

// TestMessagesAreBounded: the API server takes 32 KiB.
func TestMessagesAreBounded(t *testing.T) {
	rules := make([]string, 16)
	for i := range rules {
		rules[i] = "matches: [{headers: [{name: x, type: RegularExpression, value: '(" + strings.Repeat("ä", 2000) + fmt.Sprint(i) + "'}]}], " + toA
	}
	for _, c := range routeConditions(t, routeOf("r", rules...)) {
		if len(c) > 16<<10 || !utf8.ValidString(c) {
			t.Errorf("a message of %d bytes, UTF-8: %v", len(c), utf8.ValidString(c))
		}
	}
}

// TestProblemChangesNobodyElse: another route's bytes are the same with and without a
// route that cannot be kept.
func TestProblemChangesNobodyElse(t *testing.T) {
	good := routeOf("good", "matches: [{path: {value: /good}}], "+toA)
	bad := routeOf("bad", "matches: [{path: {value: /bad}}], filters: [{type: CORS, cors: {}}], "+toA, "matches: [{path: {type: RegularExpression, value: '('}}], "+toA)
	const name = "httproute/default/good/rule/0/match/0"
	if alone, beside := routesOf(t, good)[name], routesOf(t, good, bad)[name]; !proto.Equal(alone, beside) {
		t.Errorf("beside a bad route %v, alone %v", beside, alone)
	}
}

func TestResolvedRefs(t *testing.T) {
	got := routeConditions(t, routeOf("r", "matches: [{path: {value: /a}}], "+toA, "filters: [{type: ExtensionRef, extensionRef: {group: example.com, kind: Filter, name: f}}], backendRefs: [{name: gone, port: 80}]"))
	if !strings.HasPrefix(got[1], "r ResolvedRefs=False/InvalidKind") || !strings.Contains(got[1], "kind Filter") || !strings.Contains(got[1], "gone") {
		t.Errorf("conditions %q", got)
	}
}

// tablesFrom returns the tables of the objects.
func tablesFrom(t *testing.T, documents ...string) *tables {
	t.Helper()
	tr := New(Options{ExtProc: "127.0.0.1:9004"})
	tr.Apply(changesOf(decode(t, documents...)), nil)
	return tr.t
}

// TestUses: a backend that no request can reach is none that Envoy needs, and a pool's
// parents are the Gateways that the route points at.
func TestUses(t *testing.T) {
	w := tablesFrom(t, routeBase, routeOf("r",
		"matches: [{path: {value: /a}}], backendRefs: [{name: a, port: 80}, {name: b, port: 80, weight: 0}]",
		"matches: [{path: {value: /mirror}}], filters: [{type: CORS, cors: {}}], "+toPicked),
		strings.ReplaceAll(routeOf("elsewhere", toPicked), "name: gw", "name: gw, sectionName: gone"))
	row, _ := w.routeRows.Get(nil, "default/r")
	if want := []use{{"default/gw", "service/default/a/80"}}; !slices.Equal(row.Uses, want) {
		t.Errorf("uses %v, want %v", row.Uses, want)
	}
	if want := []poolParent{{"default/picked", "default/gw", true}}; !slices.Equal(row.Pools, want) {
		t.Errorf("pools %v, want %v", row.Pools, want)
	}
	refused, _ := w.routeRows.Get(nil, "default/elsewhere")
	if want := []poolParent{{"default/picked", "default/gw", false}}; !slices.Equal(refused.Pools, want) || len(refused.Uses) != 0 {
		t.Errorf("a refused route has pools %v, uses %v; want %v and none", refused.Pools, refused.Uses, want)
	}
}

// TestUnchangedRoute: a new object that means the same to Envoy changes the status only.
func TestUnchangedRoute(t *testing.T) {
	objects := decode(t, routeBase, routeOf("r", toA))
	tr := New(Options{ExtProc: "127.0.0.1:9004"})
	tr.Apply(changesOf(objects), nil)
	again := objects[len(objects)-1].(*gatewayv1.HTTPRoute).DeepCopy()
	again.Generation++
	out := tr.Apply([]source.Change{{Ref: source.RefOf(again), Object: again}}, nil)
	if len(out.Resources) != 0 || len(out.Statuses) != 1 {
		t.Errorf("changed %d resources and %d statuses, want 0 and 1", len(out.Resources), len(out.Statuses))
	}
}
