package server

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"signalbox.dev/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const gw = xds.Group("prod/gw")

// Resources of which a test can see the revision: "name@revision", for a route table
// "name@cluster+cluster".

func cluster(name, rev string) *xds.Resource {
	return xds.NewResource(xds.Cluster, name, &clusterv3.Cluster{Name: name, AltStatName: rev})
}

func cla(name, rev string) *xds.Resource {
	return xds.NewResource(xds.Endpoint, name, &endpointv3.ClusterLoadAssignment{ClusterName: name,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{Locality: &corev3.Locality{Zone: rev}}}})
}

func listener(name, rev string) *xds.Resource {
	return xds.NewResource(xds.Listener, name, &listenerv3.Listener{Name: name, StatPrefix: rev})
}

func table(name string, clusters ...string) *xds.Resource {
	m := &routev3.RouteConfiguration{Name: name}
	for _, c := range clusters {
		m.RequestMirrorPolicies = append(m.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{Cluster: c})
	}
	return xds.NewResource(xds.Route, name, m)
}

func secret(name, rev string) *xds.Resource {
	return xds.NewResource(xds.Secret, name, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{
		GenericSecret: &tlsv3.GenericSecret{Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: rev}}}}})
}

// show returns the name and revision of a resource.
func show(a *anypb.Any) (name, rev string) {
	m, err := a.UnmarshalNew()
	if err != nil {
		panic(err)
	}
	switch m := m.(type) {
	case *clusterv3.Cluster:
		return m.GetName(), m.GetAltStatName()
	case *endpointv3.ClusterLoadAssignment:
		if len(m.GetEndpoints()) == 0 {
			return m.GetClusterName(), "empty"
		}
		return m.GetClusterName(), m.GetEndpoints()[0].GetLocality().GetZone()
	case *listenerv3.Listener:
		return m.GetName(), m.GetStatPrefix()
	case *routev3.RouteConfiguration:
		var clusters []string
		for _, p := range m.GetRequestMirrorPolicies() {
			clusters = append(clusters, p.GetCluster())
		}
		return m.GetName(), strings.Join(clusters, "+")
	case *tlsv3.Secret:
		return m.GetName(), m.GetGenericSecret().GetSecret().GetInlineString()
	}
	panic(fmt.Sprintf("unexpected %T", m))
}

// put and gone make changes of the group gw.
func put(resources ...*xds.Resource) []xds.Change { return putTo(gw, resources...) }

func putTo(g xds.Group, resources ...*xds.Resource) []xds.Change {
	var out []xds.Change
	for _, r := range resources {
		out = append(out, xds.Change{Group: g, Type: r.Type, Name: r.Name, Resource: r})
	}
	slices.SortFunc(out, xds.Change.Compare)
	return out
}

func gone(t xds.Type, names ...string) []xds.Change {
	var out []xds.Change
	for _, n := range names {
		out = append(out, xds.Change{Group: gw, Type: t, Name: n})
	}
	return out
}

// harness is a server behind real gRPC on an in-memory connection.
type harness struct {
	*Server
	t    testing.TB
	conn *grpc.ClientConn

	mu   sync.Mutex
	acks []xds.Ack
}

const (
	clusterWait = 5 * time.Second
	stepWait    = 5 * time.Second
	linger      = 30 * time.Second
)

// newHarness starts a server; t.Cleanup ends it, inside of the test's bubble.
func newHarness(t testing.TB) *harness {
	h := &harness{t: t}
	h.Server = New(Options{ClusterWait: clusterWait, StepWait: stepWait, Linger: linger, OnAck: func(a xds.Ack) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.acks = append(h.acks, a)
	}})
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer(GRPCOptions()...)
	h.Register(g)
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(l) }) // ends with Stop
	conn, err := grpc.NewClient("passthrough:///envoy", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	h.conn = conn
	t.Cleanup(func() { conn.Close(); g.Stop(); serving.Wait() })
	return h
}

// heard returns what OnAck was told since the last call, as lines.
func (h *harness) heard() []string {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, a := range h.acks {
		line := fmt.Sprintf("%s %s %s %s", a.Group, a.Node, a.Type.Short(), strings.Join(slices.Sorted(maps.Keys(a.Versions)), " "))
		if a.Error != "" {
			line += " refused: " + a.Error
		}
		if a.Gone {
			line = fmt.Sprintf("%s %s gone", a.Group, a.Node)
		}
		out = append(out, line)
	}
	h.acks = nil
	return out
}

