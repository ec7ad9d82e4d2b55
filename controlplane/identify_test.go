package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	clusterservice "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"signalbox.dev/provision/pki"
	"signalbox.dev/xds"
	"signalbox.dev/xds/server"
)

const testServer = "signalbox.signalbox-system.svc"

// gate is an xDS server as ServeKube runs it: with TLS for Envoys that show whose they
// are, and without for those on the machine. Two Gateways have a secret each.
type gate struct {
	t         *testing.T
	authority *pki.Authority
	tls       string
	plain     string
	log       *observer.ObservedLogs
}

func newGate(t *testing.T, more func(*grpc.Server)) *gate {
	t.Helper()
	ca, err := pki.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	side := pki.NewServer([]string{testServer}, time.Now)
	if err := side.Use(ca); err != nil {
		t.Fatal(err)
	}
	core, log := observer.New(zapcore.InfoLevel)
	ads := server.New(server.Options{Identify: identify, Logger: zap.New(core)})
	var changes []xds.Change
	for _, g := range []xds.Group{"default/a", "default/b"} {
		name := "secret/" + string(g)
		changes = append(changes, xds.Change{Group: g, Type: xds.Secret, Name: name, Resource: xds.NewResource(xds.Secret, name, &tlsv3.Secret{Name: name})})
	}
	ads.Publish(changes)
	g := &gate{t: t, authority: ca, log: log}
	start := func(options ...grpc.ServerOption) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(append(server.GRPCOptions(), options...)...)
		ads.Register(s)
		if more != nil {
			more(s)
		}
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return l.Addr().String()
	}
	g.tls, g.plain = start(grpc.Creds(credentials.NewTLS(side.TLS()))), start()
	return g
}

// as dials with a certificate.
func (g *gate) as(pair pki.Pair) *grpc.ClientConn {
	g.t.Helper()
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		g.t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(g.authority.Bundle())
	return g.dial(g.tls, credentials.NewTLS(&tls.Config{ServerName: testServer, RootCAs: trusted, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}))
}

func (g *gate) dial(address string, creds credentials.TransportCredentials) *grpc.ClientConn {
	g.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	return conn
}

// gateway returns the certificate of a Gateway's Envoys.
func (g *gate) gateway(namespace, name string) pki.Pair {
	pair, err := g.authority.Client(namespace, name, time.Now())
	if err != nil {
		g.t.Fatal(err)
	}
	return pair
}

// secrets asks for secrets as a node and returns the names of those that come, or the
// end of the stream. It asks for one that nobody has as well, so that an answer comes.
func (g *gate) secrets(conn *grpc.ClientConn, names []string, nodes ...*corev3.Node) ([]string, error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: string(xds.Secret), ResourceNamesSubscribe: names}); err != nil {
			break // the answer says why
		}
	}
	var got []string
	for len(got) == 0 {
		resp, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		for _, r := range resp.GetResources() {
			got = append(got, r.GetName())
		}
		if len(resp.GetRemovedResources()) > 0 {
			break
		}
	}
	slices.Sort(got)
	return got, nil
}

func node(id, cluster string) *corev3.Node { return &corev3.Node{Id: id, Cluster: cluster} }

