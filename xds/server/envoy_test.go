package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"signalbox.dev/xds"
)

// envoyBinary finds Envoy: $ENVOY, the checkout's .bin, the PATH.
func envoyBinary(t *testing.T) string {
	if p := os.Getenv("ENVOY"); p != "" {
		return p
	}
	if found, _ := filepath.Glob("../../.bin/envoy-*/envoy"); len(found) > 0 {
		return found[len(found)-1]
	}
	p, err := exec.LookPath("envoy")
	if err != nil {
		t.Fatal("no Envoy: set ENVOY=/path/to/envoy, or fetch one with `make envoy`")
	}
	return p
}

// rig is a real Envoy on a server, with one listener on a Unix socket.
type rig struct {
	*Server
	t       *testing.T
	socket  string
	client  *http.Client
	backend *net.TCPAddr
	group   map[string]*xds.Resource // published
	acks    chan xds.Ack
	address string // of ADS
	stop    func() // stops the control plane
}

const bootstrapYAML = `
node: {id: envoy-1, cluster: prod/gw}
dynamic_resources:
  ads_config: {api_type: %s, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {connection_keepalive: {interval: 30s, timeout: 5s}}}
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}
`

func newRig(t *testing.T, api string) *rig {
	r := &rig{t: t, socket: filepath.Join(t.TempDir(), "s"), acks: make(chan xds.Ack, 10000), address: "127.0.0.1:0"}
	r.serve()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("x-cluster")) }))
	r.backend = backend.Listener.Addr().(*net.TCPAddr)
	_, port, _ := net.SplitHostPort(r.address)
	config := filepath.Join(t.TempDir(), "bootstrap.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, bootstrapYAML, api, port), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	log := &strings.Builder{}
	cmd := exec.CommandContext(ctx, envoyBinary(t), "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.socket)
	}}}
	t.Cleanup(func() {
		r.client.CloseIdleConnections()
		stop()
		_ = cmd.Wait() // killed
		r.stop()
		backend.Close()
		if t.Failed() {
			t.Logf("Envoy said:\n%s", log)
		}
	})
	return r
}

// serve starts the control plane, which knows nothing yet.
func (r *rig) serve() {
	r.group = map[string]*xds.Resource{}
	r.Server = New(Options{ClusterWait: 5 * time.Second, StepWait: 5 * time.Second, Linger: 20 * time.Millisecond, OnAck: func(a xds.Ack) { r.acks <- a }})
	l, err := net.Listen("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.address = l.Addr().String()
	g := grpc.NewServer(GRPCOptions()...)
	r.Register(g)
	var running sync.WaitGroup
	running.Go(func() { _ = g.Serve(l) }) // ends with Stop
	r.stop = func() { g.Stop(); running.Wait() }
}

func pack(t testing.TB, m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var adsSource = &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	ResourceApiVersion: corev3.ApiVersion_V3, InitialFetchTimeout: durationpb.New(3 * time.Second)}

func (r *rig) cluster(name string) *xds.Resource {
	return xds.NewResource(xds.Cluster, name, &clusterv3.Cluster{Name: name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource}})
}

func (r *rig) endpoints(name string) *xds.Resource {
	return xds.NewResource(xds.Endpoint, name, &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{
			Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(r.backend.Port)}}}}}}}}}}})
}

// table sends everything to a cluster, and says so in a header.
func (r *rig) table(name, cluster string) *xds.Resource {
	return xds.NewResource(xds.Route, name, &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"},
		Routes: []*routev3.Route{{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			RequestHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-cluster", Value: cluster}}},
			Action:              &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}}}}}}})
}

func (r *rig) badTable(name string) *xds.Resource {
	return xds.NewResource(xds.Route, name, &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"},
		Routes: []*routev3.Route{{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "["}}},
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}}}}}}})
}

func (r *rig) listener(name, path, table string) *xds.Resource {
	hcm := &hcmv3.HttpConnectionManager{StatPrefix: "s",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: table, ConfigSource: adsSource}},
		HttpFilters:    []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(r.t, &routerv3.Router{})}}}}
	return xds.NewResource(xds.Listener, name, &listenerv3.Listener{Name: name,
		Address:      &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}},
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(r.t, hcm)}}}}}})
}

// set publishes that the group is exactly this.
func (r *rig) set(resources ...*xds.Resource) {
	want := map[string]*xds.Resource{}
	for _, res := range resources {
		want[res.Type.Short()+"/"+res.Name] = res
	}
	r.Publish(diff(r.group, want))
	r.group = want
}

// until waits for an answer of the Envoy.
func (r *rig) until(what string, is func(xds.Ack) bool) xds.Ack {
	r.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case a := <-r.acks:
			if is(a) {
				return a
			}
		case <-timeout:
			r.t.Fatalf("no %s within 30 s; Envoy is at %+v", what, r.Clients())
		}
	}
}

func taken(res *xds.Resource) func(xds.Ack) bool {
	return func(a xds.Ack) bool {
		return a.Type == res.Type && a.Error == "" && a.Versions[res.Name] == res.Version
	}
}