// envoy is a scripted Envoy. What it has is what it was told, the same for delta and
// state of the world.
type envoy struct {
	t      testing.TB
	delta  bool
	node   *corev3.Node
	cancel context.CancelFunc
	send   func(request) error
	in     chan message
	err    chan error

	names map[xds.Type]map[string]bool // named subscriptions
	has   map[xds.Type]map[string]string
	// versions are what a delta Envoy brings to its next stream.
	versions map[xds.Type]map[string]string
	nonce    map[xds.Type]string
	world    map[xds.Type]string
}

// request is a request of either protocol.
type request struct {
	typ               xds.Type
	subscribe, remove []string
	nonce, words      string
	first             bool
}

// message is a response of either protocol.
type message struct {
	typ       xds.Type
	nonce     string
	world     string
	resources map[string]*anypb.Any
	versions  map[string]string
	removed   []string
}

func (m message) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m.resources)) {
		_, rev := show(m.resources[name])
		parts = append(parts, name+"@"+rev)
	}
	for _, name := range m.removed {
		parts = append(parts, "-"+name)
	}
	return strings.Join(parts, " ")
}

// connect opens a stream; from is the earlier self of a reconnecting Envoy.
func (h *harness) connect(delta bool, nodeCluster string, from *envoy) *envoy {
	e := &envoy{t: h.t, delta: delta, node: &corev3.Node{Id: "envoy-1", Cluster: nodeCluster}, in: make(chan message, 1000), err: make(chan error, 1),
		names: map[xds.Type]map[string]bool{}, has: map[xds.Type]map[string]string{}, versions: map[xds.Type]map[string]string{}, nonce: map[xds.Type]string{}, world: map[xds.Type]string{}}
	if from != nil {
		e.has, e.versions, e.names, e.world = from.has, from.versions, from.names, from.world
	}
	ctx, cancel := context.WithCancel(h.t.Context())
	e.cancel = cancel
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(h.conn)
	var recv func() (message, error)
	var err error
	if delta {
		var s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
		s, err = client.DeltaAggregatedResources(ctx)
		e.send, recv = e.deltaSend(s), func() (message, error) { return deltaRecv(s) }
	} else {
		var s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
		s, err = client.StreamAggregatedResources(ctx)
		e.send, recv = e.worldSend(s), func() (message, error) { return worldRecv(s) }
	}
	if err != nil {
		h.t.Fatal(err)
	}
	go func() {
		for {
			m, err := recv()
			if err != nil {
				e.err <- err
				return
			}
			e.in <- m
		}
	}()
	return e
}

func (e *envoy) deltaSend(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) func(request) error {
	return func(r request) error {
		out := &discoveryv3.DeltaDiscoveryRequest{Node: e.node, TypeUrl: string(r.typ), ResponseNonce: r.nonce, ResourceNamesSubscribe: r.subscribe, ResourceNamesUnsubscribe: r.remove}
		e.node = nil
		if r.first {
			out.InitialResourceVersions = e.versions[r.typ]
		}
		if r.words != "" {
			out.ErrorDetail = &statuspb.Status{Code: 13, Message: r.words}
		}
		return s.Send(out)
	}
}

func deltaRecv(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) (message, error) {
	resp, err := s.Recv()
	if err != nil {
		return message{}, err
	}
	m := message{typ: xds.Type(resp.GetTypeUrl()), nonce: resp.GetNonce(), resources: map[string]*anypb.Any{}, versions: map[string]string{}, removed: resp.GetRemovedResources()}
	for _, r := range resp.GetResources() {
		m.resources[r.GetName()] = r.GetResource()
		m.versions[r.GetName()] = r.GetVersion()
	}
	return m, nil
}

func (e *envoy) worldSend(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient) func(request) error {
	return func(r request) error {
		out := &discoveryv3.DiscoveryRequest{Node: e.node, TypeUrl: string(r.typ), ResponseNonce: r.nonce, VersionInfo: e.world[r.typ], ResourceNames: slices.Sorted(maps.Keys(e.names[r.typ]))}
		e.node = nil
		if r.nonce == "" {
			out.ResponseNonce = e.nonce[r.typ]
		}
		if r.words != "" {
			out.ErrorDetail = &statuspb.Status{Code: 13, Message: r.words}
		}
		return s.Send(out)
	}
}

func worldRecv(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient) (message, error) {
	resp, err := s.Recv()
	if err != nil {
		return message{}, err
	}
	m := message{typ: xds.Type(resp.GetTypeUrl()), nonce: resp.GetNonce(), world: resp.GetVersionInfo(), resources: map[string]*anypb.Any{}, versions: map[string]string{}}
	for _, r := range resp.GetResources() {
		name, _ := show(r)
		m.resources[name] = r
	}
	return m, nil
}