// TestIdentity: over TLS a stream gets what is for the Gateway in its certificate,
// whatever its node says (facts: reliability, S2).
func TestIdentity(t *testing.T) {
	g := newGate(t, nil)
	a := g.as(g.gateway("default", "a"))
	foreign, err := pki.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	forged, err := foreign.Client("default", "a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	replica, err := g.authority.Replica(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, others := []string{"secret/default/a"}, []string{"secret/default/b"}
	for name, c := range map[string]struct {
		conn  *grpc.ClientConn
		ask   []string
		nodes []*corev3.Node
		want  []string
		code  codes.Code
	}{
		"as itself":                   {a, own, []*corev3.Node{node("1", "default/a")}, own, codes.OK},
		"without a cluster":           {a, own, []*corev3.Node{node("1", "")}, own, codes.OK},
		"without a node":              {a, own, []*corev3.Node{nil}, own, codes.OK},
		"as another Gateway":          {a, others, []*corev3.Node{node("1", "default/b")}, nil, codes.PermissionDenied},
		"as no Gateway":               {a, others, []*corev3.Node{node("1", "b")}, nil, codes.PermissionDenied},
		"another's secret":            {a, others, []*corev3.Node{node("1", "default/a")}, nil, codes.OK},
		"another from message 2":      {a, own, []*corev3.Node{node("1", "default/a"), node("1", "default/b")}, nil, codes.PermissionDenied},
		"another id from message 2":   {a, own, []*corev3.Node{node("1", "default/a"), node("2", "default/a")}, nil, codes.PermissionDenied},
		"from nothing to another":     {a, own, []*corev3.Node{node("1", ""), node("1", "default/b")}, nil, codes.PermissionDenied},
		"of a foreign authority":      {g.as(forged), own, []*corev3.Node{node("1", "default/a")}, nil, codes.Unavailable},
		"of a replica":                {g.as(replica), own, []*corev3.Node{node("1", "default/a")}, nil, codes.PermissionDenied},
		"without TLS":                 {g.dial(g.tls, insecure.NewCredentials()), own, []*corev3.Node{node("1", "default/a")}, nil, codes.Unavailable},
		"on the machine, as it says":  {g.dial(g.plain, insecure.NewCredentials()), own, []*corev3.Node{node("1", "default/a")}, own, codes.OK},
		"on the machine, as no other": {g.dial(g.plain, insecure.NewCredentials()), own, []*corev3.Node{node("1", "default/c")}, nil, codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := g.secrets(c.conn, c.ask, c.nodes...)
			if len(c.nodes) > 1 { // what came before the second message may have arrived
				if status.Code(err) != c.code && err != nil {
					t.Errorf("the stream ended with %v; want %s", err, c.code)
				}
				if slices.ContainsFunc(got, func(s string) bool { return !slices.Contains(own, s) }) {
					t.Errorf("got %v", got)
				}
				return
			}
			if status.Code(err) != c.code || !slices.Equal(got, c.want) {
				t.Errorf("got %v, %v; want %v, %s", got, err, c.want, c.code)
			}
		})
	}
	if n := g.log.FilterMessageSnippet("stream refused").Len(); n < 3 {
		t.Errorf("%d refusals are in the log; want one for each", n)
	}
}

// A stream that swaps its node is ended, whatever it had got before.
func TestNodeSwap(t *testing.T) {
	g := newGate(t, nil)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(g.as(g.gateway("default", "a"))).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(n *corev3.Node, name string) {
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: n, TypeUrl: string(xds.Secret), ResourceNamesSubscribe: []string{name}}); err != nil {
			t.Fatal(err)
		}
	}
	ask(node("1", "default/a"), "secret/default/a")
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ask(node("1", "default/b"), "secret/default/b")
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stream that changed its node goes on: %v", err)
	}
}

// A Gateway that is not served (yet) has a stream that waits: it never gets the only
// other one.
func TestUnknownGatewayWaits(t *testing.T) {
	g := newGate(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(g.as(g.gateway("default", "c"))).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node("1", "default/c"), TypeUrl: string(xds.Secret), ResourceNamesSubscribe: []string{"secret/default/a"}}); err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v, %v; want to wait", resp, err)
	}
}

// Nothing but ADS is served: no other door leads to the same secrets.
func TestOnlyADS(t *testing.T) {
	g := newGate(t, nil)
	conn := g.as(g.gateway("default", "a"))
	_, err := secretservice.NewSecretDiscoveryServiceClient(conn).FetchSecrets(t.Context(), &discoveryv3.DiscoveryRequest{Node: node("1", "default/b")})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("Fetch: %v", err)
	}
	stream, err := clusterservice.NewClusterDiscoveryServiceClient(conn).StreamClusters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("a stream of one type: %v", err)
	}
}

// Names as Envoys might be told to use by somebody who may write objects.
func TestIdentityNames(t *testing.T) {
	g := newGate(t, nil)
	for _, name := range []string{"a/../b", "*", "", strings.Repeat("a", 300)} {
		pair, err := g.authority.Client("default", name, time.Now())
		if err != nil {
			continue
		}
		if got, err := g.secrets(g.as(pair), []string{"secret/default/b"}, node("1", "default/b")); err == nil {
			t.Errorf("Gateway %q gets %v", name, got)
		}
	}
}
