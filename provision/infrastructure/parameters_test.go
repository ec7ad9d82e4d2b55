package infrastructure

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"
)

func TestParse(t *testing.T) {
	got, err := Parse(map[string]string{
		"replicas": "3", "envoyImage": "docker.io/e:1", "signalboxImage": "docker.io/s:1", "serviceType": "NodePort\n", "logLevel": "debug", "drainSeconds": "60",
		"resources":                 "envoy: {limits: {cpu: 1500m}}\nextproc: {requests: {memory: 64Mi}}",
		"nodeSelector":              "{disk: ssd}",
		"tolerations":               "- {key: gpu, operator: Exists}",
		"affinity":                  "nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}",
		"imagePullSecrets":          "- name: pull",
		"topologySpreadConstraints": "- {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}",
	})
	if err != nil {
		t.Fatal(err)
	}
	if cpu := got.EnvoyResources.Limits.Cpu().MilliValue(); cpu != 1500 {
		t.Errorf("the CPU limit of Envoy is %dm; want 1500m", cpu)
	}
	if memory := got.SideResources.Requests.Memory().Value(); memory != 64<<20 {
		t.Errorf("extproc asks for %d bytes; want 64 Mi", memory)
	}
	got.EnvoyResources, got.SideResources = corev1.ResourceRequirements{}, corev1.ResourceRequirements{}
	want := Parameters{
		Replicas: ptr.To[int32](3), EnvoyImage: "docker.io/e:1", SignalboxImage: "docker.io/s:1", ServiceType: "NodePort", LogLevel: "debug", DrainSeconds: 60,
		NodeSelector:              map[string]string{"disk": "ssd"},
		Tolerations:               []corev1.Toleration{{Key: "gpu", Operator: "Exists"}},
		Affinity:                  &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{}}},
		ImagePullSecrets:          []corev1.LocalObjectReference{{Name: "pull"}},
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: "DoNotSchedule"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parameters differ (-want +got):\n%s", diff)
	}
	if none, err := Parse(nil); err != nil || cmp.Diff(Default(), none) != "" {
		t.Errorf("an empty ConfigMap is %+v, %v; want the defaults", none, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for key, c := range map[string]struct{ value, want string }{
		"replica":                   {"1", "data.replica is unknown; known are affinity, drainSeconds, envoyImage"},
		"replicas":                  {"-1", `data.replicas: "-1" is not a number from 0 to 1000`},
		"drainSeconds":              {"5m", `data.drainSeconds: "5m" is not a number from 10 to 86400`},
		"envoyImage":                {"a b", "data.envoyImage: an image is one word"},
		"signalboxImage":            {"", "data.signalboxImage: an image is one word"},
		"serviceType":               {"ExternalName", `data.serviceType: "ExternalName" is not one of [LoadBalancer NodePort ClusterIP]`},
		"logLevel":                  {"trace", `data.logLevel: "trace" is not one of [debug info warn error]`},
		"resources":                 {"envoy: {limit: {}}", `data.resources: unknown field "limit"`},
		"nodeSelector":              {"[a]", "data.nodeSelector: "},
		"tolerations":               {"- {kee: a}", `data.tolerations: unknown field "kee"`},
		"affinity":                  {"{", "data.affinity: "},
		"imagePullSecrets":          {"pull", "data.imagePullSecrets: "},
		"topologySpreadConstraints": {"- {maxSkew: one}", "data.topologySpreadConstraints: "},
	} {
		if _, err := Parse(map[string]string{key: c.value}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%s: %q): error %v, want one with %q", key, c.value, err, c.want)
		}
	}
	if len(fields) != 12 {
		t.Errorf("%d fields: add the new ones to this test", len(fields))
	}
}

// Every key is in the table for users.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	for key := range fields {
		if !strings.Contains(string(page), "`"+key+"`") {
			t.Errorf("docs/kubernetes.md does not mention %s", key)
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]string{}
	long := strings.Repeat("a", 250)
	for _, gateway := range []string{"gw", "a.b", "a-b", "1", long, long + ".b", strings.Repeat("b", 52), strings.Repeat("b", 53), strings.Repeat("b", 54), strings.Repeat("c", 43) + "." + strings.Repeat("c", 30)} {
		name, value := ResourceName(gateway), LabelValue(gateway)
		if problems := validation.IsDNS1035Label(name); len(problems) > 0 {
			t.Errorf("ResourceName(%s) = %s: %v", gateway, name, problems)
		}
		if problems := validation.IsValidLabelValue(value); len(problems) > 0 {
			t.Errorf("LabelValue(%s) = %s: %v", gateway, value, problems)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("%s and %s are both %s", gateway, other, name)
		}
		seen[name] = gateway
	}
	if got := ResourceName("gw"); got != "signalbox-gw" {
		t.Errorf("ResourceName(gw) = %s", got)
	}
}

func TestPodPorts(t *testing.T) {
	for listener, want := range map[int32]int32{1: 10001, 80: 10080, 443: 10443, 1023: 11023, 1024: 1024, 8080: 8080, 65535: 65535} {
		if got := PodPort(listener); got != want {
			t.Errorf("PodPort(%d) = %d; want %d", listener, got, want)
		}
	}
}
