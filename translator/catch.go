package translator

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/extproc/contract"
)

// This file holds the answers of virtual hosts that look at models to requests that no
// rule matches. Such a host must have a route for every request: without a route there
// is no host to a request, and the extractor would not run (facts: envoy-extractor §6).

var (
	// catchAll ends the list for requests without a model that a rule names: what kept
	// the extractor from reading one, an unknown model, or neither.
	catchAll = catches()
	// catchUnmatched ends the list of a known model, where the path or something else of
	// the request matches no rule.
	catchUnmatched = listed{envoyRoute: caught("unmatched", gatewayv1.HTTPRouteMatch{}, &routev3.DirectResponseAction{Status: 404})}
	// misdirected answers what came over a connection for another listener (RFC 9110,
	// 15.5.20).
	misdirected = caught("misdirected", gatewayv1.HTTPRouteMatch{}, &routev3.DirectResponseAction{Status: 421})
)

func catches() []listed {
	var out []listed
	for _, f := range contract.Failures {
		on := gatewayv1.HTTPRouteMatch{Headers: []gatewayv1.HTTPHeaderMatch{{Name: contract.HeaderModelError, Value: string(f.Code)}}}
		var param any = "model"
		if f.Code != contract.MissingModel && f.Code != contract.DuplicateModel && f.Code != contract.InvalidModel {
			param = nil // it is the body as a whole
		}
		out = append(out, listed{envoyRoute: caught("model-error/"+string(f.Code), on, openAI(uint32(f.Status), f.Message, param, f.Code))})
	}
	regular := gatewayv1.HeaderMatchRegularExpression
	named := gatewayv1.HTTPRouteMatch{Headers: []gatewayv1.HTTPHeaderMatch{{Type: &regular, Name: contract.HeaderModel, Value: ".+"}}}
	unknown := openAI(404, "The model `%REQ("+contract.HeaderModel+")%` does not exist or you do not have access to it.", "model", contract.ModelNotFound)
	return append(out, listed{envoyRoute: caught("model-not-found", named, unknown)}, catchUnmatched)
}

// caught is a route of our own.
func caught(name string, on gatewayv1.HTTPRouteMatch, answer *routev3.DirectResponseAction) *envoyRoute {
	m, err := parseMatch(on)
	if err != nil {
		panic("translator: catch route " + name + ": " + err.Error())
	}
	raw, err := marshal(&routev3.Route{Name: "signalbox/" + name, Match: m.Envoy, Action: &routev3.Route_DirectResponse{DirectResponse: answer}})
	if err != nil {
		panic("translator: catch route " + name + ": " + err.Error())
	}
	return &envoyRoute{Bytes: raw, Cut: cut(raw), Shape: m.Shape}
}

// openAI is an error in the shape of OpenAI's API, which its clients raise as what it
// is. Envoy formats the message and escapes it for JSON.
func openAI(status uint32, message string, param any, code contract.ErrorCode) *routev3.DirectResponseAction {
	body, err := structpb.NewStruct(map[string]any{"error": map[string]any{
		"message": message, "type": "invalid_request_error", "param": param, "code": string(code),
	}})
	if err != nil {
		panic("translator: " + err.Error())
	}
	return &routev3.DirectResponseAction{Status: status, BodyFormat: &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: body},
	}}
}

// extractHere switches the extractor, which is disabled in the listener, on for a
// virtual host.
func extractHere() *routev3.FilterConfig {
	return &routev3.FilterConfig{Config: packed(&extprocv3.ExtProcPerRoute{
		Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: &extprocv3.ExtProcOverrides{}},
	})}
}
