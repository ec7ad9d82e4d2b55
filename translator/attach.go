package translator

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// labelNamespaceName is what Kubernetes puts on every Namespace, and selectors of
// listeners go by.
const labelNamespaceName = "kubernetes.io/metadata.name"

// attachment is where one parentRef leads.
type attachment struct {
	Ref       gatewayv1.ParentReference
	Gateway   key
	Row       gatewayRow
	Listeners []attachedListener // empty if refused
	// Refused is the Accepted=False condition, without ObservedGeneration; nil if accepted.
	Refused *refusal
}

// refusal is why a route attaches to no listener.
type refusal struct{ Reason, Message string }

// attachedListener is one listener and the hosts that the route serves on it.
type attachedListener struct {
	Listener listenerRow
	// Hosts are the intersections of the listener's hostname and the route's, most
	// specific first: the domains of the route's entries. {Host: ""} means every host.
	Hosts []attachedHost
}

// attachedHost is one domain of a route's entries.
type attachedHost struct {
	Host  string // the intersection: domain of the virtual host
	Route string // the route's own hostname that it comes from ("" if the route names none): decides precedence
}

// attach says which listeners of which Gateways of ours a route of the namespace with
// these hostnames attaches to: one attachment for each parentRef that points at a
// Gateway of ours. Whether a listener is accepted or served does not matter to that
// (ListenerStatus.attachedRoutes); entries go only where RouteConfig is set.
func (t *tables) attach(r *incr.Reads, namespace string, hostnames []gatewayv1.Hostname, refs []gatewayv1.ParentReference) []attachment {
	var out []attachment
	for _, ref := range refs {
		if ref.Group != nil && *ref.Group != gatewayv1.GroupName || ref.Kind != nil && *ref.Kind != gatewayv1.Kind(source.KindGateway) {
			continue
		}
		gatewayNamespace := namespace
		if ref.Namespace != nil {
			gatewayNamespace = string(*ref.Namespace)
		}
		k := objectKey(gatewayNamespace, string(ref.Name))
		row, ok := t.gatewayRows.Get(r, k)
		if !ok {
			continue
		}
		a := attachment{Ref: ref, Gateway: k, Row: row}
		a.Listeners, a.Refused = t.attachTo(r, row, namespace, hostnames, ref)
		out = append(out, a)
	}
	return out
}

// attachTo narrows a Gateway's listeners down to those that a route attaches to: those
// that the parentRef means, of those the ones that allow the route, of those the ones
// that serve a hostname of its.
func (t *tables) attachTo(r *incr.Reads, row gatewayRow, namespace string, hostnames []gatewayv1.Hostname, ref gatewayv1.ParentReference) ([]attachedListener, *refusal) {
	gateway := objectKey(row.Ref.Namespace, row.Ref.Name)
	var found, allowed bool
	var notAllowed, noHostname []string
	var out []attachedListener
	for _, l := range row.Listeners {
		if ref.SectionName != nil && string(*ref.SectionName) != l.Name || ref.Port != nil && *ref.Port != l.Port {
			continue
		}
		found = true
		if why := t.forbids(r, row, &l, namespace); why != "" {
			notAllowed = append(notAllowed, why)
			continue
		}
		allowed = true
		if hosts := intersections(l.Hostname, hostnames); len(hosts) > 0 {
			out = append(out, attachedListener{Listener: l, Hosts: hosts})
		} else {
			noHostname = append(noHostname, fmt.Sprintf(whyNoHostname, l.Name, l.Hostname))
		}
	}
	switch {
	case !found:
		return nil, &refusal{string(gatewayv1.RouteReasonNoMatchingParent), fmt.Sprintf(msgNoSuchListener, gateway, section(ref))}
	case !allowed:
		return nil, &refusal{string(gatewayv1.RouteReasonNotAllowedByListeners), fmt.Sprintf(msgNotAllowed, gateway, namespace, strings.Join(notAllowed, "; "))}
	case len(out) == 0:
		return nil, &refusal{string(gatewayv1.RouteReasonNoMatchingListenerHostname), fmt.Sprintf(msgNoHostname, join(hostnames), gateway, strings.Join(noHostname, "; "))}
	}
	return out, nil
}

