package translator

import (
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// tables is the graph: what is computed from what. A field is filled before any
// function that reads it can run; a function may read only tables above its own.
type tables struct {
	g   *incr.Graph
	opt Options

	// Inputs, keyed by objectKey.
	gatewayClasses *incr.Table[key, *gatewayv1.GatewayClass]
	gateways       *incr.Table[key, *gatewayv1.Gateway]
	httpRoutes     *incr.Table[key, *gatewayv1.HTTPRoute]
	grants         *incr.Table[key, *gatewayv1.ReferenceGrant]
	tlsPolicies    *incr.Table[key, *gatewayv1.BackendTLSPolicy]
	pools          *incr.Table[key, *inferencev1.InferencePool]
	services       *incr.Table[key, *corev1.Service]
	slices         *incr.Table[key, *discoveryv1.EndpointSlice]
	pods           *incr.Table[key, *corev1.Pod]
	namespaces     *incr.Table[key, *corev1.Namespace]
	secrets        *incr.Table[key, *corev1.Secret]
	configMaps     *incr.Table[key, *corev1.ConfigMap]
	acks           *incr.Table[key, ackRow] // by Gateway
	reports        *incr.Table[key, Report] // by Gateway
	bundle         *incr.Table[key, string] // of Gateway API's CRDs, under ""

	// Indexes of inputs.
	gatewaysByPort     *incr.Index[key, key] // portKey(bound port)
	grantsByNamespace  *incr.Index[key, key] // target's namespace
	policiesByService  *incr.Index[key, key]
	slicesByService    *incr.Index[key, key]
	slicesBySelector   *incr.Selection[key, key, key, *discoveryv1.EndpointSlice] // selectorKey(namespace, labels)
	podsBySelector     *incr.Selection[key, key, key, *corev1.Pod]
	configMapsByModel  *incr.Index[key, key] // objectKey(namespace, model): labelled ConfigMaps that name it
	modelsByNamespace  *incr.Index[key, key]
	modelsByBase       *incr.Index[key, key] // objectKey(namespace, base) → models' keys
	routesByTable      *incr.Index[key, key] // inGroup(group, RouteConfiguration)
	routesByBackend    *incr.Index[key, key] // inGroup(group, backend)
	routesByPool       *incr.Index[key, key]
	routesByGateway    *incr.Index[key, key]
	gatewaysByTable    *incr.Index[key, key]
	gatewaysByListener *incr.Index[key, key] // inGroup(group, Envoy listener)
	gatewaysBySecret   *incr.Index[key, key] // inGroup(group, secretName)

	poolsByPickerService *incr.Index[key, key]
	warnedByBackend      *incr.Index[key, key] // endpoint rows with warnings

	// Derived, in their order.
	policyRows  *incr.Table[key, policyRow]
	serviceRows *incr.Table[key, serviceRow]
	poolRows    *incr.Table[key, poolRow]
	gatewayRows *incr.Table[key, gatewayRow]
	modelLists  *incr.Table[key, modelListRow] // by ConfigMap
	models      *incr.Table[key, modelRow]     // by objectKey(namespace, model)
	routeRows   *incr.Table[key, routeRow]

	routeTables    *incr.Table[key, *xds.Resource]
	clusters       *incr.Table[key, *xds.Resource]
	endpoints      *incr.Table[key, endpointRow]
	listeners      *incr.Table[key, *xds.Resource]
	secretRes      *incr.Table[key, *xds.Resource]
	extProc        *incr.Table[key, *xds.Resource]  // by Gateway
	infrastructure *incr.Table[key, Infrastructure] // nil without Options.Provision
	gatewayClassSt *incr.Table[key, Status]
	gatewayStatus  *incr.Table[key, Status]
	routeStatus    *incr.Table[key, Status]
	poolStatus     *incr.Table[key, Status]
	policyStatus   *incr.Table[key, Status]

	assigned map[key]string // versions of the ClusterLoadAssignments that were handed out
}

func deepEqual[T any](a, b T) bool { return reflect.DeepEqual(a, b) }

func sameResource(a, b *xds.Resource) bool { return a.Name == b.Name && a.Version == b.Version }

func newTables(opt Options) *tables {
	t := &tables{g: incr.New(), opt: opt, assigned: map[key]string{}}
	t.inputs()
	t.derived()
	t.outputs()
	return t
}

func (t *tables) inputs() {
	g := t.g
	t.gatewayClasses = incr.Input[key](g, deepEqual[*gatewayv1.GatewayClass])
	t.gateways = incr.Input[key](g, deepEqual[*gatewayv1.Gateway])
	t.httpRoutes = incr.Input[key](g, deepEqual[*gatewayv1.HTTPRoute])
	t.grants = incr.Input[key](g, deepEqual[*gatewayv1.ReferenceGrant])
	t.tlsPolicies = incr.Input[key](g, deepEqual[*gatewayv1.BackendTLSPolicy])
	t.pools = incr.Input[key](g, deepEqual[*inferencev1.InferencePool])
	t.services = incr.Input[key](g, deepEqual[*corev1.Service])
	t.slices = incr.Input[key](g, deepEqual[*discoveryv1.EndpointSlice])
	t.pods = incr.Input[key](g, deepEqual[*corev1.Pod])
	t.namespaces = incr.Input[key](g, deepEqual[*corev1.Namespace])
	t.secrets = incr.Input[key](g, deepEqual[*corev1.Secret])
	t.configMaps = incr.Input[key](g, deepEqual[*corev1.ConfigMap])
	t.acks = incr.Input[key](g, deepEqual[ackRow])
	t.reports = incr.Input[key](g, deepEqual[Report])
	t.bundle = incr.Input[key](g, deepEqual[string])

	t.gatewaysByPort = incr.NewIndex(t.gateways, t.boundPorts)
	t.grantsByNamespace = incr.NewIndex(t.grants, func(k key, _ *gatewayv1.ReferenceGrant) []key { ns, _ := splitKey(k); return []key{key(ns)} })
	t.policiesByService = incr.NewIndex(t.tlsPolicies, policyTargets)
	t.slicesByService = incr.NewIndex(t.slices, sliceService)
	t.slicesBySelector = incr.NewSelection(t.slices, labelKeys[*discoveryv1.EndpointSlice], selected[*discoveryv1.EndpointSlice])
	t.podsBySelector = incr.NewSelection(t.pods, labelKeys[*corev1.Pod], selected[*corev1.Pod])
}

func (t *tables) derived() {
	t.policyRows = incr.Derive(t.tlsPolicies, deepEqual[policyRow], t.policy)
	t.serviceRows = incr.Derive(t.services, deepEqual[serviceRow], t.service)
	t.poolRows = incr.Derive(t.pools, deepEqual[poolRow], t.pool)
	t.poolsByPickerService = incr.NewIndex(t.poolRows, pickerService)
	t.gatewayRows = incr.Derive(t.gateways, deepEqual[gatewayRow], t.gateway)
	t.gatewaysByTable = incr.NewIndex(t.gatewayRows, gatewayTables)
	t.gatewaysByListener = incr.NewIndex(t.gatewayRows, t.gatewayListeners)
	t.gatewaysBySecret = incr.NewIndex(t.gatewayRows, gatewaySecrets)
	t.modelLists = incr.Derive(t.configMaps, deepEqual[modelListRow], t.modelList)
	t.configMapsByModel = incr.NewIndex(t.modelLists, modelsOf)
	t.models = incr.Group(t.configMapsByModel, deepEqual[modelRow], t.model)
	t.modelsByBase = incr.NewIndex(t.models, modelBases)
	t.modelsByNamespace = incr.NewIndex(t.models, func(k key, _ modelRow) []key { ns, _ := splitKey(k); return []key{key(ns)} })
	t.routeRows = incr.Derive(t.httpRoutes, equalRoutes, t.route)
	t.routesByTable = incr.NewIndex(t.routeRows, func(_ key, r routeRow) []key {
		var out []key
		for k := range r.Entries {
			out = append(out, k)
		}
		return out
	})
	t.routesByBackend = incr.NewIndex(t.routeRows, func(_ key, r routeRow) []key {
		var out []key
		for _, u := range r.Uses {
			out = append(out, inGroup(u.Group, string(u.Backend)))
		}
		return out
	})
	t.routesByPool = incr.NewIndex(t.routeRows, func(_ key, r routeRow) []key {
		var out []key
		for _, p := range r.Pools {
			out = append(out, p.Pool)
		}
		return unique(out)
	})
	t.routesByGateway = incr.NewIndex(t.routeRows, func(_ key, r routeRow) []key {
		var out []key
		for _, p := range r.Parents {
			out = append(out, p.Gateway)
		}
		return unique(out)
	})
}

func (t *tables) outputs() {
	t.routeTables = incr.Group(t.gatewaysByTable, sameResource, t.routeTable)
	t.clusters = incr.Distinct(t.routesByBackend, sameResource, t.cluster)
	t.endpoints = incr.Distinct(t.routesByBackend, sameEndpoints, t.clusterEndpoints)
	t.warnedByBackend = incr.NewIndex(t.endpoints, warnedBackend)
	t.listeners = incr.Group(t.gatewaysByListener, sameResource, t.envoyListener)
	t.secretRes = incr.Group(t.gatewaysBySecret, sameResource, t.envoySecret)
	t.extProc = incr.Derive(t.gatewayRows, sameResource, t.extProcCluster)
	if t.opt.Provision {
		t.infrastructure = incr.Derive(t.gatewayRows, deepEqual[Infrastructure], t.infrastructureOf)
	}
	t.gatewayClassSt = incr.Derive(t.gatewayClasses, deepEqual[Status], t.gatewayClassStatusOf)
	t.gatewayStatus = incr.Derive(t.gatewayRows, deepEqual[Status], t.gatewayStatusOf)
	t.routeStatus = incr.Derive(t.routeRows, deepEqual[Status], t.routeStatusOf)
	t.poolStatus = incr.Derive(t.poolRows, deepEqual[Status], t.poolStatusOf)
	t.policyStatus = incr.Derive(t.policyRows, deepEqual[Status], t.policyStatusOf)
}

// set puts one object into its input table, or takes it out.
func (t *tables) set(c source.Change) {
	k := objectKey(c.Ref.Namespace, c.Ref.Name)
	switch c.Ref.Kind {
	case source.KindGatewayClass:
		put(t.gatewayClasses, k, c.Object)
	case source.KindGateway:
		put(t.gateways, k, c.Object)
	case source.KindHTTPRoute:
		put(t.httpRoutes, k, c.Object)
	case source.KindReferenceGrant:
		put(t.grants, k, c.Object)
	case source.KindBackendTLSPolicy:
		put(t.tlsPolicies, k, c.Object)
	case source.KindInferencePool:
		put(t.pools, k, c.Object)
	case source.KindService:
		put(t.services, k, c.Object)
	case source.KindEndpointSlice:
		put(t.slices, k, c.Object)
	case source.KindPod:
		put(t.pods, k, c.Object)
	case source.KindNamespace:
		put(t.namespaces, k, c.Object)
	case source.KindSecret:
		put(t.secrets, k, c.Object)
	case source.KindConfigMap:
		put(t.configMaps, k, c.Object)
	}
}

func put[T source.Object](table *incr.Table[key, T], k key, o source.Object) {
	if o == nil {
		table.Delete(k)
	} else if v, ok := o.(T); ok {
		table.Set(k, v)
	}
}

// collect gathers what the last update changed, in a stable order.
func (t *tables) collect() Output {
	var out Output
	resources := func(typ xds.Type, table *incr.Table[key, *xds.Resource]) {
		for _, k := range table.Changed() {
			g, name := splitGroup(k)
			r, _ := table.Get(nil, k)
			out.Resources = append(out.Resources, xds.Change{Group: g, Type: typ, Name: name, Resource: r})
		}
	}
	resources(xds.Secret, t.secretRes)
	resources(xds.Cluster, t.clusters)
	resources(xds.Listener, t.listeners)
	resources(xds.Route, t.routeTables)
	for _, k := range t.endpoints.Changed() {
		g, name := splitGroup(k)
		row, ok := t.endpoints.Get(nil, k)
		if ok && t.assigned[k] == row.Resource.Version {
			continue // other warnings, the same endpoints
		}
		if delete(t.assigned, k); ok {
			t.assigned[k] = row.Resource.Version
		}
		out.Resources = append(out.Resources, xds.Change{Group: g, Type: xds.Endpoint, Name: name, Resource: row.Resource})
	}
	for _, k := range t.extProc.Changed() {
		r, _ := t.extProc.Get(nil, k)
		out.Resources = append(out.Resources, xds.Change{Group: xds.Group(k), Type: xds.Cluster, Name: ExtProcCluster, Resource: r})
	}
	slices.SortFunc(out.Resources, xds.Change.Compare)

	statuses := func(kind source.Kind, table *incr.Table[key, Status]) {
		for _, k := range table.Changed() {
			s, ok := table.Get(nil, k)
			if !ok {
				ns, name := splitKey(k)
				s = Status{Ref: source.Ref{Kind: kind, Namespace: ns, Name: name}}
			}
			out.Statuses = append(out.Statuses, s)
		}
	}
	statuses(source.KindGatewayClass, t.gatewayClassSt)
	statuses(source.KindGateway, t.gatewayStatus)
	statuses(source.KindHTTPRoute, t.routeStatus)
	statuses(source.KindInferencePool, t.poolStatus)
	statuses(source.KindBackendTLSPolicy, t.policyStatus)
	slices.SortFunc(out.Statuses, func(a, b Status) int { return a.Ref.Compare(b.Ref) })
	if t.opt.Provision {
		out.Infrastructure = t.changedInfrastructure()
	}
	return out
}

// unique returns the distinct keys, sorted.
func unique(keys []key) []key {
	slices.SortFunc(keys, func(a, b key) int { return strings.Compare(string(a), string(b)) })
	return slices.Compact(keys)
}
