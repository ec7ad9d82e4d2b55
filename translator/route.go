package translator

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// entry is one match of one rule of a route, on one host of one route table.
type entry struct {
	Host       string // the domain of the virtual host: the listener's and the route's hostname, intersected; "" means all
	Listener   string // name of the listener: entries of listeners on one port never mix
	Precedence precedence
	*envoyRoute
}

// envoyRoute is a route as Envoy gets it. It is immutable and shared by the entries of
// all hosts.
type envoyRoute struct {
	// Models are the models that it is for, sorted; they stand in the table's map and
	// not in its match. Meaningless unless ForModels.
	Models    []modelName
	ForModels bool
	// AnyModel is true if it looks at a model at all, in the map or by a regular
	// expression: its host needs the extractor.
	AnyModel bool
	// Namespace is the HTTPRoute's: whose ConfigMaps know base models.
	Namespace string
	// Bytes is the marshalled Route, so that a table is put together without marshalling
	// the routes that did not change. A header to add may be spliced in at Cut.
	Bytes []byte
	Cut   int
	// OwnsBase is true if the rule itself changes the base model's header.
	OwnsBase bool
	Shape    shape
}

// place is all of a listener that a route's bytes depend on.
type place struct {
	Port int32 // as in the spec
	TLS  bool
	Idle time.Duration
}

// rule is one rule of a route, as far as it does not depend on where the route attaches.
type rule struct {
	Index    int
	Matches  []match // none if the rule is dropped
	Filters  filters
	Backends []ruleBackend // those with a weight
	// Timeout is of the whole request; 0: none.
	Timeout time.Duration
	// Problem is why the rule cannot be kept. It answers 500 then, unless it has no
	// matches.
	Problem *problem
}

// ruleBackend is one backendRef.
type ruleBackend struct {
	backend
	Weight  uint32
	Filters filters
}

// routeBuilder is the work on one HTTPRoute.
type routeBuilder struct {
	t        *tables
	r        *incr.Reads
	key      key
	route    *gatewayv1.HTTPRoute
	rules    []rule
	refs     []metav1.Condition // ResolvedRefs=False, in order
	pools    []key
	warnings []string
	models   map[modelDemand][]modelName
	built    map[builtKey]*envoyRoute
}

type builtKey struct {
	rule, match int
	place       place
}

func (t *tables) route(r *incr.Reads, k key, o *gatewayv1.HTTPRoute) (routeRow, bool) {
	attachments := t.attach(r, o.Namespace, o.Spec.Hostnames, o.Spec.ParentRefs)
	if len(attachments) == 0 {
		return routeRow{}, false // no Gateway of ours: nothing to do, nothing to say
	}
	b := &routeBuilder{t: t, r: r, key: k, route: o, models: map[modelDemand][]modelName{}, built: map[builtKey]*envoyRoute{}}
	for i := range o.Spec.Rules {
		b.rules = append(b.rules, b.rule(i))
	}
	row := routeRow{Ref: source.RefOf(o), Generation: o.Generation, Entries: map[key][]entry{}}
	b.checkHostnames()
	b.build(attachments)
	for _, a := range attachments {
		b.attach(&row, a)
	}
	b.use(&row)
	row.Warnings = b.allWarnings()
	return row, true
}

// checkHostnames leaves the whole route out if it has a hostname that Envoy would refuse:
// to serve it on fewer hosts than it says, or without its hostname on all, is no better.
func (b *routeBuilder) checkHostnames() {
	for i, h := range b.route.Spec.Hostnames {
		if !validHostname(strings.ToLower(string(h))) {
			for j := range b.rules {
				b.rules[j].drop(notSupported(msgRouteHostname, i, h))
			}
			return
		}
	}
}

// attach adds a parent and the entries for its listeners.
func (b *routeBuilder) attach(row *routeRow, a attachment) {
	parent := routeParent{Ref: a.Ref, Gateway: a.Gateway, Conditions: b.conditions(a)}
	parent.Accepted = isTrue(parent.Conditions, gatewayv1.RouteConditionAccepted)
	for _, l := range a.Listeners {
		parent.Listeners = append(parent.Listeners, l.Listener.Name)
		if l.Listener.RouteConfig == "" {
			continue // attached, but not served
		}
		table := inGroup(a.Row.Group, l.Listener.RouteConfig)
		row.Entries[table] = append(row.Entries[table], b.entries(l, placeOf(a, l))...)
	}
	slices.Sort(parent.Listeners)
	row.Parents = append(row.Parents, parent)
}

func placeOf(a attachment, l attachedListener) place {
	return place{Port: l.Listener.Port, TLS: l.Listener.Protocol == gatewayv1.HTTPSProtocolType, Idle: a.Row.IdleTimeout}
}

