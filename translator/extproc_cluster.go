package translator

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"signalbox.dev/provision/infrastructure"
	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// noLimit is a circuit breaker that does not break: each request to a pool holds a
// stream until its response ends, so the default of 1024 would cap a Gateway, and slow
// uploads would starve it (facts: envoy-extractor §2.7).
const noLimit = 1 << 30

// maxSocketPath is the longest path of a Unix socket, in bytes (sun_path of Linux less
// its final NUL).
const maxSocketPath = 107

// CheckExtProc returns an error if s is no value of Options.ExtProc. Without a valid
// one, no request that needs the process beside Envoy is answered.
func CheckExtProc(s string) error {
	_, _, err := extProcAddress(s)
	return err
}

// extProcAddress returns the address of the process beside Envoy, and whether its host
// is a name that Envoy must look up.
func extProcAddress(s string) (a *corev3.Address, named bool, err error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" || len(path) > maxSocketPath {
			return nil, false, fmt.Errorf("%q: the path of a Unix socket has 1 to %d bytes", s, maxSocketPath)
		}
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}, false, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return nil, false, fmt.Errorf("%q is neither HOST:PORT nor unix:PATH", s)
	}
	host := strings.TrimSuffix(strings.TrimPrefix(s[:i], "["), "]")
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 {
		return nil, false, fmt.Errorf("%q: the port must be a number from 1 to 65535", s)
	}
	ip, err := netip.ParseAddr(host)
	if err == nil {
		return socketAddress(ip.String(), int32(port)), false, nil
	}
	if !validHostname(host) || strings.HasPrefix(host, "*") {
		return nil, false, fmt.Errorf("%q: the host is neither an IP address nor a DNS name", s)
	}
	return socketAddress(host, int32(port)), true, nil
}

// extProcCluster returns the cluster of the process beside Envoy, the same for as long
// as the Gateway's Envoys are run by the same: a change would cut all its streams.
func (t *tables) extProcCluster(_ *incr.Reads, _ key, row gatewayRow) (*xds.Resource, bool) {
	where := t.opt.ExtProc
	if row.Managed {
		where = infrastructure.ExtProcSocket
	}
	address, named, err := extProcAddress(where)
	if err != nil {
		return nil, false
	}
	discovery := clusterv3.Cluster_STATIC
	if named {
		discovery = clusterv3.Cluster_STRICT_DNS
	}
	limit := wrapperspb.UInt32(noLimit)
	return xds.NewResource(xds.Cluster, ExtProcCluster, &clusterv3.Cluster{
		Name:                 ExtProcCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discovery},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: ExtProcCluster,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
			}}}},
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(&upstreamsv3.HttpProtocolOptions{
				UpstreamProtocolOptions: &upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_{
					ExplicitHttpConfig: &upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig{
						ProtocolConfig: &upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
							Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
						},
					},
				},
			}),
		},
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: limit, MaxPendingRequests: limit, MaxRequests: limit, MaxRetries: limit,
		}}},
	}), true
}
