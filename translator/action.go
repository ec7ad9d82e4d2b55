package translator

import (
	"errors"
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"signalbox.dev/extproc/contract"
)

// invalidBackend is a cluster that does not exist: where the share of an invalid
// backendRef goes. A RouteAction says what the answer is then, 500 and not 503.
const invalidBackend = "signalbox-invalid-backend"

// envoy returns the Envoy route of one match of the rule, on a listener.
func (ru *rule) envoy(name string, m match, on place) (*routev3.Route, error) {
	out := &routev3.Route{Name: name, Match: m.Envoy}
	switch {
	case ru.Problem != nil:
		out.Action = serverError()
		return out, nil
	case ru.Filters.Redirect != nil:
		action, err := redirect(ru.Filters.Redirect, m, on)
		out.Action = &routev3.Route_Redirect{Redirect: action}
		setHeaders(out, headerChanges{}, ru.Filters.Response)
		return out, err
	case !slices.ContainsFunc(ru.Backends, func(b ruleBackend) bool { return b.Key != "" }):
		out.Action = serverError() // no backendRef, or none that is valid
		setHeaders(out, headerChanges{}, ru.Filters.Response)
		return out, nil
	}
	action := &routev3.RouteAction{Timeout: durationpb.New(ru.Timeout)}
	if on.Idle > 0 {
		// Who allows a request an hour allows it to be silent for as long.
		action.IdleTimeout = durationpb.New(max(on.Idle, ru.Timeout))
	}
	out.Action = &routev3.Route_Route{Route: action}
	if f := ru.Filters.Rewrite; f != nil {
		if err := rewrite(f, m, action); err != nil {
			return nil, err
		}
	}
	if len(ru.Backends) == 1 {
		return out, ru.forward(out, action, m)
	}
	return out, ru.split(out, action)
}

// serverError is Envoy's own 500, without a body.
func serverError() *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 500}}
}

func setHeaders(out *routev3.Route, request, response headerChanges) {
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = request.Add, request.Remove
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = response.Add, response.Remove
}

// forward sends everything to the one backend, whose filters become the route's.
func (ru *rule) forward(out *routev3.Route, action *routev3.RouteAction, m match) error {
	b := ru.Backends[0]
	action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: b.Cluster}
	out.TypedPerFilterConfig = perFilter(b.Picker)
	setHeaders(out, ru.Filters.Request.then(b.Filters.Request), ru.Filters.Response.then(b.Filters.Response))
	if b.Filters.Rewrite == nil {
		return nil
	}
	if b.Filters.Rewrite.Path != nil {
		action.PrefixRewrite, action.RegexRewrite = "", nil // the backend's comes last
	}
	return rewrite(b.Filters.Rewrite, m, action)
}

// split shares the requests out by weight. Envoy applies a backend's header changes
// before the route's, the spec after them: so where a backend has its own, all are made
// at the backends.
func (ru *rule) split(out *routev3.Route, action *routev3.RouteAction) error {
	own := slices.ContainsFunc(ru.Backends, func(b ruleBackend) bool {
		return !b.Filters.Request.empty() || !b.Filters.Response.empty()
	})
	if !own {
		setHeaders(out, ru.Filters.Request, ru.Filters.Response)
	}
	clusters := &routev3.WeightedCluster{}
	for _, b := range ru.Backends {
		c := &routev3.WeightedCluster_ClusterWeight{Name: b.Cluster, Weight: wrapperspb.UInt32(b.Weight), TypedPerFilterConfig: perFilter(b.Picker)}
		if b.Key == "" {
			c.Name = invalidBackend
			action.ClusterNotFoundResponseCode = routev3.RouteAction_INTERNAL_SERVER_ERROR
		}
		if own {
			request, response := ru.Filters.Request.then(b.Filters.Request), ru.Filters.Response.then(b.Filters.Response)
			c.RequestHeadersToAdd, c.RequestHeadersToRemove = request.Add, request.Remove
			c.ResponseHeadersToAdd, c.ResponseHeadersToRemove = response.Add, response.Remove
		}
		if f := b.Filters.Rewrite; f != nil {
			if f.Path != nil {
				return errPathOfSeveral
			}
			if f.Hostname != nil {
				c.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: string(*f.Hostname)}
			}
		}
		clusters.Clusters = append(clusters.Clusters, c)
	}
	action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: clusters}
	return nil
}

// perFilter switches the picker filter, which skips everything by default, on for the
// pool's picker; nil without a picker.
func perFilter(p *contract.Picker) map[string]*anypb.Any {
	if p == nil {
		return nil
	}
	mode := &extprocv3.ProcessingMode{
		RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
		RequestBodyMode:     extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED,
		RequestTrailerMode:  extprocv3.ProcessingMode_SEND, // Envoy demands it of a full duplex
		ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
		ResponseBodyMode:    extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED,
		ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
	}
	switch p.Response {
	case contract.ResponseHeaders:
		mode.ResponseBodyMode, mode.ResponseTrailerMode = extprocv3.ProcessingMode_NONE, extprocv3.ProcessingMode_SKIP
	case contract.ResponseNone:
		mode.ResponseHeaderMode = extprocv3.ProcessingMode_SKIP
		mode.ResponseBodyMode, mode.ResponseTrailerMode = extprocv3.ProcessingMode_NONE, extprocv3.ProcessingMode_SKIP
	}
	overrides := &extprocv3.ExtProcOverrides{
		ProcessingMode: mode,
		// What happens when the process beside Envoy itself is gone: a FailOpen pool goes
		// on where Envoy can (a GET, or a stream that could not be opened), a FailClose
		// pool is 503 (the filter's status_on_error). What the picker does wrong is the
		// relay's to answer.
		FailureModeAllow: wrapperspb.Bool(p.FailOpen),
	}
	for _, kv := range p.Metadata() {
		overrides.GrpcInitialMetadata = append(overrides.GrpcInitialMetadata, &corev3.HeaderValue{Key: kv[0], Value: kv[1]})
	}
	return map[string]*anypb.Any{pickerFilter: packed(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: overrides}})}
}

// errPathOfSeveral: Envoy has one path rewrite for all clusters of a route.
var errPathOfSeveral = errors.New("a URLRewrite of the path in one of several backendRefs is not supported; make it a filter of the rule, or make a rule for the backend")

// problem is why a rule cannot be kept.
type problem struct {
	Verdict verdict
	Message string
}

// asProblem says which verdict an error of building a route comes to.
func asProblem(where string, err error) *problem {
	if errors.Is(err, errPathOfSeveral) {
		return &problem{routeIncompatibleFilters, fmt.Sprintf(msgRouteValue, where, err)}
	}
	return notSupported(msgRouteValue, where, err)
}

func notSupported(format string, args ...any) *problem {
	return &problem{routeUnsupportedValue, fmt.Sprintf(format, args...)}
}
