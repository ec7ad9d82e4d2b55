package translator_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"pgregory.net/rapid"

	"signalbox.dev/source"
	"signalbox.dev/source/manifest"
	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// TestGoldensLoadInEnvoy: the real Envoy takes what every golden comes to.
func TestGoldensLoadInEnvoy(t *testing.T) {
	envoy := translator.EnvoyPath(t)
	dir := t.TempDir()
	spare := selfSigned(t)
	loaded := 0
	for _, g := range goldens(t) {
		w := g.translate()
		if err := w.fault(); err != nil {
			t.Errorf("%s: %v", g.path, err)
		}
		for _, group := range w.groups() {
			loaded++
			file := filepath.Join(dir, fmt.Sprintf("%d.json", loaded))
			t.Run(fmt.Sprintf("%s/%s", g.name, group), func(t *testing.T) {
				t.Parallel()
				b, err := protojson.Marshal(w.bootstrap(t, group, spare))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-c", file, "-l", "error").CombinedOutput(); err != nil {
					t.Errorf("envoy --mode validate: %v\n%s", err, out)
				}
			})
		}
	}
	if loaded == 0 {
		t.Error("no golden gives anything to Envoy")
	}
}

func (w *world) groups() []xds.Group {
	var out []xds.Group
	for p := range w.resources {
		out = append(out, p.Group)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// bootstrap puts all that a group gets into a static configuration: where Envoy would
// fetch a resource, the resource itself stands, since validating fetches nothing. spare
// stands for certificates that are not there yet.
func (w *world) bootstrap(t *testing.T, group xds.Group, spare *tlsv3.TlsCertificate) *bootstrapv3.Bootstrap {
	static := &bootstrapv3.Bootstrap_StaticResources{}
	in := inliner{t, w, group}
	var secrets []string
	for _, c := range w.output().Resources {
		if c.Group != group {
			continue
		}
		switch m := in.get(c.Type, c.Name).(type) {
		case *clusterv3.Cluster:
			static.Clusters = append(static.Clusters, in.cluster(m))
		case *listenerv3.Listener:
			secrets = append(secrets, in.listener(m)...)
			static.Listeners = append(static.Listeners, m)
		}
	}
	slices.Sort(secrets)
	for _, name := range slices.Compact(secrets) {
		secret := &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: spare}}
		if _, ok := w.resources[place{group, xds.Secret, name}]; ok {
			secret = in.get(xds.Secret, name).(*tlsv3.Secret)
		}
		static.Secrets = append(static.Secrets, secret)
	}
	return &bootstrapv3.Bootstrap{Node: &corev3.Node{Id: "test", Cluster: string(group)}, StaticResources: static}
}

// inliner replaces references by what they refer to.
type inliner struct {
	t     *testing.T
	w     *world
	group xds.Group
}

func (in inliner) get(typ xds.Type, name string) proto.Message {
	in.t.Helper()
	r, ok := in.w.resources[place{in.group, typ, name}]
	if !ok {
		in.t.Fatalf("no %s %s", typ.Short(), name)
	}
	m, err := r.Any.UnmarshalNew()
	if err != nil {
		in.t.Fatal(err)
	}
	return m
}

func (in inliner) cluster(c *clusterv3.Cluster) *clusterv3.Cluster {
	if c.GetType() == clusterv3.Cluster_EDS {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		c.EdsClusterConfig = nil
		c.LoadAssignment = in.get(xds.Endpoint, c.Name).(*endpointv3.ClusterLoadAssignment)
	}
	return c
}

// listener returns the names of the secrets that the listener refers to.
func (in inliner) listener(l *listenerv3.Listener) (secrets []string) {
	for _, chain := range l.FilterChains {
		for _, f := range chain.Filters {
			var hcm hcmv3.HttpConnectionManager
			in.repack(f.GetTypedConfig(), &hcm, func() {
				rc := in.get(xds.Route, hcm.GetRds().RouteConfigName).(*routev3.RouteConfiguration)
				rc.ValidateClusters = wrapperspb.Bool(false) // as it is by default over RDS
				hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: rc}
			})
		}
		if chain.TransportSocket == nil {
			continue
		}
		var tls tlsv3.DownstreamTlsContext
		in.repack(chain.TransportSocket.GetTypedConfig(), &tls, func() {
			for _, s := range tls.CommonTlsContext.TlsCertificateSdsSecretConfigs {
				s.SdsConfig = nil // static
				secrets = append(secrets, s.Name)
			}
		})
	}
	return secrets
}

// repack changes the message that is packed in an Any.
func (in inliner) repack(packed *anypb.Any, m proto.Message, change func()) {
	in.t.Helper()
	if err := packed.UnmarshalTo(m); err != nil {
		in.t.Fatal(err)
	}
	change()
	if err := packed.MarshalFrom(m); err != nil {
		in.t.Fatal(err)
	}
}

func selfSigned(t *testing.T) *tlsv3.TlsCertificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"spare.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	inline := func(typ string, b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b})}}
	}
	return &tlsv3.TlsCertificate{CertificateChain: inline("CERTIFICATE", certificate), PrivateKey: inline("PRIVATE KEY", key)}
}

// TestEditedGoldensLoadInEnvoy: the real Envoy takes whatever is made of objects that an
// API server has taken. What is valid protobuf and yet refused would take a whole route
// table, and with it other people's routes, out of service.
func TestEditedGoldensLoadInEnvoy(t *testing.T) {
	envoy := translator.EnvoyPath(t)
	dir, spare := t.TempDir(), selfSigned(t)
	all := goldens(t)
	m := newMutator(all)
	rapid.Check(t, func(rt *rapid.T) {
		g := rapid.SampledFrom(all).Draw(rt, "golden")
		var objects []source.Object
		for _, o := range g.objects {
			if edited := stored(m.mutate(rt, o)); edited != nil {
				rt.Logf("%s: %s", source.RefOf(o), mustJSON(edited))
				o = edited
			}
			objects = append(objects, o)
		}
		w := worldOf(translator.Translate(objects, g.options.translator()))
		if err := w.fault(); err != nil {
			rt.Fatal(err)
		}
		for i, group := range w.groups() {
			b, err := protojson.Marshal(w.bootstrap(t, group, spare))
			if err != nil {
				rt.Fatal(err)
			}
			file := filepath.Join(dir, fmt.Sprintf("%d.json", i))
			if err := os.WriteFile(file, b, 0o600); err != nil {
				rt.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-c", file, "-l", "error").CombinedOutput(); err != nil {
				rt.Fatalf("envoy --mode validate: %v\n%s", err, out)
			}
		}
	})
}

// stored returns the object as an API server would store it, or nil if it refuses it.
func stored(o source.Object) source.Object {
	r := manifest.Parse("edited", mustJSON(o))
	if len(r.Objects) != 1 || len(r.Problems) > 0 {
		return nil
	}
	return r.Objects[0].Object
}
