package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// install installs signalbox as docs/kubernetes.md says, with the images under test.
func install(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(checkout, "deploy/install.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	apply(t, ourImages(t, string(b)), "apply", "--server-side", "-f", "-")
	kubectl(t, "-n", namespace, "rollout", "status", "deployment/signalbox", "--timeout", patience.String())
	kubectl(t, "wait", "gatewayclass/signalbox", "--for=condition=Accepted", "--timeout", patience.String())
}

// ourImages puts the images under test where manifests name those of a release.
func ourImages(t *testing.T, manifest string) string {
	t.Helper()
	for shipped, variable := range map[string]string{"docker.io/signalbox/signalbox:dev": "SIGNALBOX_IMAGE", "docker.io/envoyproxy/envoy:distroless-v1.40.0": "ENVOY_IMAGE"} {
		manifest = strings.ReplaceAll(manifest, shipped, environment(t, variable))
	}
	return manifest
}

// remove takes everything away again: first the demo, whose Gateway takes its Envoys with
// it, then signalbox. Nothing of either may stay.
func remove(t *testing.T) {
	kubectl(t, "-n", "default", "delete", "gateways,httproutes,inferencepools,backendtlspolicies", "--all", "--wait")
	eventually(t, "the Envoys of a deleted Gateway go", func() (bool, string) {
		left := kubectl(t, "get", "deployments,services,serviceaccounts,secrets,configmaps,poddisruptionbudgets,pods", "-n", "default",
			"-l", "gateway.networking.k8s.io/gateway-name", "-o", "name")
		return left == "", left
	})
	kubectl(t, "delete", "-f", "deploy/demo", "--ignore-not-found", "--wait")
	kubectl(t, "delete", "-f", "deploy/install.yaml", "--ignore-not-found", "--wait", "--timeout", patience.String())
	left := kubectl(t, "get", "deployments,services,serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings,leases,gatewayclasses", "-A",
		"-l", "app.kubernetes.io/part-of=signalbox", "-o", "name")
	if left != "" {
		t.Errorf("left behind: %s", left)
	}
}
