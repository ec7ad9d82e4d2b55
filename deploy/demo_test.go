package deploy

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	"sigs.k8s.io/yaml"
)

// documents returns the documents of a file by Kind/name.
func documents(t *testing.T, file string) map[string]map[string]any {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]any{}
	for _, d := range bytes.Split(b, []byte("\n---")) {
		var o map[string]any
		if err := yaml.Unmarshal(d, &o); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if o != nil {
			name, _ := at(o, "metadata", "name").(string) // a kustomization has none
			out[o["kind"].(string)+"/"+name] = o
		}
	}
	return out
}

// TestDemoIsTheGuides holds the demo in a cluster to the one without: the same pools and
// pickers, and servers of the same models.
func TestDemoIsTheGuides(t *testing.T) {
	files, err := filepath.Glob("demo/*.yaml")
	if err != nil || len(files) != 5 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		guide, demo := documents(t, "../testdata/guides/base/"+filepath.Base(file)), documents(t, file)
		if diff := cmp.Diff(guide["InferencePool/"+name], demo["InferencePool/"+name]); diff != "" {
			t.Errorf("%s: the pool is another (-guide +demo):\n%s", file, diff)
		}
		models := at(guide["EndpointSlice/"+name], "metadata", "annotations", "signalbox.dev/demo-models")
		args := at(demo["Deployment/"+name], "spec", "template", "spec", "containers", 0, "args").([]any)
		if args[len(args)-1] != models {
			t.Errorf("%s: the servers' models are %v, in the guide %v", file, args[len(args)-1], models)
		}
		if got, want := float64(len(at(guide["EndpointSlice/"+name], "endpoints").([]any))), at(demo["Deployment/"+name], "spec", "replicas"); got != want {
			t.Errorf("%s: %v servers, in the guide %v", file, want, got)
		}
		picker := "Service/" + name + "-epp"
		for _, field := range []string{"port", "appProtocol"} {
			path := []any{"spec", "ports", 0, field}
			if diff := cmp.Diff(at(guide[picker], path...), at(demo[picker], path...)); diff != "" {
				t.Errorf("%s: the picker's %s is another: %s", file, field, diff)
			}
		}
	}
}

// at returns what lies at a path of keys and indexes.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			list, _ := v.([]any)
			if len(list) <= p {
				return nil
			}
			v = list[p]
		}
	}
	return v
}

// TestKindCluster reads kind's configuration as kind does: strictly.
func TestKindCluster(t *testing.T) {
	b, err := os.ReadFile("kind/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c v1alpha4.Cluster
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Nodes) != 1 || c.Kind != "Cluster" || c.Name != "signalbox" {
		t.Errorf("%+v", c)
	}
}

// TestGitOpsFiles: whatever an example says, it is YAML with a kind, and what it names of
// this repository is there.
func TestGitOpsFiles(t *testing.T) {
	var files []string
	for _, pattern := range []string{"gitops/*.yaml", "gitops/*/*.yaml", "gitops/*/*/*.yaml", "gitops/*/*/*/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	for _, file := range files {
		switch filepath.Base(file) {
		case "values.yaml":
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			render(t, string(b))
			continue
		case "health_test.yaml":
			continue
		}
		for _, o := range documents(t, file) {
			for _, path := range []any{at(o, "spec", "path"), at(o, "spec", "source", "path")} {
				if p, ok := path.(string); ok {
					exists(t, file, filepath.Join("gitops/repository", p))
				}
			}
			if o["kind"] == "Kustomization" && at(o, "spec") == nil {
				list, _ := o["resources"].([]any)
				for _, r := range list {
					if !strings.HasPrefix(r.(string), "https://") {
						exists(t, file, filepath.Join(filepath.Dir(file), r.(string)))
					}
				}
			}
		}
	}
	if len(files) < 15 {
		t.Errorf("only %d files were read", len(files))
	}
}

func exists(t *testing.T, file, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("%s: %v", file, err)
	}
}
