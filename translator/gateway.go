package translator

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/provision/infrastructure"
	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// annotationIdleTimeout, on a Gateway, is how long a stream may be silent: a Go
// duration. A change of it drains the Gateway's listeners.
const annotationIdleTimeout = "signalbox.dev/idle-timeout"

// defaultIdleTimeout is longer than the longest silence of a model server: a queue,
// a long prompt, an answer that is not streamed.
const defaultIdleTimeout = 10 * time.Minute

// gateway says what a Gateway means. A Gateway is ours if its GatewayClass exists and
// names our controller; in a directory, too, the class must be among the objects.
func (t *tables) gateway(r *incr.Reads, k key, o *gatewayv1.Gateway) (gatewayRow, bool) {
	class, ok := t.gatewayClasses.Get(r, objectKey("", string(o.Spec.GatewayClassName)))
	if !ok || class.Spec.ControllerName != ControllerName {
		return gatewayRow{}, false
	}
	ns, name := splitKey(k)
	row := gatewayRow{
		Ref:        source.Ref{Kind: source.KindGateway, Namespace: ns, Name: name},
		Generation: o.Generation,
		Group:      xds.Group(k),
	}
	row.Managed = t.managed(o)
	row.IdleTimeout, row.Warnings = idleTimeout(o)
	row.Warnings = append(row.Warnings, t.unmanagedWarnings(o)...)
	if a := o.Spec.AllowedListeners; a != nil && a.Namespaces != nil && a.Namespaces.From != nil && *a.Namespaces.From != gatewayv1.NamespacesFromNone {
		row.Warnings = append(row.Warnings, msgWarnListenerSets)
	}
	slices.Sort(row.Warnings)
	row.Listeners = t.listenerRows(r, o)

	parameters, refused := t.parameters(r, o)
	accepted := gatewayAcceptance(o, class, row.Listeners, refused)
	if accepted.Status == metav1.ConditionTrue {
		serve(row.Listeners)
	}
	row.Conditions = []metav1.Condition{accepted, gatewayReferences(o, row.Listeners)}
	if accepted.Status != metav1.ConditionTrue {
		return row, true
	}
	address, problem := askedAddress(o)
	if !row.Managed {
		row.Addresses, problem = t.addresses(o)
	}
	if problem != nil {
		row.Conditions = append(row.Conditions, *problem)
	} else if row.Managed {
		row.Wanted = wanted(o, row, parameters, address)
	}
	return row, true
}

func idleTimeout(o *gatewayv1.Gateway) (time.Duration, []string) {
	text, ok := o.Annotations[annotationIdleTimeout]
	if !ok {
		return defaultIdleTimeout, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return d, nil
	}
	return defaultIdleTimeout, []string{fmt.Sprintf(msgWarnIdleTimeout, annotationIdleTimeout, text, defaultIdleTimeout)}
}

// gatewayAcceptance returns the Gateway's Accepted condition.
func gatewayAcceptance(o *gatewayv1.Gateway, class *gatewayv1.GatewayClass, listeners []listenerRow, refused *metav1.Condition) metav1.Condition {
	if class.Spec.ParametersRef != nil {
		return gatewayInvalidParameters.because(msgGatewayClassParameters, class.Name)
	}
	if refused != nil {
		return *refused
	}
	for i, a := range o.Spec.Addresses {
		if a.Type != nil && *a.Type != gatewayv1.IPAddressType {
			return gatewayUnsupportedAddress.because(msgGatewayAddressType, i, *a.Type)
		}
	}
	var valid, invalid []string
	for _, l := range listeners {
		if l.Valid {
			valid = append(valid, l.Name)
		} else {
			invalid = append(invalid, l.Name)
		}
	}
	switch {
	case len(valid) == 0:
		return gatewayNoListeners.because(msgGatewayNoListeners)
	case len(invalid) > 0:
		return gatewaySomeListeners.because(msgGatewaySomeListeners, strings.Join(valid, ", "), strings.Join(invalid, ", "))
	}
	return gatewayAccepted.because(msgGatewayAccepted)
}

// gatewayReferences returns the Gateway's ResolvedRefs condition: its own references
// and a summary of its listeners'.
func gatewayReferences(o *gatewayv1.Gateway, listeners []listenerRow) metav1.Condition {
	if tls := o.Spec.TLS; tls != nil && tls.Backend != nil && tls.Backend.ClientCertificateRef != nil {
		return gatewayClientCertificate.because(msgGatewayClientCertificate)
	}
	var unresolved []string
	for _, l := range listeners {
		if !isTrue(l.Conditions, gatewayv1.ListenerConditionResolvedRefs) {
			unresolved = append(unresolved, l.Name)
		}
	}
	if len(unresolved) > 0 {
		return gatewayListenersNotResolved.because(msgGatewayNotResolved, strings.Join(unresolved, ", "))
	}
	return gatewayResolved.because(msgGatewayResolved)
}

