package translator

import (
	"math"
	"strconv"
	"strings"
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"signalbox.dev/extproc/contract"
)

const (
	// headersTimeout bounds how long a client may take to send its request's headers.
	headersTimeout = 10 * time.Second
	// stallTimeout bounds how long a client may pause while its body is held for the
	// extractor: Envoy arms ext_proc's message timeout anew with every chunk (facts:
	// envoy-extractor §2.5).
	stallTimeout = 15 * time.Second
	// pickerTimeout bounds single answers of the process beside Envoy in the response
	// phase. While a body is in full duplex Envoy does not look at it, so picking may
	// take as long as it likes.
	pickerTimeout = 30 * time.Second
	// routesTimeout bounds how long a new listener waits for its routes.
	routesTimeout = 15 * time.Second

	maxStreams = 100 // concurrent streams of an HTTP/2 connection
	// minWindow is the least HTTP/2 window that Envoy takes, connectionWindows how many
	// stream windows a connection's has room for.
	minWindow, connectionWindows = 65535, 4
)

// strippedHeaders are those that say where a request goes, or are put on it for the
// model server by a picker: what a client sends under these names never counts (facts:
// reliability §3, inference-extension §4).
var strippedHeaders = []string{
	contract.HeaderModel,
	contract.HeaderBaseModel,
	contract.KeyDestination,
	contract.KeySubset,
	contract.KeyServed,
	"x-envoy-original-dst-host",
	"x-prefiller-url",
	"x-prefiller-host-port",
	"x-encoder-hosts-ports",
	"x-data-parallel-host-port",
	"x-kv-cache-source-host-port",
}

// strippedPrefix is of the headers that the parts of signalbox say to each other.
const strippedPrefix = "x-signalbox-"

// connectionManager returns the HTTP connection manager of a filter chain: the same for
// every chain of a Gateway but for the name of its routes.
func (t *tables) connectionManager(row gatewayRow, routeConfig string) *hcmv3.HttpConnectionManager {
	window := min(max(t.opt.HoldLimit, minWindow), math.MaxInt32/connectionWindows)
	return &hcmv3.HttpConnectionManager{
		StatPrefix: strings.ReplaceAll(routeConfig, ".", "_"), // a dot would end the prefix in the statistics
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: routeConfig,
			ConfigSource:    ads(routesTimeout),
		}},
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{strip()},
		HttpFilters:                   []*hcmv3.HttpFilter{t.extractor(), picker(), router()},

		// The edge: whom a request is from, and what its path is, is for Envoy to say.
		UseRemoteAddress:             wrapperspb.Bool(true),
		InternalAddressConfig:        &hcmv3.HttpConnectionManager_InternalAddressConfig{}, // nobody may send x-envoy-* headers
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT,
		ServerHeaderTransformation:   hcmv3.HttpConnectionManager_PASS_THROUGH,
		CommonHttpProtocolOptions:    &corev3.HttpProtocolOptions{HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST},
		HttpProtocolOptions:          &corev3.Http1ProtocolOptions{EnableTrailers: true},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams: wrapperspb.UInt32(maxStreams),
			// Over HTTP/2 it is the stream's window that bounds what Envoy can hold.
			InitialStreamWindowSize:     wrapperspb.UInt32(window),
			InitialConnectionWindowSize: wrapperspb.UInt32(window * connectionWindows),
		},

		RequestHeadersTimeout: durationpb.New(headersTimeout),
		RequestTimeout:        durationpb.New(0), // a long upload is no mistake
		StreamIdleTimeout:     durationpb.New(row.IdleTimeout),
	}
}

// strip removes clients' routing headers before Envoy chooses a route. A filter would
// be too late: the route is chosen before filters run (facts: envoy-extractor §3).
func strip() *corev3.TypedExtensionConfig {
	var out earlyv3.HeaderMutation
	for _, h := range strippedHeaders {
		out.Mutations = append(out.Mutations, &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: h}})
	}
	out.Mutations = append(out.Mutations, &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: strippedPrefix},
		}},
	}})
	return &corev3.TypedExtensionConfig{Name: "envoy.http.early_header_mutation.header_mutation", TypedConfig: packed(&out)}
}

