package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// check is a request and what must come of it, in words:
//
//	METHOD [http://PORT]PATH [HEADER:VALUE …]; Host: counts, else it is example.com
//	STATUS [pod=NAME] [path=… host=… >HEADER=… as the pod got it] [<HEADER=… of the answer]
//
// A header that must not be there has an empty value; of several values, they are joined
// by commas. PORT is that of a listener.
type check struct{ request, want string }

// directClient follows no redirects.
var directClient = &http.Client{Transport: sharedClient.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// verify sends the requests and compares.
func (b *box) verify(checks ...check) {
	b.t.Helper()
	for _, c := range checks {
		if problem := b.try(c); problem != "" {
			b.t.Errorf("%s: %s", c.request, problem)
		}
	}
}

// await waits until a check holds, for what has just been changed.
func (b *box) await(c check) {
	b.t.Helper()
	waitFor(b.t, fmt.Sprintf("%s: %s", c.request, c.want), func() bool { return b.try(c) == "" })
}

// try returns what is wrong with the answer to a check; "" if nothing is.
func (b *box) try(c check) string {
	b.t.Helper()
	words := strings.Fields(c.request)
	url := b.URL + words[1]
	if rest, ok := strings.CutPrefix(words[1], "http://"); ok {
		var port int
		if _, err := fmt.Sscan(rest[:strings.IndexByte(rest, '/')], &port); err != nil {
			b.t.Fatal(err)
		}
		url = fmt.Sprintf("http://127.0.0.1:%d%s", b.Ports[port], rest[strings.IndexByte(rest, '/'):])
	}
	req, err := http.NewRequestWithContext(b.t.Context(), words[0], url, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Host = "example.com"
	for _, h := range words[2:] {
		name, value, _ := strings.Cut(h, ":")
		if name == "Host" {
			req.Host = value
		} else {
			req.Header.Add(name, value)
		}
	}
	return compare(do(directClient, req), c.want)
}

// compare returns how an answer differs from the words of a check.
func compare(a answer, want string) string {
	if a.Err != nil {
		return a.Err.Error()
	}
	words := strings.Fields(want)
	var got received
	if fmt.Sprint(a.Status) != words[0] || a.Status == 200 && json.Unmarshal([]byte(a.Body), &got) != nil {
		return fmt.Sprintf("status %d %s; want %s", a.Status, a.Body, want)
	}
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		var is string
		switch name[0] {
		case '<':
			is = strings.Join(a.Header.Values(name[1:]), ",")
		case '>':
			is = strings.Join(http.Header(got.Header).Values(name[1:]), ",")
		default:
			is = map[string]string{"pod": got.Pod, "path": got.Path, "host": got.Host}[name]
		}
		if is != value {
			return fmt.Sprintf("%s is %q; want %q", name, is, value)
		}
	}
	return ""
}

// share sends a request many times, and returns how many answers came from each pod, or
// had each status if there was none.
func (b *box) share(path string, times int) map[string]int {
	b.t.Helper()
	out := map[string]int{}
	for range times {
		a := get(b.t.Context(), b.URL+path)
		if a.Err != nil {
			b.t.Fatal(a.Err)
		}
		if pod := a.Header.Get("X-Pod"); pod != "" {
			out[pod]++
		} else {
			out[fmt.Sprint(a.Status)]++
		}
	}
	return out
}

// apiWorld is a Gateway with Services a, b, slow (never answers), h2c, and empty.
func apiWorld(t *testing.T, files map[string]string, listeners ...int) *box {
	t.Helper()
	a, other := startPod(t, "a"), startPod(t, "b")
	slow := startPodWith(t, "slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	http2 := startPodWith(t, "h2c", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(received{Pod: "h2c", Path: r.Proto})
	})
	all := map[string]string{
		"gateway.yaml": yamlGateway,
		"services.yaml": yamlService("a", a) + yamlService("b", other) + yamlService("slow", slow) + yamlService("empty") +
			strings.Replace(yamlService("h2c", http2), "port: 80}", "port: 80, appProtocol: kubernetes.io/h2c}", 1),
	}
	for name, text := range files {
		all[name] = text
	}
	return startBox(t, all, boxOptions{Listeners: listeners})
}