// listenerRows says what each listener of a Gateway means, in the order of the spec.
func (t *tables) listenerRows(r *incr.Reads, o *gatewayv1.Gateway) []listenerRow {
	rows := make([]listenerRow, len(o.Spec.Listeners))
	accepted := make([]metav1.Condition, len(rows))
	for i := range rows {
		rows[i], accepted[i] = t.listener(o, &o.Spec.Listeners[i])
	}
	conflicted := conflicts(rows, accepted)
	t.sharedPorts(r, o, rows, accepted)
	for i := range rows {
		rows[i].Valid = accepted[i].Status == metav1.ConditionTrue
	}
	for i := range rows {
		row := &rows[i]
		resolved := listenerResolved.because(msgListenerResolved)
		if failed := t.references(r, o, &o.Spec.Listeners[i], row); failed != nil {
			resolved = *failed
		}
		row.Conditions = []metav1.Condition{accepted[i], conflicted[i], resolved}
		if overlap := overlapping(rows, i); overlap != nil {
			row.Conditions = append(row.Conditions, *overlap)
		}
	}
	return rows
}

// sharedPorts refuses, where all Envoys run on one host, listeners whose port an earlier
// Gateway's Envoy binds: with SO_REUSEPORT, which Envoy uses, both would bind it and the
// kernel would deal the connections out between two Gateways. The older Gateway keeps
// the port, then the first by namespace/name.
func (t *tables) sharedPorts(r *incr.Reads, o *gatewayv1.Gateway, rows []listenerRow, accepted []metav1.Condition) {
	if !t.opt.OneHost {
		return
	}
	for i := range rows {
		if !supportedProtocol(&rows[i]) {
			continue
		}
		for _, k := range t.gatewaysByPort.Keys(r, portKey(rows[i].Bound)) {
			other, _ := t.gateways.Get(r, k)
			class, ok := t.gatewayClasses.Get(r, objectKey("", string(other.Spec.GatewayClassName)))
			if ok && class.Spec.ControllerName == ControllerName && earlier(other, o) {
				accepted[i] = listenerPortUnavailable.because(msgListenerPortTaken, rows[i].Bound, k)
				break
			}
		}
	}
}

// boundPorts returns the ports that a Gateway's Envoy binds.
func (t *tables) boundPorts(_ key, o *gatewayv1.Gateway) []key {
	var out []key
	for _, l := range o.Spec.Listeners {
		row := listenerRow{Port: l.Port, Bound: t.bound(o, l.Port), Protocol: l.Protocol}
		if supportedProtocol(&row) {
			out = append(out, portKey(row.Bound))
		}
	}
	return unique(out)
}

func portKey(port int32) key { return key(strconv.Itoa(int(port))) }

// earlier says whether a comes before b: by age, then by namespace/name.
func earlier(a, b *gatewayv1.Gateway) bool {
	if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
		return c < 0
	}
	return objectKey(a.Namespace, a.Name) < objectKey(b.Namespace, b.Name)
}

// listener says what a listener means by itself, and whether it is accepted by itself.
func (t *tables) listener(o *gatewayv1.Gateway, l *gatewayv1.Listener) (listenerRow, metav1.Condition) {
	row := listenerRow{Name: string(l.Name), Port: l.Port, Bound: t.bound(o, l.Port), Protocol: l.Protocol}
	if l.Hostname != nil {
		row.Hostname = strings.ToLower(string(*l.Hostname))
	}
	if row.Protocol != gatewayv1.HTTPProtocolType && row.Protocol != gatewayv1.HTTPSProtocolType {
		return row, listenerUnsupportedProtocol.because(msgListenerProtocol, row.Protocol)
	}
	row.SupportedKinds, _ = supportedKinds(l)
	row.HTTPRoutes = len(row.SupportedKinds) > 0
	if refused := allowedNamespaces(l, &row); refused != nil {
		return row, *refused
	}
	if refused := unsupportedListener(o, l, &row); refused != nil {
		return row, *refused
	}
	if t.managed(o) && infrastructure.Reserved(row.Bound) {
		return row, listenerPortUnavailable.because(msgListenerPortReserved, row.Bound)
	}
	return row, listenerAccepted.because(msgListenerAccepted)
}

