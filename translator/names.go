package translator

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"signalbox.dev/source"
	"signalbox.dev/xds"
)

// Every Envoy resource name is made here, from the identity of what it stands for,
// never from an index, and every function has its inverse (names_test.go).
// Kubernetes names hold no slash, so a slash separates.

// ExtProcCluster is the cluster of the process beside Envoy. It carries ext_proc
// streams, which Envoy cuts when their cluster changes (facts: envoy-routes §0.3), so
// it never changes in the life of a Gateway.
const ExtProcCluster = "signalbox-extproc"

// Names of the HTTP filters.
const (
	extractorFilter = "signalbox.extractor"
	pickerFilter    = "signalbox.picker"
)

// objectKey returns "namespace/name".
func objectKey(namespace, name string) key { return key(namespace + "/" + name) }

// splitKey is the inverse of objectKey.
func splitKey(k key) (namespace, name string) {
	namespace, name, _ = strings.Cut(string(k), "/")
	return namespace, name
}

// poolBackend returns the key, and the cluster's name, of a pool whose endpoints a
// picker chooses.
func poolBackend(pool key) key { return "pool/" + pool }

// balancedBackend returns the key, and the cluster's name, of a pool without a picker.
// It is not poolBackend's, so that a pool that is given a picker loses no request:
// Envoy gets clusters before routes, and a cluster that was changed in place would
// refuse everything until the routes ask the picker. A new cluster comes beside the
// old one, then the routes move.
func balancedBackend(pool key) key { return "pool/" + pool + "/balanced" }

// serviceBackend returns the key, and the cluster's name, of a Service's port.
func serviceBackend(service key, port int32) key {
	return "service/" + service + "/" + key(strconv.Itoa(int(port)))
}

// parseBackend is the inverse of poolBackend and balancedBackend (port 0), and of
// serviceBackend.
func parseBackend(k key) (kind source.Kind, object key, port int32, ok bool) {
	p := strings.Split(string(k), "/")
	switch {
	case len(p) == 3 && p[0] == "pool", len(p) == 4 && p[0] == "pool" && p[3] == "balanced":
		return source.KindInferencePool, objectKey(p[1], p[2]), 0, true
	case len(p) == 4 && p[0] == "service":
		n, err := strconv.ParseInt(p[3], 10, 32)
		return source.KindService, objectKey(p[1], p[2]), int32(n), err == nil
	}
	return "", "", 0, false
}

// labelKey returns the key under which the objects of a namespace with a label are listed.
func labelKey(namespace, label, value string) key {
	return key(namespace + "/" + label + "=" + value)
}

// parseLabel is the inverse of labelKey. Names of labels may hold a slash; neither they
// nor values hold '=' or ','.
func parseLabel(k key) (namespace, label, value string) {
	namespace, rest, _ := strings.Cut(string(k), "/")
	label, value, _ = strings.Cut(rest, "=")
	return namespace, label, value
}

// selectorKey returns a key for the objects of a namespace that have all of the labels:
// one key for a set of labels, in whatever order they are written.
func selectorKey(namespace string, labels map[string]string) key {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, name+"="+labels[name])
	}
	return key(namespace + "/" + strings.Join(out, ","))
}

// splitSelector is the inverse of selectorKey; the labels are sorted by name.
func splitSelector(k key) (namespace string, labels [][2]string) {
	namespace, rest, _ := strings.Cut(string(k), "/")
	for _, l := range strings.Split(rest, ",") {
		if name, value, ok := strings.Cut(l, "="); ok {
			labels = append(labels, [2]string{name, value})
		}
	}
	return namespace, labels
}

// listenerName returns the name of an Envoy listener: a function of its address
// alone, since Envoy refuses a renamed listener on the same address.
func listenerName(address string, port int32) string { return fmt.Sprintf("%s:%d", address, port) }

// parseListenerName is the inverse of listenerName.
func parseListenerName(name string) (address string, port int32, ok bool) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseInt(name[i+1:], 10, 32)
	return name[:i], int32(n), err == nil
}

// httpRouteConfig returns the name of the RouteConfiguration of all HTTP listeners
// of a port.
func httpRouteConfig(port int32) string { return fmt.Sprintf("http/%d", port) }

// httpsRouteConfig returns the name of the RouteConfiguration of one HTTPS listener.
func httpsRouteConfig(port int32, listener string) string {
	return fmt.Sprintf("https/%d/%s", port, listener)
}

// parseRouteConfig is the inverse of httpRouteConfig (listener "") and httpsRouteConfig.
func parseRouteConfig(name string) (port int32, listener string, ok bool) {
	p := strings.Split(name, "/")
	switch {
	case len(p) == 2 && p[0] == "http":
	case len(p) == 3 && p[0] == "https":
		listener = p[2]
	default:
		return 0, "", false
	}
	n, err := strconv.ParseInt(p[1], 10, 32)
	return int32(n), listener, err == nil
}

// secretName returns the SDS name of a TLS Secret.
func secretName(secret key) string { return "secret/" + string(secret) }

// parseSecretName is the inverse of secretName.
func parseSecretName(name string) (key, bool) {
	k, ok := strings.CutPrefix(name, "secret/")
	return key(k), ok && strings.Count(k, "/") == 1
}

// inGroup returns the key of something of a group's: route tables, listeners,
// clusters, secrets. A group is "namespace/name" and so holds one slash.
func inGroup(g xds.Group, name string) key { return key(string(g) + "|" + name) }

// splitGroup is the inverse of inGroup.
func splitGroup(k key) (xds.Group, string) {
	g, name, _ := strings.Cut(string(k), "|")
	return xds.Group(g), name
}

// routeName returns the name of an Envoy route: which match of which rule of which
// HTTPRoute it was made from. It stands in access logs and in explanations.
func routeName(route key, rule, match int) string {
	return fmt.Sprintf("httproute/%s/rule/%d/match/%d", route, rule, match)
}

// parseRouteName is the inverse of routeName.
func parseRouteName(name string) (route key, rule, match int, ok bool) {
	p := strings.Split(name, "/")
	if len(p) != 7 || p[0] != "httproute" || p[3] != "rule" || p[5] != "match" {
		return "", 0, 0, false
	}
	rule, err1 := strconv.Atoi(p[4])
	match, err2 := strconv.Atoi(p[6])
	return objectKey(p[1], p[2]), rule, match, err1 == nil && err2 == nil
}