// extractor is the filter that has the model read from the body. It is off; the hosts
// that look at models turn it on (RDS).
func (t *tables) extractor() *hcmv3.HttpFilter {
	limit := strconv.FormatUint(uint64(t.opt.HoldLimit), 10)
	return &hcmv3.HttpFilter{
		Name:     extractorFilter,
		Disabled: true,
		ConfigType: filterConfig(&extprocv3.ExternalProcessor{
			GrpcService: extProcService([2]string{contract.KeyPart, contract.PartModel}, [2]string{contract.KeyHoldLimit, limit}),
			StatPrefix:  "extractor",
			ProcessingMode: &extprocv3.ProcessingMode{
				RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
				RequestBodyMode:     extprocv3.ProcessingMode_STREAMED,
				RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
				ResponseHeaderMode:  extprocv3.ProcessingMode_SKIP,
				ResponseBodyMode:    extprocv3.ProcessingMode_NONE,
				ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
			},
			SendBodyWithoutWaitingForHeaderResponse: true,
			AllowContentLengthHeader:                true, // the body is never changed
			StatusOnError:                           unavailable(),
			MessageTimeout:                          durationpb.New(stallTimeout),
			ForwardRules: &extprocv3.HeaderForwardingRules{AllowedHeaders: exactly(
				":path", ":method", "content-type", "content-encoding", "content-length", "x-request-id")},
			MutationRules: &mutationv3.HeaderMutationRules{
				DisallowAll: wrapperspb.Bool(true),
				// Short: Envoy refuses an expression whose compiled size is over 100.
				// content-type is for the extractor's own answers.
				AllowExpression: &matcherv3.RegexMatcher{Regex: contract.HeaderModel + "|" + contract.HeaderModelError + "|content-type"},
				DisallowIsError: wrapperspb.Bool(true),
			},
		}),
	}
}

// picker is the filter that asks pools' endpoint pickers. Here it asks nobody: routes
// to pools say whom. It cannot be disabled like the extractor: routes that are chosen
// after the extractor could not turn it on (facts: envoy-pools §0.1).
func picker() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name: pickerFilter,
		ConfigType: filterConfig(&extprocv3.ExternalProcessor{
			GrpcService: extProcService([2]string{contract.KeyPart, contract.PartPicker}),
			StatPrefix:  "picker",
			ProcessingMode: &extprocv3.ProcessingMode{
				RequestHeaderMode:   extprocv3.ProcessingMode_SKIP,
				RequestBodyMode:     extprocv3.ProcessingMode_NONE,
				RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
				ResponseHeaderMode:  extprocv3.ProcessingMode_SKIP,
				ResponseBodyMode:    extprocv3.ProcessingMode_NONE,
				ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
			},
			// A picker that rewrites the model must not move the request to another pool.
			RouteCacheAction:         extprocv3.ExternalProcessor_RETAIN,
			AllowContentLengthHeader: true,
			StatusOnError:            unavailable(),
			MessageTimeout:           durationpb.New(pickerTimeout),
			MetadataOptions: &extprocv3.MetadataOptions{
				ForwardingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{contract.MetadataLB, contract.MetadataSubsetHint}},
				ReceivingNamespaces:  &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{contract.MetadataLB}},
			},
		}),
	}
}

func router() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: "envoy.filters.http.router", ConfigType: filterConfig(&routerv3.Router{})}
}

func filterConfig(m proto.Message) *hcmv3.HttpFilter_TypedConfig {
	return &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(m)}
}

// extProcService names the process beside Envoy, with initial metadata. A stream lives
// as long as it must: no timeout.
func extProcService(metadata ...[2]string) *corev3.GrpcService {
	out := &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: ExtProcCluster}},
		Timeout:         durationpb.New(0),
	}
	for _, kv := range metadata {
		out.InitialMetadata = append(out.InitialMetadata, &corev3.HeaderValue{Key: kv[0], Value: kv[1]})
	}
	return out
}

func unavailable() *typev3.HttpStatus {
	return &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable}
}

func exactly(names ...string) *matcherv3.ListStringMatcher {
	out := &matcherv3.ListStringMatcher{}
	for _, n := range names {
		out.Patterns = append(out.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n}})
	}
	return out
}