// unsupportedListener returns an Accepted=False condition for the first value of the
// listener that cannot be kept, or nil. What a user asks for in the name of security
// is never silently left out.
func unsupportedListener(o *gatewayv1.Gateway, l *gatewayv1.Listener, row *listenerRow) *metav1.Condition {
	refuse := func(v verdict, format string, args ...any) *metav1.Condition {
		c := v.because(format, args...)
		return &c
	}
	if row.Bound < 1 || row.Bound > 65535 {
		return refuse(listenerPortUnavailable, msgListenerPort, row.Bound)
	}
	if len(validation.IsDNS1123Subdomain(row.Name)) > 0 {
		return refuse(listenerUnsupportedValue, msgListenerName, row.Name)
	}
	if row.Hostname != "" && !validHostname(row.Hostname) {
		return refuse(listenerUnsupportedValue, msgListenerHostname, row.Hostname)
	}
	if l.Filters != nil && len(l.Filters.Requests) > 0 {
		return refuse(listenerUnsupportedValue, msgListenerFilters)
	}
	if row.Protocol != gatewayv1.HTTPSProtocolType {
		return nil
	}
	if validatesClients(o, l.Port) {
		return refuse(listenerUnsupportedValue, msgListenerFrontend)
	}
	if l.TLS == nil {
		return nil // references says that certificates are missing
	}
	if l.TLS.Mode != nil && *l.TLS.Mode != gatewayv1.TLSModeTerminate {
		return refuse(listenerUnsupportedValue, msgListenerMode, *l.TLS.Mode)
	}
	if len(l.TLS.Options) > 0 {
		return refuse(listenerUnsupportedValue, msgListenerOption, slices.Min(slices.Collect(maps.Keys(l.TLS.Options))))
	}
	return nil
}

// validHostname says whether h, in lower case, is a name that a listener or a route
// may have: Envoy refuses others ("partial wildcards are not supported").
func validHostname(h string) bool {
	return len(validation.IsDNS1123Subdomain(strings.TrimPrefix(h, "*."))) == 0
}

// validatesClients says whether spec.tls.frontend wants client certificates validated
// on a port.
func validatesClients(o *gatewayv1.Gateway, port gatewayv1.PortNumber) bool {
	if o.Spec.TLS == nil || o.Spec.TLS.Frontend == nil {
		return false
	}
	for _, p := range o.Spec.TLS.Frontend.PerPort {
		if p.Port == port {
			return p.TLS.Validation != nil
		}
	}
	return o.Spec.TLS.Frontend.Default.Validation != nil
}

// supportedKinds returns the kinds of routes that a listener takes and we know, and
// the first that we do not know, as the spec has it.
func supportedKinds(l *gatewayv1.Listener) (known []gatewayv1.RouteGroupKind, unknown string) {
	group := gatewayv1.Group(gatewayv1.GroupName)
	httpRoute := gatewayv1.RouteGroupKind{Group: &group, Kind: gatewayv1.Kind(source.KindHTTPRoute)}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		return []gatewayv1.RouteGroupKind{httpRoute}, ""
	}
	for _, k := range l.AllowedRoutes.Kinds {
		switch {
		case (k.Group == nil || *k.Group == group) && k.Kind == httpRoute.Kind:
			known = []gatewayv1.RouteGroupKind{httpRoute}
		case unknown == "" && k.Group != nil && *k.Group != "":
			unknown = string(*k.Group) + "/" + string(k.Kind)
		case unknown == "":
			unknown = string(k.Kind)
		}
	}
	return known, unknown
}

// allowedNamespaces fills in from which namespaces a listener takes routes.
func allowedNamespaces(l *gatewayv1.Listener, row *listenerRow) *metav1.Condition {
	from := gatewayv1.NamespacesFromSame
	var selector *metav1.LabelSelector
	if a := l.AllowedRoutes; a != nil && a.Namespaces != nil {
		if a.Namespaces.From != nil {
			from = *a.Namespaces.From
		}
		selector = a.Namespaces.Selector
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		row.FromAll = true
	case gatewayv1.NamespacesFromSame:
		row.FromSame = true
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil {
			c := listenerUnsupportedValue.because(msgListenerSelector, err)
			row.FromSelector = labels.Nothing()
			return &c
		}
		row.FromSelector = s
	default:
		c := listenerUnsupportedValue.because(msgListenerFrom, from)
		return &c
	}
	return nil
}

