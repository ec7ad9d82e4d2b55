package translator

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

func TestIntersections(t *testing.T) {
	for _, test := range []struct{ listener, route, want string }{
		{"", "", ":"},
		{"a.org", "", "a.org:"},
		{"*.a.org", "", "*.a.org:"},
		{"", "b.org a.b.org *.b.org", "a.b.org:a.b.org b.org:b.org *.b.org:*.b.org"},
		{"a.org", "a.org", "a.org:a.org"},
		{"a.org", "A.org", "a.org:a.org"},
		{"a.org", "b.org", ""},
		{"a.org", "*.org", "a.org:*.org"},
		{"a.org", "*.a.org", ""},
		{"*.a.org", "a.org", ""},
		{"*.a.org", "x.a.org", "x.a.org:x.a.org"},
		{"*.a.org", "x.y.a.org", "x.y.a.org:x.y.a.org"},
		{"*.a.org", "xa.org", ""},
		{"*.a.org", "*.a.org", "*.a.org:*.a.org"},
		{"*.a.org", "*.org", "*.a.org:*.org"},
		{"*.org", "*.a.org", "*.a.org:*.a.org"},
		{"*.a.org", "*.b.org", ""},
		{"*.a.org", "*.ba.org", ""},
		// Several hostnames of the route come to one host: the most specific counts.
		{"x.a.org", "*.org x.a.org *.a.org", "x.a.org:x.a.org"},
		{"x.a.org", "*.org *.a.org", "x.a.org:*.a.org"},
		{"*.a.org", "*.org y.a.org other.com", "y.a.org:y.a.org *.a.org:*.org"},
	} {
		var hostnames []gatewayv1.Hostname
		for _, h := range strings.Fields(test.route) {
			hostnames = append(hostnames, gatewayv1.Hostname(h))
		}
		var got []string
		for _, h := range intersections(test.listener, hostnames) {
			got = append(got, h.Host+":"+h.Route)
		}
		if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("listener %q, route %q (-want +got):\n%s", test.listener, test.route, diff)
		}
	}
}

func TestIntersectIsSymmetric(t *testing.T) {
	names := []string{"", "a.org", "*.org", "*.a.org", "b.a.org", "*.b.a.org", "x.b.a.org", "org", "ba.org"}
	for _, a := range names {
		for _, b := range names {
			x, okX := intersect(a, b)
			y, okY := intersect(b, a)
			if x != y || okX != okY {
				t.Errorf("%q and %q: %q %v one way, %q %v the other", a, b, x, okX, y, okY)
			}
		}
	}
}

