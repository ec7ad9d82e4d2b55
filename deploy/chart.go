// Package deploy renders the chart, and its tests hold everything in this folder to what
// it promises: manifests that are up to date, health checks that judge as their engines
// would. It is a module of its own, since what it needs for that (Helm, Flux, a Lua VM) is
// nobody else's business.
package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
)

// Namespace is where install.yaml puts signalbox.
const Namespace = "signalbox-system"

// installHead begins install.yaml.
const installHead = `# Rendered from helm/signalbox by "make install-yaml"; do not edit. The CRDs come first, by
# their own releases (docs/kubernetes.md).
apiVersion: v1
kind: Namespace
metadata:
  name: ` + Namespace + `
  labels:
    pod-security.kubernetes.io/enforce: restricted
`

// Install returns the chart in dir with its default values, as install.yaml has it.
func Install(dir string) ([]byte, error) {
	manifests, err := Render(dir, nil)
	if err != nil {
		return nil, err
	}
	out := []byte(installHead)
	for _, m := range manifests {
		out = fmt.Appendf(out, "---\n%s\n", bytes.TrimSpace([]byte(m)))
	}
	return out, nil
}

// Render returns the chart's objects as YAML, in the order in which they are installed.
// Values that the chart's schema refuses are an error.
func Render(dir string, values map[string]any) ([]string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	chart, err := loader.LoadDir(dir)
	if err != nil {
		return nil, err
	}
	release := chartutil.ReleaseOptions{Name: "signalbox", Namespace: Namespace, Revision: 1, IsInstall: true}
	rendered, err := chartutil.ToRenderValues(chart, values, release, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(chart, rendered)
	if err != nil {
		return nil, err
	}
	for name := range files {
		if filepath.Base(name) == "NOTES.txt" {
			delete(files, name)
		}
	}
	_, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range manifests {
		out = append(out, m.Content)
	}
	return out, nil
}