// get sends one request and returns the cluster that served it.
func (r *rig) get() (string, error) {
	resp, err := r.client.Get("http://gateway/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body := make([]byte, 100)
	n, _ := resp.Body.Read(body)
	if resp.StatusCode != 200 {
		return "", fmt.Errorf("%d %s", resp.StatusCode, body[:n])
	}
	return string(body[:n]), nil
}

// The backend of a route is replaced again and again under load, and the old cluster
// taken away: no request fails.
func TestEnvoyFlips(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			r := newRig(t, api)
			state := func(c string) []*xds.Resource {
				return []*xds.Resource{r.cluster(c), r.endpoints(c), r.listener("l", r.socket, "r"), r.table("r", c)}
			}
			r.set(state("c-0")...)
			r.until("first table", taken(r.table("r", "c-0")))
			if got, err := r.get(); err != nil || got != "c-0" {
				t.Fatalf("first request: %q, %v", got, err)
			}
			var requests, failures atomic.Int64
			ctx, stop := context.WithCancel(t.Context())
			var load sync.WaitGroup
			for range 4 {
				load.Go(func() {
					for ctx.Err() == nil {
						requests.Add(1)
						if _, err := r.get(); err != nil {
							failures.Add(1)
							t.Logf("failed: %v", err)
						}
					}
				})
			}
			for i := range 30 {
				c := fmt.Sprintf("c-%d", i+1)
				r.set(state(c)...)
				r.until("table", taken(r.table("r", c)))
				if i%2 == 1 {
					r.waitInSync() // the old clusters are gone
				}
			}
			r.waitInSync()
			stop()
			load.Wait()
			t.Logf("%d requests, %d failed", requests.Load(), failures.Load())
			if failures.Load() > 0 || requests.Load() < 30 {
				t.Errorf("%d of %d requests failed", failures.Load(), requests.Load())
			}
			if got, err := r.get(); err != nil || got != "c-30" {
				t.Errorf("last request: %q, %v", got, err)
			}
			if state := r.Clients()[0].Types["clusters"]; state.Acked != 1 || state.AckedVersion != state.WantedVersion {
				t.Errorf("clusters in the end: %+v", state)
			}
		})
	}
}

// waitInSync polls: the end of the last removal is no answer that OnAck is told.
func (r *rig) waitInSync() {
	r.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(30 * time.Second)
	for r.Clients()[0].Step != "in sync" {
		select {
		case <-tick.C:
		case <-timeout:
			r.t.Fatalf("not in sync: %+v", r.Clients())
		}
	}
}

// A control plane that comes back with the same resources sends a delta Envoy nothing,
// and knows what it has; one that comes back with others moves it in order.
func TestEnvoyReconnects(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			r := newRig(t, api)
			state := func(c string) []*xds.Resource {
				return []*xds.Resource{r.cluster(c), r.endpoints(c), r.listener("l", r.socket, "r"), r.table("r", c)}
			}
			r.set(state("c-0")...)
			r.until("first table", taken(r.table("r", "c-0")))
			r.stop()
			r.serve()
			if got, err := r.get(); err != nil || got != "c-0" {
				t.Errorf("without a control plane: %q, %v", got, err)
			}
			r.set(state("c-0")...)
			r.until("table held", taken(r.table("r", "c-0")))
			for typ, state := range r.Clients()[0].Types {
				if api == "DELTA_GRPC" && state.LastSent != nil {
					t.Errorf("%s sent after the reconnect, want nothing", typ)
				}
			}
			r.set(state("c-1")...)
			r.until("new table", taken(r.table("r", "c-1")))
			if got, err := r.get(); err != nil || got != "c-1" {
				t.Errorf("after the reconnect: %q, %v", got, err)
			}
			r.waitInSync()
		})
	}
}

// What Envoy refuses, it keeps in its last good form; its words tell which cluster and
// which listener, and the others of the response are in force.
func TestEnvoyRefuses(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			r := newRig(t, api)
			good := []*xds.Resource{r.cluster("c-0"), r.endpoints("c-0"), r.listener("l", r.socket, "r"), r.table("r", "c-0")}
			r.set(good...)
			r.until("first table", taken(r.table("r", "c-0")))

			badCluster := xds.NewResource(xds.Cluster, "c-bad", &clusterv3.Cluster{Name: "c-bad", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}})
			badListener := xds.NewResource(xds.Listener, "l-bad", &listenerv3.Listener{Name: "l-bad", Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: r.socket + "2"}}}})
			goodListener := r.listener("l-good", r.socket+"3", "r")
			r.set(slices.Concat(good, []*xds.Resource{badCluster, r.cluster("c-1"), r.endpoints("c-1"), badListener, goodListener})...)
			seen := map[string]string{}
			for len(seen) < 4 {
				a := r.until("answer", func(a xds.Ack) bool { return a.Type == xds.Cluster || a.Type == xds.Listener })
				for name := range a.Versions {
					seen[name] = a.Error
				}
			}
			for name, words := range seen {
				if bad := strings.HasSuffix(name, "-bad"); bad != (words != "") || bad && !strings.Contains(words, name) {
					t.Errorf("%s: %q", name, words)
				}
			}
			r.set(slices.Concat(good[:3], []*xds.Resource{r.badTable("r")})...)
			a := r.until("refusal", func(a xds.Ack) bool { return a.Type == xds.Route && a.Error != "" })
			t.Logf("Envoy's words: %s", a.Error)
			if got, err := r.get(); err != nil || got != "c-0" {
				t.Errorf("after the refusal: %q, %v", got, err)
			}
			r.set(good...)
			r.until("good table", taken(r.table("r", "c-0")))
		})
	}
}
