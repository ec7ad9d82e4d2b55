package translator

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"signalbox.dev/source"
	"signalbox.dev/xds"
)

// Names as Kubernetes allows them, in the shapes that tempt a parser.
var (
	objectName   = rapid.OneOf(rapid.StringMatching(`[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?`), rapid.SampledFrom([]string{"pool", "service", "balanced", "http", "secret", "0", "rule"}))
	labelName    = rapid.StringMatching(`([a-z]([a-z0-9.-]{0,10}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?`)
	labelValue   = rapid.StringMatching(`([A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?)?`)
	anyPort      = rapid.Int32Range(1, 65535)
	anyAddress   = rapid.SampledFrom([]string{"0.0.0.0", "127.0.0.1", "::", "::1", "2001:db8::7"})
	anyObjectKey = rapid.Custom(func(t *rapid.T) key {
		return objectKey(objectName.Draw(t, "namespace"), objectName.Draw(t, "name"))
	})
)

// Every name says what it stands for: made and parsed back, it is the same.
func TestNamesRoundTrip(t *testing.T) {
	for name, property := range map[string]func(t *rapid.T){
		"object": func(t *rapid.T) {
			ns, n := objectName.Draw(t, "namespace"), objectName.Draw(t, "name")
			gotNamespace, gotName := splitKey(objectKey(ns, n))
			same(t, []any{gotNamespace, gotName}, ns, n)
		},
		"pool": func(t *rapid.T) {
			k := anyObjectKey.Draw(t, "pool")
			for _, backend := range []key{poolBackend(k), balancedBackend(k)} {
				kind, object, port, ok := parseBackend(backend)
				same(t, []any{kind, object, port, ok}, source.KindInferencePool, k, int32(0), true)
			}
			if poolBackend(k) == balancedBackend(k) {
				t.Fatalf("%s: one cluster for two ways to balance", k)
			}
		},
		"service": func(t *rapid.T) {
			k, n := anyObjectKey.Draw(t, "service"), anyPort.Draw(t, "port")
			kind, object, port, ok := parseBackend(serviceBackend(k, n))
			same(t, []any{kind, object, port, ok}, source.KindService, k, n, true)
		},
		"listener": func(t *rapid.T) {
			a, p := anyAddress.Draw(t, "address"), anyPort.Draw(t, "port")
			address, port, ok := parseListenerName(listenerName(a, p))
			same(t, []any{address, port, ok}, a, p, true)
		},
		"http routes": func(t *rapid.T) {
			p := anyPort.Draw(t, "port")
			port, listener, ok := parseRouteConfig(httpRouteConfig(p))
			same(t, []any{port, listener, ok}, p, "", true)
		},
		"https routes": func(t *rapid.T) {
			p, l := anyPort.Draw(t, "port"), objectName.Draw(t, "listener")
			port, listener, ok := parseRouteConfig(httpsRouteConfig(p, l))
			same(t, []any{port, listener, ok}, p, l, true)
		},
		"secret": func(t *rapid.T) {
			k := anyObjectKey.Draw(t, "secret")
			secret, ok := parseSecretName(secretName(k))
			same(t, []any{secret, ok}, k, true)
		},
		"group": func(t *rapid.T) {
			g, n := xds.Group(anyObjectKey.Draw(t, "group")), string(poolBackend(anyObjectKey.Draw(t, "name")))
			group, name := splitGroup(inGroup(g, n))
			same(t, []any{group, name}, g, n)
		},
		"route": func(t *rapid.T) {
			k, r, m := anyObjectKey.Draw(t, "route"), rapid.IntRange(0, 15).Draw(t, "rule"), rapid.IntRange(0, 63).Draw(t, "match")
			route, rule, match, ok := parseRouteName(routeName(k, r, m))
			same(t, []any{route, rule, match, ok}, k, r, m, true)
		},
		"label": func(t *rapid.T) {
			ns, l, v := objectName.Draw(t, "namespace"), labelName.Draw(t, "label"), labelValue.Draw(t, "value")
			namespace, label, value := parseLabel(labelKey(ns, l, v))
			same(t, []any{namespace, label, value}, ns, l, v)
		},
		"selector": func(t *rapid.T) {
			ns, labels := objectName.Draw(t, "namespace"), rapid.MapOfN(labelName, labelValue, 0, 4).Draw(t, "labels")
			namespace, list := splitSelector(selectorKey(ns, labels))
			got := map[string]string{}
			for _, l := range list {
				got[l[0]] = l[1]
			}
			same(t, []any{namespace, got, len(list)}, ns, labels, len(labels))
		},
	} {
		t.Run(name, func(t *testing.T) { rapid.Check(t, property) })
	}
}

func same(t *rapid.T, got []any, want ...any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("parsed back: %v, want %v", got, want)
	}
}

// What is no name of ours is said not to be one.
func TestForeignNames(t *testing.T) {
	for _, name := range []string{"", "pool", "pool/a", "pool/a/b/c", "pool/a/b/c/d", "service/a/b", "service/a/b/http", "service/a/b/99999999999", ExtProcCluster} {
		if kind, object, port, ok := parseBackend(key(name)); ok {
			t.Errorf("parseBackend(%q) = %v %v %v", name, kind, object, port)
		}
	}
	for _, name := range []string{"", "http", "http/x", "https/80", "https/80/a/b", "tcp/80"} {
		if port, listener, ok := parseRouteConfig(name); ok {
			t.Errorf("parseRouteConfig(%q) = %v %v", name, port, listener)
		}
	}
	for _, name := range []string{"", "0.0.0.0", "0.0.0.0:http"} {
		if address, port, ok := parseListenerName(name); ok {
			t.Errorf("parseListenerName(%q) = %v %v", name, address, port)
		}
	}
	for _, name := range []string{"", "secret/a", "secret/a/b/c", "a/b"} {
		if k, ok := parseSecretName(name); ok {
			t.Errorf("parseSecretName(%q) = %v", name, k)
		}
	}
	for _, name := range []string{"", "httproute/a/b/rule/x/match/0", "httproute/a/b/rule/0", "tcproute/a/b/rule/0/match/0"} {
		if k, rule, match, ok := parseRouteName(name); ok {
			t.Errorf("parseRouteName(%q) = %v %v %v", name, k, rule, match)
		}
	}
}
