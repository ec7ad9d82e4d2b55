package translator

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	overridehostv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	subsetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/subset/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"signalbox.dev/extproc/contract"
	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

const (
	// connectTimeout leaves room for one lost SYN, which is sent again after a second.
	connectTimeout = 3 * time.Second
	// fetchTimeout bounds how long a cluster without endpoints holds up the CDS ACK, and
	// so every other cluster's (facts: envoy-routes §3, "stuck cluster").
	fetchTimeout = 3 * time.Second
	// upstreamIdle is shorter than the keep-alive of the model servers: vLLM, SGLang and
	// all else on uvicorn close an idle HTTP/1.1 connection after 5 s, and a request that
	// meets the close is lost with a 503.
	upstreamIdle = 4 * time.Second
	// unlimited lifts Envoy's circuit breakers (1,024 requests, 3 retries by default):
	// how much a model server takes is for its picker and its own queue to say.
	unlimited = 1_000_000
)

// cluster makes the Envoy cluster of a backend that some route of the group uses.
//
// What an in-place change does to traffic (facts: envoy-routes §3): requests under way
// finish on the old cluster's connections, and Envoy is sent the endpoints again, which
// it does not ask for. What matters is the time until the routes follow: a cluster
// that begins to wait for picks before its routes ask for them refuses everything, hence
// balancedBackend; the other changes lose nothing in either order, as a cluster that does
// not look for picks ignores them.
func (t *tables) cluster(r *incr.Reads, x key) (*xds.Resource, bool) {
	_, name := splitGroup(x)
	kind, object, port, ok := parseBackend(key(name))
	if !ok {
		return nil, false
	}
	c := edsCluster(name)
	h2c := false
	if kind == source.KindService {
		row, ok := t.serviceRows.Get(r, object)
		p, found := row.port(port)
		if !ok || !found {
			return nil, false
		}
		h2c = p.h2c()
		c.LoadBalancingPolicy = leastRequest()
	} else {
		row, ok := t.poolRows.Get(r, object)
		if !ok || row.backend() != key(name) {
			return nil, false
		}
		h2c = row.H2C
		c.LoadBalancingPolicy = row.balancing()
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(protocolOptions(h2c)),
	}
	return xds.NewResource(xds.Cluster, name, c), true
}

// edsCluster returns what all clusters have in common.
func edsCluster(name string) *clusterv3.Cluster {
	threshold := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections:     wrapperspb.UInt32(unlimited),
		MaxPendingRequests: wrapperspb.UInt32(unlimited),
		MaxRequests:        wrapperspb.UInt32(unlimited),
		MaxRetries:         wrapperspb.UInt32(unlimited),
	}
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			ResourceApiVersion:    corev3.ApiVersion_V3,
			InitialFetchTimeout:   durationpb.New(fetchTimeout),
		}},
		ConnectTimeout:  durationpb.New(connectTimeout),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{threshold}},
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{
			// No panic: with no healthy host the answer is 503, never a random host.
			HealthyPanicThreshold: &typev3.Percent{Value: 0},
		},
		// An endpoint that has left is gone, whatever a health check thought of it.
		IgnoreHealthOnHostRemoval: true,
	}
}

func protocolOptions(h2c bool) *httpv3.HttpProtocolOptions {
	if h2c {
		return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
			}},
		}}
	}
	return &httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(upstreamIdle)},
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
				HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
			}},
		},
	}
}

// balancing says which endpoint of the pool serves (facts: envoy-pools §2): the picked
// one, from dynamic metadata alone, as clients can write headers; without a pick that
// can be used, any endpoint of a FailOpen pool and none of a FailClose or broken one.
func (p poolRow) balancing() *clusterv3.LoadBalancingPolicy {
	switch {
	case p.Picker == nil && !p.Broken:
		return leastRequest()
	case p.Picker != nil && p.Picker.FailOpen:
		return picked(leastRequest())
	}
	return picked(noHost())
}

func picked(fallback *clusterv3.LoadBalancingPolicy) *clusterv3.LoadBalancingPolicy {
	return balancingPolicy("envoy.load_balancing_policies.override_host", &overridehostv3.OverrideHost{
		OverrideHostSources: []*overridehostv3.OverrideHost_OverrideHostSource{{Metadata: metadataKey(contract.KeyDestination)}},
		SelectedHostKey:     metadataKey(contract.KeyServed),
		FallbackPolicy:      fallback,
	})
}

// noHost never finds a host: it looks for a subset that no endpoint is in.
func noHost() *clusterv3.LoadBalancingPolicy {
	return balancingPolicy("envoy.load_balancing_policies.subset", &subsetv3.Subset{
		FallbackPolicy: subsetv3.Subset_NO_FALLBACK,
		SubsetSelectors: []*subsetv3.Subset_LbSubsetSelector{{
			Keys:           []string{"signalbox.none"},
			FallbackPolicy: subsetv3.Subset_LbSubsetSelector_NO_FALLBACK,
		}},
		SubsetLbPolicy: leastRequest(),
	})
}

// leastRequest prefers the endpoint with fewer requests under way: generations differ
// too much in length for taking turns.
func leastRequest() *clusterv3.LoadBalancingPolicy {
	return balancingPolicy("envoy.load_balancing_policies.least_request", &leastrequestv3.LeastRequest{})
}

func balancingPolicy(name string, config proto.Message) *clusterv3.LoadBalancingPolicy {
	return &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: &corev3.TypedExtensionConfig{Name: name, TypedConfig: packed(config)},
	}}}
}

func metadataKey(path string) *metadatav3.MetadataKey {
	return &metadatav3.MetadataKey{Key: contract.MetadataLB, Path: []*metadatav3.MetadataKey_PathSegment{{
		Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: path},
	}}}
}

// packed marshals deterministically: equal configuration must have equal bytes.
func packed(m proto.Message) *anypb.Any {
	out := &anypb.Any{}
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(fmt.Sprintf("translator: a message of ours cannot be marshalled: %v", err))
	}
	return out
}
