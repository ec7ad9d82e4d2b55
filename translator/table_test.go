package translator

import (
	"fmt"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"

	"signalbox.dev/extproc/contract"
)

// TestPrune: what an earlier route covers is left out, in every list.
func TestPrune(t *testing.T) {
	for _, c := range []struct{ first, second, want string }{
		{"path: {value: /}", "path: {value: /}", "0"},
		{"path: {value: /a}", "path: {value: /a/}", "0"},
		{"path: {value: /}", "path: {type: RegularExpression, value: /a.*}", "1 0"},
		{"path: {type: RegularExpression, value: /a}", "path: {type: RegularExpression, value: /a}", "0"},
		{"path: {type: Exact, value: /a}", "path: {type: Exact, value: /a}, method: GET", "1 0"},
		{"headers: [{name: x, value: '1'}]", "headers: [{name: X, value: '1'}, {name: x, value: '2'}]", "0"},
		{"headers: [{name: x, value: '1'}]", "headers: [{name: x, value: '1'}, {name: y, value: '2'}]", "1 0"},
		{"headers: [{name: x, value: '1'}]", "headers: [{name: X, value: '2'}]", "0 1"},
		{"queryParams: [{name: x, value: '1'}]", "queryParams: [{name: x, value: '1'}]", "0"},
	} {
		var got []string
		h := tablesOf(t, decode(t, routeBase, routeOf("r", "matches: [{"+c.first+"}], "+toA, "matches: [{"+c.second+"}], "+toA)))["http/80"].VirtualHosts[0]
		for _, r := range h.Routes {
			_, rule, _, _ := parseRouteName(r.Name)
			got = append(got, fmt.Sprint(rule))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s, then %s: rules %q, want %q", c.first, c.second, got, c.want)
		}
	}
}

// TestCatches: on a host that looks at models every request has a route, and the answers
// are what clients of OpenAI's API understand.
func TestCatches(t *testing.T) {
	tables := tablesOf(t, decode(t, routeBase, routeOf("r", "matches: [{path: {value: /v1}, headers: [{name: X-Gateway-Model-Name, value: known}]}], "+toA, "matches: [{path: {type: Exact, value: /v1/models}}], "+toA)))
	h := tables["http/80"].VirtualHosts[0]
	if !extracts(t, h) {
		t.Fatal("the extractor is not switched on")
	}
	for _, c := range []struct {
		rq     request
		status uint32
		code   string
	}{
		{request{path: "/v1/chat", model: "unknown"}, 404, "model_not_found"},
		{request{path: "/other", model: "known"}, 404, ""},
		{request{path: "/other"}, 404, ""},
	} {
		c.rq.host = "any"
		r := chooseRoute(tables["http/80"], c.rq)
		fields := r.GetDirectResponse().GetBodyFormat().GetJsonFormat().GetFields()["error"].GetStructValue().GetFields()
		if got := r.GetDirectResponse().GetStatus(); got != c.status || fields["code"].GetStringValue() != c.code {
			t.Errorf("%+v: %v", c.rq, r)
		}
	}
	list := listOf(t, h, "")
	for i, f := range contract.Failures {
		r := list[1+i] // after the rule without a model
		if r.Match.Headers[0].Name != contract.HeaderModelError || r.Match.Headers[0].GetStringMatch().GetExact() != string(f.Code) || r.GetDirectResponse().Status != uint32(f.Status) {
			t.Errorf("%s is answered by %v", f.Code, r)
		}
	}
	if got := tables["http/80"].RequestHeadersToRemove; len(got) != 1 || got[0] != contract.HeaderModelError {
		t.Errorf("backends would see more than they should: only %q is removed", got)
	}
}

func extracts(t *testing.T, h *routev3.VirtualHost) bool {
	t.Helper()
	if h.TypedPerFilterConfig[extractorFilter] == nil {
		return false
	}
	var config routev3.FilterConfig
	unpack(t, h.TypedPerFilterConfig[extractorFilter], &config)
	var override extprocv3.ExtProcPerRoute
	unpack(t, config.Config, &override)
	return !config.Disabled && override.GetOverrides() != nil
}

// TestPlainHost: a host without a rule on a model has no extractor and no catch.
func TestPlainHost(t *testing.T) {
	models := strings.Replace(routeOf("models", onModels("m", "")), "spec:", "spec:\n  hostnames: [models.example.com]", 1)
	for _, h := range tablesOf(t, decode(t, routeBase, models, routeOf("plain", "matches: [{path: {value: /plain}}], "+toA)))["http/80"].VirtualHosts {
		if want := h.Name == "models.example.com"; extracts(t, h) != want || (h.Matcher != nil) != want {
			t.Errorf("host %s: extractor %v, matcher %v", h.Name, extracts(t, h), h.Matcher != nil)
		}
	}
}

// TestMisdirected holds the table of the conformance test
// HTTPRouteHTTPSListenerDetectMisdirectedRequests.
func TestMisdirected(t *testing.T) {
	listener := func(name, hostname string) string {
		return "{name: " + name + ", port: 443, protocol: HTTPS, " + hostname + "tls: {certificateRefs: [{name: cert}]}}"
	}
	gateway := "kind: Gateway\nmetadata: {namespace: default, name: gw}\nspec:\n  gatewayClassName: signalbox\n  listeners:\n  - " + strings.Join([]string{
		listener("l0", ""), listener("second", "hostname: second-example.org, "), listener("wild", "hostname: '*.wildcard.org', "), listener("fourth", "hostname: fourth-example.wildcard.org, "),
	}, "\n  - ")
	route := func(name, section, hostnames string) string {
		return "kind: HTTPRoute\nmetadata: {namespace: default, name: " + name + "}\nspec:\n  parentRefs: [{name: gw, sectionName: " + section + "}]\n  hostnames: [" + hostnames + "]\n  rules: [{" + toA + "}]\n"
	}
	tables := tablesOf(t, decode(t, strings.Replace(routeBase, "listeners: [{name: http, port: 80, protocol: HTTP}]", "listeners: []", 1), gateway,
		route("r0", "l0", "example.org"), route("r2", "second", "second-example.org"), route("r3", "wild", "'*.wildcard.org', fourth-example.wildcard.org"), route("r4", "fourth", "fourth-example.wildcard.org")))
	for _, c := range []struct {
		table, host string
		want        uint32 // 200 stands for a backend
	}{
		{"https/443/l0", "example.org", 200}, {"https/443/l0", "second-example.org", 421}, {"https/443/l0", "unknown-example.org", 404},
		{"https/443/l0", "x.wildcard.org", 421}, {"https/443/l0", "fourth-example.wildcard.org", 421},
		{"https/443/second", "second-example.org", 200}, {"https/443/second", "example.org", 421}, {"https/443/second", "unknown-example.org", 421},
		{"https/443/wild", "third-example.wildcard.org", 200}, {"https/443/wild", "fith-example.wildcard.org", 200},
		{"https/443/wild", "fourth-example.wildcard.org", 421}, {"https/443/wild", "second-example.org", 421}, {"https/443/wild", "unknown-example.org", 421},
		{"https/443/fourth", "fourth-example.wildcard.org", 200}, {"https/443/fourth", "fith-example.wildcard.org", 421},
	} {
		got := uint32(404)
		if r := chooseRoute(tables[c.table], request{host: c.host, path: "/"}); r != nil {
			if got = 200; r.GetDirectResponse() != nil {
				got = r.GetDirectResponse().Status
			}
		}
		if got != c.want {
			t.Errorf("%s, host %s: %d, want %d", c.table, c.host, got, c.want)
		}
	}
}
