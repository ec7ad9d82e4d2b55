package translator

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	overridehostv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"signalbox.dev/xds"
)

// clusterWorld has a pool or Service of every shape that a cluster can have.
const clusterWorld = `
kind: Service
metadata: {name: epp}
spec: {ports: [{name: web, port: 9002}, {name: h2, port: 9003, appProtocol: kubernetes.io/h2c}]}
---
kind: InferencePool
metadata: {name: open}
spec: {selector: {matchLabels: {app: p}}, targetPorts: [{number: 8000}], appProtocol: kubernetes.io/h2c, endpointPickerRef: {name: epp, port: {number: 9002}, failureMode: FailOpen}}
---
kind: InferencePool
metadata: {name: close}
spec: {selector: {matchLabels: {app: p}}, targetPorts: [{number: 8000}], appProtocol: http, endpointPickerRef: {name: epp, port: {number: 9002}, failureMode: FailClose}}
---
kind: InferencePool
metadata: {name: broken}
spec: {selector: {matchLabels: {app: p}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: nobody, port: {number: 9002}, failureMode: FailOpen}}
---
kind: InferencePool
metadata: {name: none}
spec: {selector: {matchLabels: {app: p}}, targetPorts: [{number: 8000}]}`

// How each shape balances: the chain of policies, from the outside in.
var clusterShapes = []struct {
	backend key
	policy  string
	h2c     bool
}{
	{"pool/default/open", "override_host least_request", true},
	{"pool/default/close", "override_host subset", false},
	{"pool/default/broken", "override_host subset", false},
	{"pool/default/none/balanced", "least_request", false},
	{"service/default/epp/9002", "least_request", false},
	{"service/default/epp/9003", "least_request", true},
}

func clusterOf(t *testing.T, w *tables, backend key) *clusterv3.Cluster {
	t.Helper()
	r, ok := w.cluster(nil, inGroup("g/w", string(backend)))
	if !ok {
		t.Fatalf("%s has no cluster", backend)
	}
	m, err := r.Any.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	c := m.(*clusterv3.Cluster)
	if err := c.ValidateAll(); err != nil {
		t.Error(err)
	}
	if r.Type != xds.Cluster || r.Name != string(backend) || c.Name != r.Name {
		t.Errorf("cluster %s in %s %s", c.Name, r.Type.Short(), r.Name)
	}
	return c
}

func TestClusterShapes(t *testing.T) {
	w := world(t, Options{}, clusterWorld)
	for _, c := range clusterShapes {
		t.Run(string(c.backend), func(t *testing.T) {
			cluster := clusterOf(t, w, c.backend)
			var chain []string
			for policy := cluster.LoadBalancingPolicy; policy != nil; {
				typed := policy.Policies[0].TypedExtensionConfig
				chain = append(chain, strings.TrimPrefix(typed.Name, "envoy.load_balancing_policies."))
				m, err := typed.TypedConfig.UnmarshalNew()
				if err != nil {
					t.Fatal(err)
				}
				policy = nil
				if override, ok := m.(*overridehostv3.OverrideHost); ok {
					policy = override.FallbackPolicy
					for _, source := range override.OverrideHostSources {
						if source.Header != "" || source.Metadata == nil {
							t.Errorf("a client can steer by %+v", source)
						}
					}
				}
			}
			if got := strings.Join(chain, " "); got != c.policy {
				t.Errorf("balances by %q, want %q", got, c.policy)
			}
			var options httpv3.HttpProtocolOptions
			if err := cluster.TypedExtensionProtocolOptions["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].UnmarshalTo(&options); err != nil {
				t.Fatal(err)
			}
			if h2c := options.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil; h2c != c.h2c {
				t.Errorf("HTTP/2: %v, want %v", h2c, c.h2c)
			}
			if idle := options.GetCommonHttpProtocolOptions().GetIdleTimeout().AsDuration(); !c.h2c && idle >= 5*time.Second {
				t.Errorf("idle connections are kept for %v; model servers close them after 5s", idle)
			}
			if wait := cluster.EdsClusterConfig.EdsConfig.InitialFetchTimeout.AsDuration(); wait < 2*time.Second || wait > 5*time.Second {
				t.Errorf("initial_fetch_timeout is %v, want 2 to 5 s", wait)
			}
		})
	}
}

// A pool that gets a picker moves to another cluster, and one whose picker changes stays
// where it is: see balancedBackend.
func TestClusterOfAChangingPool(t *testing.T) {
	w := world(t, Options{}, clusterWorld)
	for _, gone := range []key{"pool/default/none", "pool/default/open/balanced", "pool/default/nobody", "service/default/epp/80", "service/default/nobody/80", "pool"} {
		if _, ok := w.cluster(nil, inGroup("g/w", string(gone))); ok {
			t.Errorf("%s has a cluster", gone)
		}
	}
	same := map[string]bool{}
	for _, name := range []string{"open", "close", "broken"} {
		row, _ := w.poolRows.Get(nil, key("default/"+name))
		same[strings.TrimSuffix(string(row.backend()), name)] = true
	}
	if len(same) != 1 {
		t.Errorf("clusters of pools with a picker are named %v; a change of the failure mode would replace the cluster", same)
	}
}

// The real Envoy loads every shape.
func TestClustersLoadInEnvoy(t *testing.T) {
	w := world(t, Options{}, clusterWorld)
	var clusters []json.RawMessage
	for _, c := range clusterShapes {
		b, err := protojson.Marshal(clusterOf(t, w, c.backend))
		if err != nil {
			t.Fatal(err)
		}
		clusters = append(clusters, b)
	}
	clusters = append(clusters, json.RawMessage(`{"name": "ads", "type": "STATIC", "load_assignment": {"cluster_name": "ads"},
		"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
			"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}}`))
	bootstrap, err := json.Marshal(map[string]any{
		"node":             map[string]string{"id": "test", "cluster": "g/w"},
		"static_resources": map[string]any{"clusters": clusters},
		"dynamic_resources": map[string]any{"ads_config": map[string]any{
			"api_type": "GRPC", "transport_api_version": "V3",
			"grpc_services": []any{map[string]any{"envoy_grpc": map[string]string{"cluster_name": "ads"}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), envoyPath(t), "--mode", "validate", "-c", file, "-l", "error").CombinedOutput(); err != nil {
		t.Errorf("envoy --mode validate: %v\n%s", err, out)
	}
}

// envoyPath returns the Envoy to test with: $ENVOY, the checkout's, or the PATH's.
func envoyPath(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("ENVOY"); path != "" {
		return path
	}
	if found, _ := filepath.Glob("../.bin/envoy-*/envoy"); len(found) > 0 {
		path, err := filepath.Abs(found[len(found)-1])
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		t.Fatal(fmt.Errorf("no Envoy to test with: run make envoy, or set ENVOY to the path of one"))
	}
	return path
}