// entries makes the entries for one listener.
func (b *routeBuilder) entries(l attachedListener, on place) []entry {
	var out []entry
	for i := range b.rules {
		for j, m := range b.rules[i].Matches {
			p := m.Precedence
			p.Created, p.Route, p.Rule, p.Match = b.route.CreationTimestamp.Time, b.key, i, j
			for _, h := range l.Hosts {
				out = append(out, entry{Host: h.Host, Listener: l.Listener.Name, Precedence: p.ofHost(h.Route), envoyRoute: b.built[builtKey{i, j, on}]})
			}
		}
	}
	return out
}

// build makes the routes of all rules, for every place where they are needed. A rule of
// which Envoy would refuse anything has a problem, and all of it answers 500; if Envoy
// would refuse even that, the matches are at fault, and the rule is left out.
func (b *routeBuilder) build(attachments []attachment) {
	places := map[place]bool{}
	for _, a := range attachments {
		for _, l := range a.Listeners {
			places[placeOf(a, l)] = true
		}
	}
	for i := range b.rules {
		if err := b.buildRule(i, places); err != nil {
			b.rules[i].fail(asProblem(fmt.Sprintf("rules[%d]", i), err))
			if b.buildRule(i, places) != nil {
				b.rules[i].Matches = nil
			}
		}
	}
}

func (b *routeBuilder) buildRule(i int, places map[place]bool) error {
	ru := &b.rules[i]
	for j, m := range ru.Matches {
		for on := range places {
			route, err := ru.envoy(routeName(b.key, i, j), m, on)
			if err != nil {
				return err
			}
			raw, err := marshal(route)
			if err != nil {
				return err
			}
			built := &envoyRoute{AnyModel: m.AnyModel, Namespace: b.route.Namespace, Bytes: raw, Cut: cut(raw), OwnsBase: ru.Filters.ownsBase(), Shape: m.Shape}
			if m.Model != (modelDemand{}) {
				built.ForModels, built.Models = true, b.modelNames(m.Model)
			}
			b.built[builtKey{i, j, on}] = built
		}
	}
	return nil
}

// fieldRequestHeadersToAdd is the number of that field of envoy.config.route.v3.Route.
const fieldRequestHeadersToAdd = 9

// cut returns where in a marshalled Route another request_headers_to_add goes. Fields
// stand in the order of their numbers, but the action, a oneof, comes last.
func cut(raw []byte) int {
	at := 0
	for at < len(raw) {
		num, _, n := protowire.ConsumeField(raw[at:])
		switch num {
		case 1, 4, 5, fieldRequestHeadersToAdd: // match, metadata, decorator
			at += n
		default:
			return at
		}
	}
	return at
}

// modelNames resolves a demand once: the matches of a rule often share it.
func (b *routeBuilder) modelNames(d modelDemand) []modelName {
	names, ok := b.models[d]
	if !ok {
		var warnings []string
		names, warnings = b.t.modelNames(b.r, b.route.Namespace, d)
		b.models[d] = names
		b.warnings = append(b.warnings, warnings...)
	}
	return names
}

// rule translates a rule: its matches, filters, timeouts and backends.
func (b *routeBuilder) rule(i int) rule {
	in, where := b.route.Spec.Rules[i], fmt.Sprintf("rules[%d]", i)
	out := rule{Index: i}
	matches := in.Matches
	if len(matches) == 0 {
		matches = []gatewayv1.HTTPRouteMatch{{}} // the CRD's default: PathPrefix /
	}
	for j, m := range matches {
		parsed, err := parseMatch(m)
		if err != nil {
			out.drop(notSupported(msgRouteValue, fmt.Sprintf("%s.matches[%d]", where, j), err))
			break
		}
		out.Matches = append(out.Matches, parsed)
	}
	out.Filters = b.filters(where, in.Filters, &out)
	b.backends(where, in.BackendRefs, &out)
	if out.Filters.Redirect != nil && len(in.BackendRefs) > 0 {
		out.fail(&problem{routeIncompatibleFilters, fmt.Sprintf(msgRouteRedirectAndBackends, where)})
	}
	if in.Retry != nil {
		out.fail(notSupported(msgRouteField, where+".retry"))
	}
	if in.SessionPersistence != nil {
		out.fail(notSupported(msgRouteField, where+".sessionPersistence"))
	}
	var err error
	if out.Timeout, err = timeout(in.Timeouts); err != nil {
		out.fail(notSupported(msgRouteValue, where+".timeouts", err))
	}
	return out
}

// drop leaves the rule out: its matches cannot be told to Envoy.
func (ru *rule) drop(p *problem) {
	ru.fail(p)
	ru.Matches = nil
}

// fail notes the first problem.
func (ru *rule) fail(p *problem) {
	if ru.Problem == nil {
		ru.Problem = p
	}
}

// filters reads the filters of a rule or of a backendRef of its. A filter of a kind that
// is not known is also a reference that cannot be followed.
func (b *routeBuilder) filters(where string, in []gatewayv1.HTTPRouteFilter, ru *rule) filters {
	out, p := parseFilters(where, in)
	ru.fail(p)
	for i, f := range in {
		if f.ExtensionRef != nil {
			b.refs = append(b.refs, backendInvalidKind.because(msgRouteExtension, where, i, f.ExtensionRef.Kind, f.ExtensionRef.Group))
		}
	}
	return out
}

