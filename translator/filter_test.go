package translator

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// rewritten does what Envoy does to a path that a route has matched.
func rewritten(m *routev3.RouteMatch, prefix string, re *matcherv3.RegexMatchAndSubstitute, path string) string {
	switch {
	case re != nil:
		return regexp.MustCompile(re.Pattern.Regex).ReplaceAllString(path, strings.ReplaceAll(re.Substitution, `\\`, `\`))
	case prefix != "":
		return prefix + strings.TrimPrefix(path, m.GetPrefix()+m.GetPathSeparatedPrefix())
	}
	return path
}

// TestReplacePrefix holds the table at HTTPPathModifier.replacePrefixMatch.
func TestReplacePrefix(t *testing.T) {
	for _, c := range []struct{ path, match, replace, want string }{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo", "/xyz/", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"},
		{"/foo", "/foo", "/xyz", "/xyz"},
		{"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "", "/bar"},
		{"/foo/", "/foo", "", "/"},
		{"/foo", "/foo", "", "/"},
		{"/foo/", "/foo", "/", "/"},
		{"/foo", "/foo", "/", "/"},
		{"/bar", "/", "/xyz", "/xyz/bar"},
		{"/", "/", "/xyz/", "/xyz/"},
		{"/bar", "/", "/", "/bar"},
		{"/foo.x/bar", "/foo.x", "/", "/bar"},
		{"/foo/bar", "/foo", "/foo", "/foo/bar"},
	} {
		rule := "matches: [{path: {value: " + c.match + "}}], filters: [{type: %s, %s: {path: {type: ReplacePrefixMatch, replacePrefixMatch: '" + c.replace + "'}}}]"
		r := only(t, fmt.Sprintf(rule, "URLRewrite", "urlRewrite")+", "+toA)
		if got := rewritten(r.Match, r.GetRoute().PrefixRewrite, r.GetRoute().RegexRewrite, c.path); got != c.want {
			t.Errorf("rewrite of %s: prefix %s by %q: %s, want %s", c.path, c.match, c.replace, got, c.want)
		}
		r = only(t, fmt.Sprintf(rule, "RequestRedirect", "requestRedirect"))
		if got := rewritten(r.Match, r.GetRedirect().GetPrefixRewrite(), r.GetRedirect().GetRegexRewrite(), c.path); got != c.want {
			t.Errorf("redirect of %s: prefix %s by %q: %s, want %s", c.path, c.match, c.replace, got, c.want)
		}
	}
}

func TestRewrite(t *testing.T) {
	r := only(t, `filters: [{type: URLRewrite, urlRewrite: {hostname: x.y, path: {type: ReplaceFullPath, replaceFullPath: '/a\1'}}}], `+toA)
	action := r.GetRoute()
	if got := rewritten(r.Match, "", action.RegexRewrite, "/some/where"); got != `/a\1` || action.GetHostRewriteLiteral() != "x.y" {
		t.Errorf("path %s, host %s", got, action.GetHostRewriteLiteral())
	}
	// The backend's comes last.
	r = only(t, "filters: [{type: URLRewrite, urlRewrite: {hostname: rule, path: {type: ReplaceFullPath, replaceFullPath: /rule}}}], "+
		"backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /backend}}}]}]")
	action = r.GetRoute()
	if got := rewritten(r.Match, action.PrefixRewrite, action.RegexRewrite, "/x"); got != "/backend/x" || action.GetHostRewriteLiteral() != "rule" {
		t.Errorf("path %s, host %s", got, action.GetHostRewriteLiteral())
	}
}

func TestRedirect(t *testing.T) {
	for _, c := range []struct {
		filter string
		on     place
		want   string
	}{
		{"{}", place{Port: 80}, " :0 FOUND"},
		{"{}", place{Port: 8080}, " :8080 FOUND"},
		{"{}", place{Port: 443, TLS: true}, " :0 FOUND"},
		{"{}", place{Port: 8443, TLS: true}, " :8443 FOUND"},
		{"{scheme: https}", place{Port: 80}, "https :0 FOUND"},
		// Envoy would keep the :8080 that the client has written into Host.
		{"{scheme: https}", place{Port: 8080}, "https :443 FOUND"},
		{"{scheme: https, hostname: x.y}", place{Port: 8080}, "https x.y:0 FOUND"},
		{"{scheme: https, port: 443}", place{Port: 80}, "https :0 FOUND"},
		{"{scheme: https, port: 80}", place{Port: 80}, "https :80 FOUND"},
		{"{port: 80}", place{Port: 8080}, " :80 FOUND"},
		{"{port: 80}", place{Port: 443, TLS: true}, " :80 FOUND"},
		{"{hostname: x.y, statusCode: 301}", place{Port: 80}, " x.y:0 MOVED_PERMANENTLY"},
		{"{statusCode: 303}", place{Port: 80}, " :0 SEE_OTHER"},
		{"{statusCode: 307}", place{Port: 80}, " :0 TEMPORARY_REDIRECT"},
		{"{statusCode: 308}", place{Port: 80}, " :0 PERMANENT_REDIRECT"},
		{"{path: {type: ReplaceFullPath, replaceFullPath: /x}}", place{Port: 80}, " :0/x FOUND"},
	} {
		route := decode(t, routeOf("r", "filters: [{type: RequestRedirect, requestRedirect: "+c.filter+"}]"))[0].(*gatewayv1.HTTPRoute)
		b := &routeBuilder{route: route}
		ru := b.rule(0)
		got, err := ru.envoy("r", ru.Matches[0], c.on)
		if err != nil {
			t.Errorf("%s: %v", c.filter, err)
			continue
		}
		r := got.GetRedirect()
		if text := fmt.Sprintf("%s %s:%d%s %s", r.GetSchemeRedirect(), r.HostRedirect, r.PortRedirect, r.GetPathRedirect(), r.ResponseCode); text != c.want {
			t.Errorf("redirect %s on %+v: %s, want %s", c.filter, c.on, text, c.want)
		}
	}
}

func TestHeaderModifiers(t *testing.T) {
	const ruleAndBackend = "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Both, value: rule}, {name: X-Rule, value: '50%'}], add: [{name: X-Add, value: rule}], remove: [X-Gone]}}], "
	const backend = "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-both, value: backend}], add: [{name: X-Add, value: backend}], remove: [X-Other]}}]"
	const want = "-x-gone -x-other x-rule=50%% x-add+=rule x-both=backend x-add+=backend"
	one := only(t, ruleAndBackend+"backendRefs: [{name: a, port: 80, "+backend+"}]")
	if got := changesIn(one.RequestHeadersToRemove, one.RequestHeadersToAdd); got != want {
		t.Errorf("one backend: %s\nwant %s", got, want)
	}
	several := only(t, ruleAndBackend+"backendRefs: [{name: a, port: 80, "+backend+"}, {name: b, port: 80}]")
	clusters := several.GetRoute().GetWeightedClusters().Clusters
	if got := changesIn(clusters[0].RequestHeadersToRemove, clusters[0].RequestHeadersToAdd); got != want {
		t.Errorf("the backend with filters: %s\nwant %s", got, want)
	}
	const rule = "-x-gone x-both=rule x-rule=50%% x-add+=rule"
	if got := changesIn(clusters[1].RequestHeadersToRemove, clusters[1].RequestHeadersToAdd); got != rule {
		t.Errorf("the backend without filters: %s\nwant %s", got, rule)
	}
	if len(several.RequestHeadersToAdd)+len(several.RequestHeadersToRemove) > 0 {
		t.Error("the route itself would change headers again")
	}
}

func changesIn(remove []string, add []*corev3.HeaderValueOption) string {
	var out []string
	for _, name := range remove {
		out = append(out, "-"+name)
	}
	for _, h := range add {
		sign := "="
		if h.AppendAction == corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
			sign = "+="
		}
		out = append(out, h.Header.Key+sign+h.Header.Value)
	}
	return strings.Join(out, " ")
}

// TestHeaderChangesInSequence: the changes that then returns do what the two do one
// after the other, to any request.
func TestHeaderChangesInSequence(t *testing.T) {
	names := rapid.SampledFrom([]string{"a", "b", "c"})
	changes := rapid.Custom(func(t *rapid.T) headerChanges {
		c := headerChanges{Remove: rapid.SliceOfNDistinct(names, 0, 2, rapid.ID).Draw(t, "remove")}
		for i := range rapid.IntRange(0, 3).Draw(t, "adds") {
			action := rapid.SampledFrom([]corev3.HeaderValueOption_HeaderAppendAction{corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}).Draw(t, "action")
			c.Add = append(c.Add, headerValue(names.Draw(t, "name"), fmt.Sprint(i, rapid.IntRange(0, 99).Draw(t, "value")), action))
		}
		return c
	})
	rapid.Check(t, func(t *rapid.T) {
		first, second := changes.Draw(t, "first"), changes.Draw(t, "second")
		request := map[string][]string{"a": {"client's"}, "b": {"client's"}}
		want := second.on(first.on(request))
		got := first.then(second).on(request)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%v, one after the other %v", got, want)
		}
	})
}

// on does what Envoy does with header changes.
func (c headerChanges) on(request map[string][]string) map[string][]string {
	out := map[string][]string{}
	for name, values := range request {
		if !slices.Contains(c.Remove, name) {
			out[name] = values
		}
	}
	for _, h := range c.Add {
		if h.AppendAction == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			out[h.Header.Key] = nil
		}
		out[h.Header.Key] = append(slices.Clone(out[h.Header.Key]), h.Header.Value)
	}
	return out
}