// section says which listeners a parentRef means.
func section(ref gatewayv1.ParentReference) string {
	var out []string
	if ref.SectionName != nil {
		out = append(out, fmt.Sprintf("named %s", *ref.SectionName))
	}
	if ref.Port != nil {
		out = append(out, fmt.Sprintf("on port %d", *ref.Port))
	}
	return strings.Join(out, " ")
}

func join(hostnames []gatewayv1.Hostname) string {
	out := make([]string, len(hostnames))
	for i, h := range hostnames {
		out[i] = string(h)
	}
	return strings.Join(out, ", ")
}

// forbids says why a listener does not take HTTPRoutes of a namespace; "" if it does.
func (t *tables) forbids(r *incr.Reads, row gatewayRow, l *listenerRow, namespace string) string {
	switch {
	case !l.HTTPRoutes:
		return fmt.Sprintf(whyNotAllowedKind, l.Name)
	case l.FromAll, l.FromSame && namespace == row.Ref.Namespace:
		return ""
	case l.FromSame:
		return fmt.Sprintf(whyNotAllowedSame, l.Name, row.Ref.Namespace)
	case l.FromSelector == nil:
		return fmt.Sprintf(whyNotAllowedNone, l.Name)
	case !l.FromSelector.Matches(t.namespaceLabels(r, namespace)):
		return fmt.Sprintf(whyNotAllowedOther, l.Name, namespace)
	}
	return ""
}

// namespaceLabels returns the labels of a namespace. One that is not among the objects
// is assumed to exist, and each has the label that the API server would give it.
func (t *tables) namespaceLabels(r *incr.Reads, namespace string) labels.Set {
	out := labels.Set{labelNamespaceName: namespace}
	if o, ok := t.namespaces.Get(r, objectKey("", namespace)); ok {
		for k, v := range o.Labels {
			out[k] = v
		}
	}
	return out
}

// intersections returns the hosts that a route with these hostnames serves on a
// listener with this one, most specific first. Where several of the route's hostnames
// come to one host, the most specific of them stands for all.
func intersections(listener string, route []gatewayv1.Hostname) []attachedHost {
	if len(route) == 0 {
		return []attachedHost{{Host: listener}}
	}
	best := map[string]string{}
	for _, h := range route {
		own := strings.ToLower(string(h))
		host, ok := intersect(listener, own)
		if !ok {
			continue
		}
		if other, seen := best[host]; !seen || moreSpecific(own, other) < 0 {
			best[host] = own
		}
	}
	out := make([]attachedHost, 0, len(best))
	for host, own := range best {
		out = append(out, attachedHost{Host: host, Route: own})
	}
	slices.SortFunc(out, func(a, b attachedHost) int { return moreSpecific(a.Host, b.Host) })
	return out
}

// intersect returns the hostname that stands for the hosts that both match. "" matches
// every host; "*." any number of labels, but at least one.
func intersect(a, b string) (string, bool) {
	switch {
	case a == b, b == "":
		return a, true
	case a == "":
		return b, true
	case includes(a, b):
		return b, true
	case includes(b, a):
		return a, true
	}
	return "", false
}

// includes says whether the wildcard w matches all that h matches.
func includes(w, h string) bool {
	suffix, ok := strings.CutPrefix(w, "*")
	if !ok {
		return false
	}
	if h, ok := strings.CutPrefix(h, "*"); ok {
		return strings.HasSuffix(h, suffix)
	}
	return strings.HasSuffix(h, suffix) && len(h) > len(suffix)
}

// moreSpecific orders hostnames: exact ones, then wildcards, longer first, then "".
func moreSpecific(a, b string) int {
	rank := func(h string) int {
		switch {
		case h == "":
			return 2
		case strings.HasPrefix(h, "*"):
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(len(b), len(a)), strings.Compare(a, b))
}