// backends resolves the backendRefs of a rule.
func (b *routeBuilder) backends(where string, refs []gatewayv1.HTTPBackendRef, out *rule) {
	for i, ref := range refs {
		at := fmt.Sprintf("%s.backendRefs[%d]", where, i)
		rb := ruleBackend{backend: b.t.resolveBackend(b.r, source.KindHTTPRoute, b.route.Namespace, ref.BackendObjectReference)}
		if rb.Failure != nil {
			b.refs = append(b.refs, *rb.Failure)
		}
		if rb.Pool != "" {
			b.pools = append(b.pools, rb.Pool)
		}
		if rb.Warning != "" {
			b.warnings = append(b.warnings, rb.Warning)
		}
		if rb.Filters = b.filters(at, ref.Filters, out); rb.Filters.Redirect != nil {
			out.fail(notSupported(msgRouteFilter, at, gatewayv1.HTTPRouteFilterRequestRedirect))
		}
		if rb.Weight = uint32(max(ptr.Deref(ref.Weight, 1), 0)); rb.Weight > 0 {
			out.Backends = append(out.Backends, rb)
		}
	}
	if err := checkWeights(out.Backends); err != nil {
		out.fail(notSupported(msgRouteValue, where, err))
	}
}

// timeout is how long a request may take. Without retries there is one call of a
// backend a request, so that the shorter of the two timeouts counts.
func timeout(in *gatewayv1.HTTPRouteTimeouts) (time.Duration, error) {
	if in == nil {
		return 0, nil
	}
	var out time.Duration
	for _, d := range []*gatewayv1.Duration{in.Request, in.BackendRequest} {
		if d == nil {
			continue
		}
		v, err := time.ParseDuration(string(*d))
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration (GEP-2257), such as 10s", *d)
		}
		if v > 0 && (out == 0 || v < out) {
			out = v // 0s disables (HTTPRouteTimeouts)
		}
	}
	return out, nil
}

// use lists the backends that the entries can reach and the pools that the route names.
func (b *routeBuilder) use(row *routeRow) {
	var backends []key
	for _, ru := range b.rules {
		if ru.Problem != nil || ru.Filters.Redirect != nil {
			continue
		}
		for _, rb := range ru.Backends {
			if rb.Key != "" {
				backends = append(backends, rb.Key)
			}
		}
	}
	backends, b.pools = unique(backends), unique(b.pools)
	groups := map[xds.Group]bool{}
	for table := range row.Entries {
		g, _ := splitGroup(table)
		groups[g] = true
	}
	for g := range groups {
		for _, k := range backends {
			row.Uses = append(row.Uses, use{Group: g, Backend: k})
		}
	}
	slices.SortFunc(row.Uses, func(x, y use) int {
		return strings.Compare(string(inGroup(x.Group, string(x.Backend))), string(inGroup(y.Group, string(y.Backend))))
	})
	accepted := map[key]bool{}
	for _, p := range row.Parents {
		accepted[p.Gateway] = accepted[p.Gateway] || p.Accepted
	}
	for gateway, ok := range accepted {
		for _, k := range b.pools {
			row.Pools = append(row.Pools, poolParent{Pool: k, Gateway: gateway, Accepted: ok})
		}
	}
	slices.SortFunc(row.Pools, func(x, y poolParent) int {
		return strings.Compare(string(x.Pool)+"|"+string(x.Gateway), string(y.Pool)+"|"+string(y.Gateway))
	})
}

// manyRules is from how many rules on a route is told that 16 is the most.
const manyRules = 14

func (b *routeBuilder) allWarnings() []string {
	if n := len(b.rules); n >= manyRules {
		b.warnings = append(b.warnings, fmt.Sprintf(warnRouteManyRules, n))
	}
	slices.Sort(b.warnings)
	return slices.Compact(b.warnings)
}

// equalRoutes compares what Envoy gets by its bytes: comparing messages field by field
// would cost more than making them.
func equalRoutes(a, b routeRow) bool {
	if len(a.Entries) != len(b.Entries) {
		return false
	}
	for table, es := range a.Entries {
		if !slices.EqualFunc(es, b.Entries[table], equalEntries) {
			return false
		}
	}
	a.Entries, b.Entries = nil, nil
	return reflect.DeepEqual(a, b)
}

func equalEntries(a, b entry) bool {
	return a.Host == b.Host && a.Listener == b.Listener && a.Precedence.compare(&b.Precedence) == 0 &&
		bytes.Equal(a.Bytes, b.Bytes) && slices.Equal(a.Models, b.Models) &&
		a.ForModels == b.ForModels && a.AnyModel == b.AnyModel && a.OwnsBase == b.OwnsBase
}