func TestAttach(t *testing.T) {
	gateway := gatewayOf(
		`{name: all, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}`,
		`{name: same, port: 81, protocol: HTTP, hostname: '*.a.org'}`,
		`{name: selected, port: 82, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: x}}}}}`,
		`{name: named, port: 83, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: far}}}}}`,
		`{name: grpc, port: 84, protocol: HTTP, allowedRoutes: {namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}}`,
		`{name: tcp, port: 85, protocol: TCP}`,
		`{name: twice, port: 86, protocol: HTTP}`, `{name: twice-too, port: 86, protocol: HTTP}`)
	namespaces := "kind: Namespace\nmetadata: {name: x, labels: {team: x}}"
	for _, test := range []struct {
		name, namespace, hostnames, parent string
		want                               string // listeners, or the reason
		message                            string
	}{
		{name: "whole Gateway", namespace: "ns", parent: `{name: gw}`, want: "all same twice twice-too"},
		{name: "group and kind given", namespace: "ns", parent: `{group: gateway.networking.k8s.io, kind: Gateway, namespace: ns, name: gw, sectionName: all}`, want: "all"},
		{name: "Service of that name", namespace: "ns", parent: `{group: '', kind: Service, name: gw}`, want: "none"},
		{name: "no such Gateway", namespace: "ns", parent: `{name: other}`, want: "none"},
		{name: "Gateway of another namespace", namespace: "x", parent: `{name: gw}`, want: "none"},
		{name: "by port", namespace: "ns", parent: `{name: gw, port: 80}`, want: "all"},
		{name: "no such section", namespace: "ns", parent: `{name: gw, sectionName: nope}`, want: "NoMatchingParent", message: "The Gateway ns/gw has no listener named nope."},
		{name: "section on another port", namespace: "ns", parent: `{name: gw, sectionName: all, port: 81}`, want: "NoMatchingParent", message: "named all on port 81"},
		{name: "another namespace", namespace: "far", parent: `{namespace: ns, name: gw}`, want: "all named"},
		{name: "same only", namespace: "far", parent: `{namespace: ns, name: gw, sectionName: same}`, want: "NotAllowedByListeners", message: "listener same takes routes of its own namespace, ns, only"},
		{name: "selected by label", namespace: "x", parent: `{namespace: ns, name: gw, sectionName: selected}`, want: "selected"},
		{name: "not selected", namespace: "far", parent: `{namespace: ns, name: gw, sectionName: selected}`, want: "NotAllowedByListeners", message: "does not match far"},
		{name: "kind not allowed", namespace: "ns", parent: `{name: gw, sectionName: grpc}`, want: "NotAllowedByListeners", message: "listener grpc does not take HTTPRoutes"},
		{name: "unsupported protocol", namespace: "ns", parent: `{name: gw, sectionName: tcp}`, want: "NotAllowedByListeners"},
		{name: "hostname", namespace: "ns", hostnames: "b.org", parent: `{name: gw, sectionName: same}`, want: "NoMatchingListenerHostname", message: "(b.org) is served by a listener of the Gateway ns/gw: listener same has *.a.org"},
		{name: "hostname on some", namespace: "ns", hostnames: "b.org", parent: `{name: gw}`, want: "all twice twice-too"},
		{name: "conflicted listeners count", namespace: "ns", parent: `{name: gw, port: 86}`, want: "twice twice-too"},
	} {
		t.Run(test.name, func(t *testing.T) {
			route := fmt.Sprintf("kind: HTTPRoute\nmetadata: {namespace: %s, name: r}\nspec:\n  parentRefs: [%s]\n  hostnames: [%s]", test.namespace, test.parent, test.hostnames)
			tr := New(Options{})
			objects := decode(t, testClass, gateway, namespaces, route)
			tr.Apply(changesOf(objects), nil)
			o := objects[3].(*gatewayv1.HTTPRoute)
			got, message := "none", ""
			for _, a := range tr.t.attach(nil, test.namespace, o.Spec.Hostnames, o.Spec.ParentRefs) {
				if a.Refused != nil {
					got, message = a.Refused.Reason, a.Refused.Message
					continue
				}
				var names []string
				for _, l := range a.Listeners {
					names = append(names, l.Listener.Name)
				}
				got = strings.Join(names, " ")
			}
			if got != test.want || !strings.Contains(message, test.message) {
				t.Errorf("%s (%s), want %s (%s)", got, message, test.want, test.message)
			}
		})
	}
}

func TestAttachedRoutes(t *testing.T) {
	gateway := gatewayOf(testHTTP, `{name: other, port: 81, protocol: HTTP, hostname: a.org}`, `{name: twice, port: 82, protocol: HTTP}`, `{name: twice-too, port: 82, protocol: HTTP}`)
	route := func(name, parents, hostnames string) string {
		return fmt.Sprintf("kind: HTTPRoute\nmetadata: {namespace: ns, name: %s}\nspec:\n  parentRefs: [%s]\n  hostnames: [%s]\n  rules: [{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 302}}]}]", name, parents, hostnames)
	}
	out := Translate(decode(t, testClass, gateway,
		route("one", `{name: gw, sectionName: http}`, ""),
		route("two-ways", `{name: gw, sectionName: http}, {name: gw, port: 80}, {name: gw, sectionName: other}`, ""),
		route("conflicted", `{name: gw, sectionName: twice}`, ""),
		route("refused", `{name: gw, sectionName: other}`, "b.org")), Options{})
	got := map[string]int32{}
	for _, l := range gatewayStatus(t, out).Listeners {
		got[string(l.Name)] = l.AttachedRoutes
	}
	if diff := cmp.Diff(map[string]int32{"http": 2, "other": 1, "twice": 1, "twice-too": 0}, got); diff != "" {
		t.Errorf("attachedRoutes (-want +got):\n%s", diff)
	}
	if got := said(out, source.KindHTTPRoute); len(got) == 0 {
		t.Error("no route has a status")
	}
}
