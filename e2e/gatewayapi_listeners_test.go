package e2e

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// yamlListeners is a GatewayClass and a Gateway default/gw with these listeners, in flow
// style without braces.
func yamlListeners(listeners ...string) string {
	head, _, _ := strings.Cut(yamlGateway, "  listeners:")
	return head + "  listeners: [{" + strings.Join(listeners, "}, {") + "}]\n"
}

// yamlRouteOf is an HTTPRoute that leads to Service NAME of its own namespace; spec is
// more of it, such as "hostnames: […]".
func yamlRouteOf(namespace, name, parent, spec string) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: %s}
spec:
  parentRefs: [{name: gw, namespace: default%s}]
  %s
  rules: [{backendRefs: [{name: %s, port: 80}]}]
`, name, namespace, parent, spec, name)
}

// yamlNamespaced is a Service of a pod in another namespace than default.
func yamlNamespaced(namespace, name string, p *pod) string {
	return strings.ReplaceAll(yamlService(name, p), "namespace: default", "namespace: "+namespace)
}

// TestGatewayAPIAttachment: which listeners a route attaches to, by name, port, namespace
// and hostname, also when that changes.
func TestGatewayAPIAttachment(t *testing.T) {
	t.Parallel()
	files := map[string]string{"gateway.yaml": yamlListeners(
		"name: same, port: 80, protocol: HTTP",
		"name: all, port: 81, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}",
		"name: chosen, port: 82, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: red}}}}",
		"name: hosted, port: 83, protocol: HTTP, hostname: '*.example.com'",
	)}
	namespaces := map[string]string{"section": "default", "port": "default", "red": "red", "blue": "blue", "hosts": "default"}
	parents := map[string]string{"section": ", sectionName: same", "port": ", port: 81", "hosts": ", sectionName: hosted"}
	specs := map[string]string{"hosts": "hostnames: [a.example.com, '*.b.example.com', other.org]", "red": "hostnames: [red.org]", "blue": "hostnames: [blue.org]"}
	for name, ns := range namespaces {
		files[name+".yaml"] = yamlRouteOf(ns, name, parents[name], specs[name]) + yamlNamespaced(ns, name, startPod(t, name))
	}
	namespace := func(name, team string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {team: %s}}\n", name, team)
	}
	files["namespaces.yaml"] = namespace("red", "red") + "---\n" + namespace("blue", "blue")
	b := startBox(t, files, boxOptions{Listeners: []int{80, 81, 82, 83}})
	b.verify(
		check{"GET http://80/", "200 pod=section"}, check{"GET http://81/", "200 pod=port"}, check{"GET http://82/", "404"},
		check{"GET http://80/ Host:red.org", "200 pod=section"}, check{"GET http://81/ Host:red.org", "200 pod=red"}, check{"GET http://81/ Host:blue.org", "200 pod=blue"},
		check{"GET http://82/ Host:red.org", "200 pod=red"}, check{"GET http://82/ Host:blue.org", "404"},
		check{"GET http://83/ Host:a.example.com", "200 pod=hosts"}, check{"GET http://83/ Host:A.Example.COM:8080", "200 pod=hosts"},
		check{"GET http://83/ Host:x.b.example.com", "200 pod=hosts"}, check{"GET http://83/ Host:b.example.com", "404"},
		check{"GET http://83/ Host:other.org", "404"}, check{"GET http://83/ Host:c.example.com", "404"},
		check{"GET http://80/ Host:a.example.com", "200 pod=section"},
	)
	if got := b.condition("HTTPRoute", "blue/blue", "parent gw", "Accepted"); !strings.HasPrefix(got, "True ") {
		t.Errorf("the route that one listener of three takes is %q", got)
	}
	// Labels of namespaces, and listeners themselves, change.
	b.Write("namespaces.yaml", namespace("red", "blue")+"---\n"+namespace("blue", "red"))
	b.await(check{"GET http://82/ Host:blue.org", "200 pod=blue"})
	b.await(check{"GET http://82/ Host:red.org", "404"})
	b.Write("section.yaml", yamlRouteOf("default", "section", ", sectionName: nowhere", "")+yamlNamespaced("default", "section", startPod(t, "section")))
	b.await(check{"GET http://80/", "404"})
	if got := b.condition("HTTPRoute", "default/section", "parent gw/nowhere", "Accepted"); !strings.HasPrefix(got, "False NoMatchingParent ") {
		t.Errorf("a route to a listener that does not exist is %q", got)
	}
}

// TestGatewayAPIIsolation: of several listeners on a port, a request is of the most
// specific one alone (GatewayHTTPListenerIsolation, and its test's hostnames).
func TestGatewayAPIIsolation(t *testing.T) {
	t.Parallel()
	hosts := map[string]string{"empty": "", "wild": "*.example.com", "foo": "*.foo.example.com", "abc": "abc.foo.example.com"}
	var listeners []string
	files := map[string]string{}
	for name, host := range hosts {
		l := "name: " + name + ", port: 80, protocol: HTTP"
		if host != "" {
			l += fmt.Sprintf(", hostname: %q", host)
		}
		listeners = append(listeners, l)
		// Every route is for every host that its listener gives it, below a path of its own.
		files[name+".yaml"] = strings.Replace(yamlRouteOf("default", name, ", sectionName: "+name, ""), "rules: [{", "rules: [{matches: ["+onPath("/"+name)+"], ", 1) +
			yamlService(name, startPod(t, name))
	}
	files["gateway.yaml"] = yamlListeners(listeners...)
	b := startBox(t, files, boxOptions{Ready: len(listeners)})
	for host, owner := range map[string]string{"bar.com": "empty", "example.com": "empty", "bar.example.com": "wild", "foo.example.com": "wild",
		"bar.foo.example.com": "foo", "a.b.foo.example.com": "foo", "abc.foo.example.com": "abc"} {
		for name := range hosts {
			want := "404"
			if name == owner {
				want = "200 pod=" + name
			}
			b.verify(check{"GET /" + name + " Host:" + host, want})
		}
	}
}

// TestGatewayAPIGateways: two Gateways, each with an Envoy of its own; on the same port the
// older, or else the first by name, has it.
func TestGatewayAPIGateways(t *testing.T) {
	t.Parallel()
	second := func(port int) string {
		_, gateway, _ := strings.Cut(yamlListeners(fmt.Sprintf("name: http, port: %d, protocol: HTTP", port)), "---\n")
		return strings.Replace(gateway, "name: gw,", "name: second,", 1)
	}
	b := startBox(t, map[string]string{
		"first.yaml":  yamlGateway + yamlRouteOf("default", "one", "", "") + yamlService("one", startPod(t, "one")),
		"second.yaml": second(81),
		"two.yaml":    strings.Replace(yamlRouteOf("default", "two", "", ""), "name: gw,", "name: second,", 1) + yamlService("two", startPod(t, "two")),
	}, boxOptions{Listeners: []int{80, 81}})
	one, two := check{"GET http://80/", "200 pod=one"}, check{"GET http://81/", "200 pod=two"}
	b.verify(one, two)
	b.Write("second.yaml", second(80))
	waitFor(t, "the second Gateway is told that its port is taken", func() bool {
		return strings.HasPrefix(b.condition("Gateway", "default/second", "listener http", "Accepted"), "False PortUnavailable ")
	})
	for range 20 { // no connection of the first Gateway's port goes to the second
		req, err := http.NewRequest(http.MethodGet, b.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true
		if problem := compare(do(sharedClient, req), one.want); problem != "" {
			t.Fatal(problem)
		}
	}
	if got := b.condition("Gateway", "default/gw", "", "Programmed"); !strings.HasPrefix(got, "True ") {
		t.Errorf("the first Gateway is %q", got)
	}
	b.Write("second.yaml", second(81))
	b.await(two)
	b.verify(one)
}

// TestGatewayAPIGrants: what is in another namespace is used as long as that allows it.
func TestGatewayAPIGrants(t *testing.T) {
	t.Parallel()
	p := startPod(t, "far")
	ref := func(what string) string { return "backendRefs: [{name: far, namespace: far, " + what + "}]" }
	cert := newCertificate(t, "example.com")
	b := startBox(t, map[string]string{
		"gateway.yaml": yamlListeners("name: http, port: 80, protocol: HTTP", "name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: far, namespace: far}]}"),
		"far.yaml":     yamlNamespaced("far", "far", p) + strings.ReplaceAll(yamlPool("far", "", p), "default", "far"),
		"secret.yaml":  strings.ReplaceAll(yamlSecret("far", cert), "default", "far"),
		"near.yaml":    yamlService("near", startPod(t, "near")),
		"route.yaml": yamlRoute("route",
			rule(ref("port: 80"), onPath("/service")), rule(ref("group: inference.networking.k8s.io, kind: InferencePool"), onPath("/pool")),
			rule("backendRefs: [{name: near, port: 80, weight: 0}, {name: far, namespace: far, port: 80}]", onPath("/weighted")), rule(toService("near"), onPath("/near"))),
	}, boxOptions{Listeners: []int{80, 443}, Ready: 1})
	grant := func(from, to string) string {
		return fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: grant, namespace: far}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: %s, namespace: default}]\n  to: [%s]\n", from, to)
	}
	service, pool, weighted, near := "GET /service", "GET /pool", "GET /weighted", check{"GET /near", "200 pod=near"}
	b.verify(check{service, "500"}, check{pool, "500"}, check{weighted, "500"}, near)
	for range 2 {
		b.Write("grant.yaml", grant("HTTPRoute", `{group: "", kind: Service}`))
		b.await(check{service, "200 pod=far"})
		b.await(check{weighted, "200 pod=far"})
		b.verify(check{pool, "500"}, near)
		b.Write("grant.yaml", grant("HTTPRoute", `{group: inference.networking.k8s.io, kind: InferencePool, name: far}, {group: "", kind: Service, name: another-than-this-one}`))
		b.await(check{pool, "200 pod=far"})
		b.await(check{service, "500"})
		if got := b.condition("HTTPRoute", "default/route", "parent gw", "ResolvedRefs"); !strings.HasPrefix(got, "False RefNotPermitted ") {
			t.Errorf("ResolvedRefs of the route is %q", got)
		}
		b.Remove("grant.yaml")
		b.await(check{pool, "500"})
		b.verify(check{service, "500"}, check{weighted, "500"}, near)
	}
	// A certificate, too.
	address := fmt.Sprintf("127.0.0.1:%d", b.Ports[443])
	shakes := func() bool {
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: cert.pool(t), ServerName: "example.com"})
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if shakes() {
		t.Error("a certificate of another namespace is used without a grant")
	}
	b.Write("grant.yaml", grant("Gateway", `{group: "", kind: Secret, name: far}`))
	waitFor(t, "the granted certificate is served", shakes)
	b.Remove("grant.yaml")
	waitFor(t, "the listener says that its certificate is not granted any more", func() bool {
		return strings.HasPrefix(b.condition("Gateway", "default/gw", "listener https", "ResolvedRefs"), "False RefNotPermitted ")
	})
}

// TestGatewayAPIMisdirected: over one connection, only the hosts of the listener whose
// name the handshake said (GatewayHTTPSListenerDetectMisdirectedRequests, and its table),
// and each listener's own certificate.
func TestGatewayAPIMisdirected(t *testing.T) {
	t.Parallel()
	hostnames := []string{"", "second-example.org", "*.wildcard.org", "fourth-example.wildcard.org"}
	routes := []string{"example.org", "second-example.org", "third-example.wildcard.org, fith-example.wildcard.org", "fourth-example.wildcard.org"}
	p := startPod(t, "pod")
	files := map[string]string{"gateway.yaml": yamlHTTPSGateway(hostnames...), "pod.yaml": yamlService("pod", p)}
	var certificates []certificate
	for i, h := range hostnames {
		if h == "" {
			h = "*.org"
		}
		certificates = append(certificates, newCertificate(t, h))
		route := yamlRouteOf("default", "pod", fmt.Sprintf(", sectionName: https-%d", i), "hostnames: ["+routes[i]+"]")
		files[fmt.Sprintf("%d.yaml", i)] = yamlSecret(fmt.Sprintf("cert-%d", i), certificates[i]) + strings.Replace(route, "{name: pod,", fmt.Sprintf("{name: route-%d,", i), 1)
	}
	b := startBox(t, files, boxOptions{Listeners: []int{443}, Ready: 4})
	url := fmt.Sprintf("https://127.0.0.1:%d/", b.Ports[443])
	for _, row := range []struct {
		sni      string
		listener int
		want     map[string]int
	}{
		{"example.org", 0, map[string]int{"example.org": 200, "second-example.org": 421, "unknown-example.org": 404, "third-example.wildcard.org": 421}},
		{"second-example.org", 1, map[string]int{"second-example.org": 200, "example.org": 421, "unknown-example.org": 421}},
		{"third-example.wildcard.org", 2, map[string]int{"third-example.wildcard.org": 200, "fith-example.wildcard.org": 200,
			"fourth-example.wildcard.org": 421, "second-example.org": 421, "unknown-example.org": 421, "other.wildcard.org": 404}},
		{"fourth-example.wildcard.org", 3, map[string]int{"fourth-example.wildcard.org": 200, "fith-example.wildcard.org": 421}},
		{"unknown-example.org", 0, map[string]int{"example.org": 200, "unknown-example.org": 404}},
	} {
		for _, http2 := range []bool{true, false} {
			tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: certificates[row.listener].pool(t), ServerName: row.sni}, Protocols: &http.Protocols{}}
			tr.Protocols.SetHTTP2(http2)
			tr.Protocols.SetHTTP1(!http2)
			for host, want := range row.want {
				for _, port := range []string{"", fmt.Sprintf(":%d", b.Ports[443])} {
					req, err := http.NewRequest(http.MethodGet, url, nil)
					if err != nil {
						t.Fatal(err)
					}
					req.Host = host + port
					if a := do(&http.Client{Transport: tr}, req); a.Err != nil || a.Status != want {
						t.Errorf("HTTP/2 %v, handshake for %s, request for %s: %d %v; want %d", http2, row.sni, req.Host, a.Status, a.Err, want)
					}
				}
			}
			tr.CloseIdleConnections()
		}
	}
}