// subscribe asks for names, or for all of a type.
func (e *envoy) subscribe(t xds.Type, names ...string) {
	e.t.Helper()
	first := e.nonce[t] == ""
	if e.names[t] == nil {
		e.names[t] = map[string]bool{}
	}
	for _, n := range names {
		e.names[t][n] = true
	}
	e.must(e.send(request{typ: t, subscribe: names, first: first}))
}

func (e *envoy) unsubscribe(t xds.Type, names ...string) {
	e.t.Helper()
	for _, n := range names {
		delete(e.names[t], n)
		delete(e.has[t], n)
		delete(e.versions[t], n)
	}
	e.must(e.send(request{typ: t, remove: names}))
}

func (e *envoy) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// take waits for the next response, which must be of type t and hold want: for delta
// "changed@revision … -removed", for state of the world what the Envoy has afterwards
// is what counts, see holds.
func (e *envoy) take(t xds.Type) message {
	e.t.Helper()
	select {
	case m := <-e.in:
		if m.typ != t {
			e.t.Fatalf("got %s (%v), want %s", m.typ.Short(), m, t.Short())
		}
		e.apply(m)
		return m
	case err := <-e.err:
		e.t.Fatalf("stream ended: %v; want %s", err, t.Short())
	case <-time.After(time.Hour):
		e.t.Fatalf("no response, want %s", t.Short())
	}
	return message{}
}

// apply makes the response's content what the Envoy has.
func (e *envoy) apply(m message) {
	if e.has[m.typ] == nil || !e.delta && (m.typ == xds.Cluster || m.typ == xds.Listener) {
		e.has[m.typ] = map[string]string{}
	}
	if e.versions[m.typ] == nil {
		e.versions[m.typ] = map[string]string{}
	}
	for name, a := range m.resources {
		if m.typ != xds.Cluster && m.typ != xds.Listener && !e.names[m.typ][name] {
			continue // it has unsubscribed meanwhile
		}
		_, e.has[m.typ][name] = show(a)
		e.versions[m.typ][name] = m.versions[name]
	}
	for _, name := range m.removed {
		delete(e.has[m.typ], name)
		delete(e.versions[m.typ], name)
	}
}

// answered: a state-of-the-world Envoy says a response's nonce with its answer at the
// earliest; what it asks for before that has the nonce before.
func (e *envoy) answered(m message) {
	e.nonce[m.typ] = m.nonce
	e.world[m.typ] = m.world
}

// holds asserts what the Envoy has of a type: "name@revision …".
func (e *envoy) holds(t xds.Type, want string) {
	e.t.Helper()
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(e.has[t])) {
		parts = append(parts, name+"@"+e.has[t][name])
	}
	if got := strings.Join(parts, " "); got != want {
		e.t.Fatalf("Envoy has %s %q, want %q", t.Short(), got, want)
	}
}

func (e *envoy) ack(m message) {
	e.t.Helper()
	e.answered(m)
	e.must(e.send(request{typ: m.typ, nonce: m.nonce}))
}

func (e *envoy) nack(m message, words string) {
	e.t.Helper()
	e.answered(m)
	e.must(e.send(request{typ: m.typ, nonce: m.nonce, words: words}))
}

// takeAck takes a response, asserts what the Envoy has then, and answers.
func (e *envoy) takeAck(t xds.Type, want string) {
	e.t.Helper()
	m := e.take(t)
	e.holds(t, want)
	e.ack(m)
}

// quiet asserts that nothing comes for a while.
func (e *envoy) quiet(d time.Duration) {
	e.t.Helper()
	select {
	case m := <-e.in:
		e.t.Fatalf("got %s (%v), want nothing for %v", m.typ.Short(), m, d)
	case err := <-e.err:
		e.t.Fatalf("stream ended: %v", err)
	case <-time.After(d):
	}
}

// boot does what Envoy does at first with one listener "l" that uses route table "r":
// it ends with everything of want taken.
func (e *envoy) boot(clusters ...string) {
	e.t.Helper()
	e.subscribe(xds.Cluster)
	e.ack(e.take(xds.Cluster))
	if len(clusters) > 0 {
		e.subscribe(xds.Endpoint, clusters...)
		e.ack(e.take(xds.Endpoint))
	}
	e.subscribe(xds.Listener)
	e.ack(e.take(xds.Listener))
	e.subscribe(xds.Route, "r")
	e.ack(e.take(xds.Route))
}

// both runs a test for both protocols.
func both(t *testing.T, f func(t *testing.T, delta bool)) {
	for _, delta := range []bool{true, false} {
		name := map[bool]string{true: "delta", false: "sotw"}[delta]
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { f(t, delta) }) })
	}
}
