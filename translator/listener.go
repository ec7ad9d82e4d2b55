package translator

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// handshakeTimeout bounds TLS handshakes of clients.
const handshakeTimeout = 10 * time.Second

// envoyListener returns the Envoy listener of a bound port. Nothing in it comes from a
// route, a pool, a picker or the content of a certificate, and it must stay so: Envoy
// drains a listener that changes, and cuts token streams at the end of the drain time
// (facts: envoy-routes §4). Filter chains may come and go: the others are not drained.
func (t *tables) envoyListener(r *incr.Reads, x key, gateways []key) (*xds.Resource, bool) {
	row, ok := t.gatewayRows.Get(r, gateways[0]) // a group is one Gateway's
	if !ok {
		return nil, false
	}
	_, name := splitGroup(x)
	address, port, _ := parseListenerName(name)
	chains, secure := t.filterChains(row, port)
	if len(chains) == 0 {
		return nil, false
	}
	l := &listenerv3.Listener{
		Name:    name,
		Address: socketAddress(address, port),
		// What Envoy holds of a body while its model is unknown (facts: envoy-extractor §2.1).
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(t.opt.HoldLimit),
		FilterChains:                  chains,
	}
	if secure {
		l.ListenerFilters = []*listenerv3.ListenerFilter{{
			Name:       "envoy.filters.listener.tls_inspector",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: packed(&inspectorv3.TlsInspector{})},
		}}
	}
	return xds.NewResource(xds.Listener, name, l), true
}

// filterChains returns the filter chains of a bound port: one for all HTTP listeners,
// one for each HTTPS listener. Protocols do not mix on a port (conflicts).
func (t *tables) filterChains(row gatewayRow, port int32) (chains []*listenerv3.FilterChain, secure bool) {
	seen := map[string]bool{}
	for _, l := range row.Listeners {
		if l.Bound != port || l.RouteConfig == "" || seen[l.RouteConfig] {
			continue
		}
		seen[l.RouteConfig] = true
		chain := &listenerv3.FilterChain{
			Name: l.RouteConfig, // made from the same identity
			Filters: []*listenerv3.Filter{{
				Name:       "envoy.filters.network.http_connection_manager",
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t.connectionManager(row, l.RouteConfig))},
			}},
		}
		if l.Protocol == gatewayv1.HTTPSProtocolType {
			secure = true
			terminate(chain, l)
		}
		chains = append(chains, chain)
	}
	slices.SortFunc(chains, func(a, b *listenerv3.FilterChain) int { return strings.Compare(a.Name, b.Name) })
	return chains, secure
}

// terminate makes a filter chain the one of an HTTPS listener. Envoy itself takes the
// chain with the longest matching server name, as the spec wants it.
func terminate(chain *listenerv3.FilterChain, l listenerRow) {
	if l.Hostname != "" {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: []string{l.Hostname}}
	}
	common := &tlsv3.CommonTlsContext{
		TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
		AlpnProtocols: []string{"h2", "http/1.1"},
	}
	for _, s := range l.Secrets {
		common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs, &tlsv3.SdsSecretConfig{
			Name:      secretName(objectKey(s.Namespace, s.Name)),
			SdsConfig: ads(fetchTimeout),
		})
	}
	chain.TransportSocket = &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(&tlsv3.DownstreamTlsContext{CommonTlsContext: common})},
	}
	chain.TransportSocketConnectTimeout = durationpb.New(handshakeTimeout)
}

// socketAddress returns an IP address and port. One of IPv6 that stands for all takes
// IPv4 as well.
func socketAddress(address string, port int32) *corev3.Address {
	ip, _ := netip.ParseAddr(address)
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       address,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
		Ipv4Compat:    ip.Is6() && ip.IsUnspecified(),
	}}}
}

// ads names the one stream over which everything comes. Waiting for the first answer
// ends after the timeout.
func ads(timeout time.Duration) *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(timeout),
	}
}