// conflicts returns each listener's Conflicted condition and refuses, in accepted,
// those that are not distinct: none of them wins (GatewaySpec, "Handling indistinct
// Listeners"). Listeners of protocols that we do not support conflict with none.
func conflicts(rows []listenerRow, accepted []metav1.Condition) []metav1.Condition {
	out := make([]metav1.Condition, len(rows))
	for i := range rows {
		out[i] = listenerDistinct.because(msgListenerDistinct)
		a := &rows[i]
		if !supportedProtocol(a) {
			continue
		}
		protocols, same, shared := []string{string(a.Protocol)}, []string{a.Name}, []string(nil)
		for j := range rows {
			b := &rows[j]
			switch {
			case i == j || !supportedProtocol(b):
			case a.Port != b.Port && a.Bound == b.Bound:
				shared = append(shared, b.Name)
			case a.Port != b.Port:
			case a.Protocol != b.Protocol:
				protocols = append(protocols, string(b.Protocol))
			case a.Hostname == b.Hostname:
				same = append(same, b.Name)
			}
		}
		slices.Sort(protocols)
		slices.Sort(same)
		switch protocols = slices.Compact(protocols); {
		case len(protocols) > 1:
			list := strings.Join(protocols, ", ")
			out[i] = listenerProtocolConflict.because(msgListenerProtocolConflict, a.Port, list)
			accepted[i] = listenerOtherProtocol.because(msgListenerProtocolConflict, a.Port, list)
		case len(same) > 1:
			list := strings.Join(same, ", ")
			out[i] = listenerHostnameConflict.because(msgListenerHostnameConflict, list)
			accepted[i] = listenerSameHostname.because(msgListenerHostnameConflict, list)
		case len(shared) > 0:
			accepted[i] = listenerPortUnavailable.because(msgListenerPortShared, a.Bound, strings.Join(shared, ", "))
		}
	}
	return out
}

func supportedProtocol(l *listenerRow) bool {
	return l.Protocol == gatewayv1.HTTPProtocolType || l.Protocol == gatewayv1.HTTPSProtocolType
}

// overlapping returns the OverlappingTLSConfig condition of a listener, or nil: it must
// never be False (ListenerConditionOverlappingTLSConfig).
func overlapping(rows []listenerRow, i int) *metav1.Condition {
	a := &rows[i]
	if !a.Valid || a.Protocol != gatewayv1.HTTPSProtocolType {
		return nil
	}
	names := []string{a.Name}
	for j := range rows {
		b := &rows[j]
		if i != j && b.Valid && b.Protocol == a.Protocol && b.Port == a.Port {
			if _, ok := intersect(a.Hostname, b.Hostname); ok {
				names = append(names, b.Name)
			}
		}
	}
	if len(names) == 1 {
		return nil
	}
	slices.Sort(names)
	c := listenerOverlap.because(msgListenerOverlap, a.Port, strings.Join(names, ", "))
	return &c
}

// references resolves what a listener refers to, fills in its certificates, and returns
// its ResolvedRefs=False condition, or nil.
func (t *tables) references(r *incr.Reads, o *gatewayv1.Gateway, l *gatewayv1.Listener, row *listenerRow) *metav1.Condition {
	var failed []metav1.Condition
	if row.Protocol == gatewayv1.HTTPSProtocolType {
		failed = t.certificates(r, o, l, row)
	}
	if _, unknown := supportedKinds(l); unknown != "" && supportedProtocol(row) {
		failed = append(failed, listenerInvalidKinds.because(msgListenerKinds, unknown))
	}
	if len(failed) == 0 {
		return nil
	}
	first := failed[0]
	for _, c := range failed[1:] {
		first.Message += " " + c.Message
	}
	return &first
}

// serve names the RouteConfiguration of each listener that can be served.
func serve(rows []listenerRow) {
	for i := range rows {
		switch l := &rows[i]; {
		case !l.Valid:
		case l.Protocol == gatewayv1.HTTPProtocolType:
			l.RouteConfig = httpRouteConfig(l.Port)
		case len(l.Secrets) > 0:
			l.RouteConfig = httpsRouteConfig(l.Port, l.Name)
		}
	}
}

// gatewayTables returns the route tables of a Gateway's listeners.
func gatewayTables(_ key, row gatewayRow) []key {
	var out []key
	for _, l := range row.Listeners {
		if l.RouteConfig != "" {
			out = append(out, inGroup(row.Group, l.RouteConfig))
		}
	}
	return unique(out)
}

// gatewayListeners returns the Envoy listeners of a Gateway.
func (t *tables) gatewayListeners(_ key, row gatewayRow) []key {
	var out []key
	for _, l := range row.Listeners {
		if l.RouteConfig != "" {
			out = append(out, inGroup(row.Group, listenerName(t.opt.BindAddress, l.Bound)))
		}
	}
	return unique(out)
}

// gatewaySecrets returns the secrets that a Gateway's served listeners name.
func gatewaySecrets(_ key, row gatewayRow) []key {
	var out []key
	for _, l := range row.Listeners {
		if l.RouteConfig == "" {
			continue
		}
		for _, s := range l.Secrets {
			out = append(out, inGroup(row.Group, secretName(objectKey(s.Namespace, s.Name))))
		}
	}
	return unique(out)
}

// sortRefs orders refs and drops repeated ones.
func sortRefs(refs []source.Ref) []source.Ref {
	slices.SortFunc(refs, source.Ref.Compare)
	return slices.Compact(refs)
}