// TestGatewayAPIMatches: methods, paths, headers, query parameters, named rules, none.
func TestGatewayAPIMatches(t *testing.T) {
	t.Parallel()
	b := apiWorld(t, map[string]string{"route.yaml": yamlRoute("matches",
		rule(toService("a"), "{path: {type: Exact, value: /exact}}", "{path: {type: PathPrefix, value: /prefix/}}"),
		rule(toService("b"), `{path: {type: RegularExpression, value: "/re/[0-9]+"}}`, "{path: {value: /method}, method: DELETE}"),
		rule(toService("a"), "{path: {value: /header}, headers: [{name: X-A, value: one}, {name: x-b, type: RegularExpression, value: 't.*'}]}"),
		rule(toService("b"), "{path: {value: /query}, queryParams: [{name: q, value: one}, {name: r, type: RegularExpression, value: '[0-9]+'}]}"),
		"{name: named, "+rule(toService("a"), onPath("/named"))[1:],
	)})
	b.verify(
		check{"GET /exact", "200 pod=a path=/exact"}, check{"GET /exact?q=1", "200 pod=a path=/exact?q=1"},
		check{"GET /exact/", "404"}, check{"GET /exactly", "404"},
		check{"GET /prefix", "200 pod=a"}, check{"GET /prefix/", "200 pod=a"}, check{"GET /prefix/x/y", "200 pod=a path=/prefix/x/y"}, check{"GET /prefixed", "404"},
		check{"GET /re/12", "200 pod=b"}, check{"GET /re/12x", "404"}, check{"GET /x/re/12", "404"},
		check{"DELETE /method", "200 pod=b"}, check{"GET /method", "404"}, check{"POST /method", "404"},
		check{"GET /header X-A:one X-B:two", "200 pod=a"}, check{"GET /header x-a:one x-b:t", "200 pod=a"},
		check{"GET /header X-A:one X-B:one", "404"}, check{"GET /header X-A:One X-B:two", "404"}, check{"GET /header X-B:two", "404"},
		check{"GET /query?q=one&r=12", "200 pod=b path=/query?q=one&r=12"}, check{"GET /query?r=1&x=y&q=one", "200 pod=b"},
		check{"GET /query?q=one&r=x", "404"}, check{"GET /query?q=one", "404"}, check{"GET /query", "404"},
		check{"GET /named", "200 pod=a"},
		check{"GET /", "404 <x-pod="}, check{"GET /nothing Host:other.example.org", "404"},
	)
}

// TestGatewayAPIHeaders: modifiers of requests and responses, of rules and of backends.
func TestGatewayAPIHeaders(t *testing.T) {
	t.Parallel()
	request := func(what string) string {
		return "{type: RequestHeaderModifier, requestHeaderModifier: {" + what + "}}"
	}
	response := func(what string) string {
		return "{type: ResponseHeaderModifier, responseHeaderModifier: {" + what + "}}"
	}
	of := func(filters ...string) string { return "filters: [" + strings.Join(filters, ", ") + "]" }
	const all = "set: [{name: X-Set, value: new}], add: [{name: X-Add, value: more}], remove: [X-Remove, X-Absent]"
	b := apiWorld(t, map[string]string{"route.yaml": yamlRoute("headers",
		rule(of(request(all))+", "+toService("a"), onPath("/request")),
		rule(of(response("set: [{name: X-Pod, value: hidden}], add: [{name: Set-Cookie, value: c=3}], remove: [Content-Type]"))+", "+toService("a"), onPath("/response")),
		rule("backendRefs: [{name: a, port: 80, "+of(request(all), response("set: [{name: X-R, value: a}]"))+"}]", onPath("/backend")),
		rule(of(request("set: [{name: X-Set, value: rule}], add: [{name: X-Add, value: rule}]"), response("add: [{name: X-R, value: rule}]"))+
			", backendRefs: [{name: a, port: 80, "+of(request("set: [{name: X-Set, value: backend}], add: [{name: X-Add, value: backend}]"), response("add: [{name: X-R, value: backend}]"))+"}]", onPath("/both")),
		rule(of(request("set: [{name: X-Percent, value: '100% %REQ(:path)%'}]"))+", "+toService("a"), onPath("/percent")),
		rule("backendRefs: [{name: a, port: 80, weight: 1, "+of(request("set: [{name: X-To, value: a}]"))+"}, {name: b, port: 80, weight: 1, "+of(request("set: [{name: X-To, value: b}]"))+"}]", onPath("/each")),
	)})
	b.verify(
		check{"GET /request X-Set:old X-Add:some X-Remove:1 X-Keep:2", "200 >x-set=new >x-add=some,more >x-remove= >x-keep=2"},
		check{"GET /request", "200 >x-set=new >x-add=more"},
		check{"GET /response", "200 <x-pod=hidden <set-cookie=a=1,b=2,c=3 <content-type="},
		check{"GET /backend X-Set:old X-Add:some X-Remove:1", "200 >x-set=new >x-add=some,more >x-remove= <x-r=a"},
		check{"GET /both X-Set:old", "200 >x-set=backend >x-add=rule,backend <x-r=rule,backend"},
	)
	a := get(t.Context(), b.URL+"/percent").decode(t)
	if got := http.Header(a.Header).Get("X-Percent"); got != "100% %REQ(:path)%" {
		t.Errorf("a value with percent signs arrives as %q", got)
	}
	for range 20 {
		if r := get(t.Context(), b.URL+"/each").decode(t); http.Header(r.Header).Get("X-To") != r.Pod {
			t.Errorf("pod %s got the header of backend %v", r.Pod, r.Header["X-To"])
		}
	}
}

