package provision

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"signalbox.dev/provision/infrastructure"
	"signalbox.dev/provision/pki"
)

var update = flag.Bool("update", false, "rewrite testdata")

var settings = Settings{EnvoyImage: "docker.io/envoyproxy/envoy:distroless-v1.40.0", Image: "docker.io/signalbox/signalbox:v1",
	XDS: "signalbox.signalbox-system.svc:18001", ServerName: "signalbox.signalbox-system.svc", ListenAddress: "0.0.0.0"}

var credentials = Credentials{Pair: pki.Pair{Cert: []byte("certificate"), Key: []byte("key")}, CA: []byte("authorities")}

func parameters(t *testing.T, data map[string]string) infrastructure.Parameters {
	t.Helper()
	p, err := infrastructure.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRender holds all that is made for a Gateway against testdata; -update rewrites it.
func TestRender(t *testing.T) {
	for name, g := range map[string]infrastructure.Gateway{
		"default": {Namespace: "default", Name: "gw", UID: "u-1", Ports: []infrastructure.Port{{Service: 80, Pod: 10080}}, Parameters: infrastructure.Default()},
		"everything": {Namespace: "prod", Name: "inference.example", UID: "u-2", Ports: []infrastructure.Port{{Service: 443, Pod: 10443}, {Service: 8080, Pod: 8080}},
			Labels: map[string]string{"team": "ml", "app.kubernetes.io/managed-by": "me"}, Annotations: map[string]string{"lb.example.com/internal": "true"}, Address: "192.0.2.1",
			Parameters: parameters(t, map[string]string{
				"replicas": "3", "envoyImage": "registry.example/envoy:1", "signalboxImage": "registry.example/signalbox:2", "logLevel": "debug", "drainSeconds": "900",
				"resources":    "envoy: {limits: {cpu: 1500m, memory: 1Gi}}\nextproc: {limits: {memory: 256Mi}}",
				"nodeSelector": "{pool: edge}", "tolerations": "- {key: edge, operator: Exists}", "imagePullSecrets": "- {name: pull}",
				"affinity":                  "podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {team: ml}}}]}",
				"topologySpreadConstraints": "- {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}",
			})},
		"cluster-ip": {Namespace: "default", Name: "gw", UID: "u-3", Ports: []infrastructure.Port{{Service: 80, Pod: 10080}}, Address: "10.96.0.9", Parameters: parameters(t, map[string]string{"serviceType": "ClusterIP"})},
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := Render(g, settings, credentials)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			for _, o := range objects {
				u, _, err := applied(o)
				if err != nil {
					t.Fatal(err)
				}
				text, err := yaml.Marshal(u.Object)
				if err != nil {
					t.Fatal(err)
				}
				got.WriteString("---\n")
				got.Write(text)
			}
			path := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("-want +got; go test ./provision -update rewrites it:\n%s", diff)
			}
		})
	}
}

// A pod must be one that the Pod Security Standard "restricted" lets run.
func TestRestricted(t *testing.T) {
	objects, err := Render(infrastructure.Gateway{Namespace: "default", Name: "gw", Parameters: infrastructure.Default()}, settings, credentials)
	if err != nil {
		t.Fatal(err)
	}
	p := deployment(infrastructure.Gateway{Namespace: "default", Name: "gw", Parameters: infrastructure.Default()}, settings, nil).Spec.Template.Spec
	if s := p.SecurityContext; !*s.RunAsNonRoot || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || p.HostNetwork || *p.AutomountServiceAccountToken {
		t.Errorf("the pod is not restricted: %+v", s)
	}
	for _, c := range append(p.InitContainers, p.Containers...) {
		if s := c.SecurityContext; *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
			t.Errorf("container %s is not restricted: %+v", c.Name, s)
		}
	}
	for _, o := range objects {
		if refs := o.GetOwnerReferences(); len(refs) != 1 || refs[0].Name != "gw" {
			t.Errorf("%T has owners %v; it would outlive its Gateway", o, refs)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	bad := settings
	bad.XDS = "nowhere"
	if _, err := Render(infrastructure.Gateway{Namespace: "default", Name: "gw"}, bad, credentials); err == nil {
		t.Error("a control plane without an address is rendered")
	}
}