// TestGatewayAPIRedirects: every part of a URL, and every status.
func TestGatewayAPIRedirects(t *testing.T) {
	t.Parallel()
	redirect := func(path, what string) string {
		return rule("filters: [{type: RequestRedirect, requestRedirect: {"+what+"}}]", onPath(path))
	}
	rules := []string{
		redirect("/scheme", "scheme: https"),
		redirect("/host", "hostname: example.org"),
		redirect("/port", "port: 8443"),
		redirect("/all", "scheme: https, hostname: example.org, port: 8443, path: {type: ReplaceFullPath, replaceFullPath: /new}"),
		redirect("/full", "path: {type: ReplaceFullPath, replaceFullPath: /new}"),
		redirect("/prefix", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}"),
		redirect("/away", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}"),
	}
	for _, code := range []int{301, 302, 303, 307, 308} {
		rules = append(rules, redirect(fmt.Sprintf("/%d", code), fmt.Sprintf("hostname: example.org, statusCode: %d", code)))
	}
	b := apiWorld(t, map[string]string{
		"gateway.yaml": yamlListeners("name: http, port: 80, protocol: HTTP", "name: other, port: 8080, protocol: HTTP"),
		"route.yaml":   yamlRoute("redirects", rules...),
	}, 80, 8080)
	b.verify(
		check{"GET /scheme/x?y=z", "302 <location=https://example.com/scheme/x?y=z"},
		check{"GET /host/x", "302 <location=http://example.org/host/x"},
		check{"GET /port/x", "302 <location=http://example.com:8443/port/x"},
		check{"GET /all/x", "302 <location=https://example.org:8443/new"},
		check{"GET /full/x?y=z", "302 <location=http://example.com/new?y=z"},
		check{"GET /prefix/x?y=z", "302 <location=http://example.com/new/x?y=z"},
		check{"GET /prefix", "302 <location=http://example.com/new"},
		check{"GET /away/x", "302 <location=http://example.com/x"}, check{"GET /away", "302 <location=http://example.com/"},
		// Without a port, it is the scheme's, or else the listener's.
		check{"GET http://8080/scheme/x Host:example.com:8080", "302 <location=https://example.com:443/scheme/x"},
		check{"GET http://8080/host/x Host:example.com:8080", "302 <location=http://example.org:8080/host/x"},
		check{"GET http://8080/full/x Host:example.com:8080", "302 <location=http://example.com:8080/new"},
		check{"GET http://8080/full/x", "302 <location=http://example.com:8080/new"},
	)
	for _, code := range []int{301, 302, 303, 307, 308} {
		b.verify(check{fmt.Sprintf("GET /%d/x", code), fmt.Sprintf("%d <location=http://example.org/%d/x", code, code)})
	}
}

// TestGatewayAPIRewrites: hosts, whole paths, and the table of HTTPPathModifier's
// replacePrefixMatch.
func TestGatewayAPIRewrites(t *testing.T) {
	t.Parallel()
	rewrite := func(path, what string) string {
		return rule("filters: [{type: URLRewrite, urlRewrite: {"+what+"}}], "+toService("a"), onPath(path))
	}
	rules := []string{
		rewrite("/host", "hostname: example.org"),
		rewrite("/full", "path: {type: ReplaceFullPath, replaceFullPath: /new}"),
		rewrite("/both", "hostname: example.org, path: {type: ReplaceFullPath, replaceFullPath: /new}"),
		rule("backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: example.net}}]}]", onPath("/backend")),
	}
	checks := []check{
		{"GET /host/x", "200 host=example.org path=/host/x"},
		{"GET /full/x?y=z", "200 host=example.com path=/new?y=z"},
		{"GET /both/x", "200 host=example.org path=/new"},
		{"GET /backend/x", "200 host=example.net path=/backend/x"},
	}
	for i, row := range [][4]string{ // request, prefix, replacement, what the pod gets
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
		{"/foo/bar", "/foo", "/", "/bar"},
		{"/foo/bar?x=/foo", "/foo", "/xyz", "/xyz/bar?x=/foo"},
	} {
		at := fmt.Sprintf("/row-%d", i)
		rules = append(rules, rewrite(at+row[1], fmt.Sprintf("path: {type: ReplacePrefixMatch, replacePrefixMatch: %q}", row[2])))
		checks = append(checks, check{"GET " + at + row[0], "200 path=" + row[3]})
	}
	b := apiWorld(t, map[string]string{"a.yaml": yamlRoute("rewrites-a", rules[:10]...), "b.yaml": yamlRoute("rewrites-b", rules[10:]...)})
	b.verify(checks...)
}

// TestGatewayAPIBackends: weights, timeouts, protocols, and backends that are not there.
func TestGatewayAPIBackends(t *testing.T) {
	t.Parallel()
	weighted := func(path string, refs ...string) string {
		return rule("backendRefs: ["+strings.Join(refs, ", ")+"]", onPath(path))
	}
	b := apiWorld(t, map[string]string{"route.yaml": yamlRoute("backends",
		weighted("/three-to-one", "{name: a, port: 80, weight: 3}", "{name: b, port: 80, weight: 1}"),
		weighted("/zero", "{name: a, port: 80, weight: 0}", "{name: b, port: 80}"),
		weighted("/none", "{name: a, port: 80, weight: 0}"),
		weighted("/half", "{name: a, port: 80}", "{name: nobody, port: 80}"),
		weighted("/half-empty", "{name: a, port: 80}", "{name: empty, port: 80}"),
		rule(toService("nobody"), onPath("/nobody")),
		rule("backendRefs: [{name: a, port: 81}]", onPath("/port")),
		rule("backendRefs: [{kind: Secret, name: a, port: 80}]", onPath("/kind")),
		rule(toService("empty"), onPath("/empty")),
		rule(toService("h2c"), onPath("/h2c")),
		"{matches: ["+onPath("/no-backend")+"]}",
		rule("timeouts: {request: 200ms}, "+toService("slow"), onPath("/request-timeout")),
		rule("timeouts: {request: 1h, backendRequest: 200ms}, "+toService("slow"), onPath("/backend-timeout")),
		rule("timeouts: {request: 1h, backendRequest: 0s}, "+toService("a"), onPath("/no-timeout")),
	)})
	b.verify(
		check{"GET /nobody", "500"}, check{"GET /port", "500"}, check{"GET /kind", "500"}, check{"GET /none", "500"}, check{"GET /no-backend", "500"},
		check{"GET /empty", "503"},
		check{"GET /h2c", "200 pod=h2c path=HTTP/2.0"},
		check{"GET /request-timeout", "504"}, check{"GET /backend-timeout", "504"}, check{"GET /no-timeout", "200 pod=a"},
	)
	for _, s := range []struct {
		path   string
		shares map[string][2]int // the least and the most of 400; six standard deviations
	}{
		{"/three-to-one", map[string][2]int{"a": {248, 352}, "b": {48, 152}}},
		{"/zero", map[string][2]int{"b": {400, 400}}},
		{"/half", map[string][2]int{"a": {140, 260}, "500": {140, 260}}},
		{"/half-empty", map[string][2]int{"a": {140, 260}, "503": {140, 260}}},
	} {
		got := b.share(s.path, 400)
		for who, bounds := range s.shares {
			if n := got[who]; n < bounds[0] || n > bounds[1] || len(got) != len(s.shares) {
				t.Errorf("%s: of 400 requests went %v; want %v", s.path, got, s.shares)
			}
		}
	}
	for object, want := range map[string]string{"Accepted": "True Accepted", "ResolvedRefs": "False "} {
		if got := b.condition("HTTPRoute", "default/backends", "parent gw", object); !strings.HasPrefix(got, want) {
			t.Errorf("%s of the route is %q; want %s…", object, got, want)
		}
	}
}
