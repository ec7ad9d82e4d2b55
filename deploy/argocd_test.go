package deploy

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	lua "github.com/yuin/gopher-lua"
	"sigs.k8s.io/yaml"
)

const argocd = "gitops/argocd"

// health is what a script returns.
type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

// TestArgoHealth runs the health script of each kind on its health_test.yaml, which has
// the format of Argo CD's own resource_customizations.
func TestArgoHealth(t *testing.T) {
	files, err := filepath.Glob(argocd + "/*/*/health_test.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		var cases struct {
			Tests []struct {
				HealthStatus health `json:"healthStatus"`
				InputPath    string `json:"inputPath"`
			} `json:"tests"`
		}
		read(t, file, &cases)
		dir := filepath.Dir(file)
		script, err := os.ReadFile(dir + "/health.lua")
		if err != nil {
			t.Fatal(err)
		}
		used := map[string]bool{}
		for _, tt := range cases.Tests {
			t.Run(filepath.Base(dir)+"/"+filepath.Base(tt.InputPath), func(t *testing.T) {
				var object map[string]any
				read(t, filepath.Join(dir, tt.InputPath), &object)
				if got := runHealth(t, string(script), object); got != tt.HealthStatus {
					t.Errorf("got %+v\nwant %+v", got, tt.HealthStatus)
				}
			})
			used[filepath.Join(dir, tt.InputPath)] = true
		}
		inputs, _ := filepath.Glob(dir + "/testdata/*.yaml")
		for _, i := range inputs {
			if !used[i] {
				t.Errorf("%s is not tested", i)
			}
		}
	}
}

// TestArgoConfigMap holds the ready-made argocd-cm to the script.
func TestArgoConfigMap(t *testing.T) {
	var cm struct {
		Data map[string]string `json:"data"`
	}
	read(t, argocd+"/argocd-cm.yaml", &cm)
	script, err := os.ReadFile(argocd + "/inference.networking.k8s.io/InferencePool/health.lua")
	if err != nil {
		t.Fatal(err)
	}
	if got := cm.Data["resource.customizations.health.inference.networking.k8s.io_InferencePool"]; got != string(script) {
		t.Errorf("argocd-cm.yaml does not hold health.lua but\n%s", got)
	}
}

// runHealth runs a script as Argo CD does: with the base, package and table libraries
// alone, and within a second.
func runHealth(t *testing.T, script string, object map[string]any) health {
	t.Helper()
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	for name, open := range map[string]lua.LGFunction{lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		if err := l.CallByParam(lua.P{Fn: l.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	l.SetContext(ctx)
	l.SetGlobal("obj", toLua(l, object))
	if err := l.DoString(script); err != nil {
		t.Fatal(err)
	}
	result, ok := l.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("the script returned %s", l.Get(-1))
	}
	return health{lua.LVAsString(result.RawGetString("status")), lua.LVAsString(result.RawGetString("message"))}
}

func toLua(l *lua.LState, v any) lua.LValue {
	switch v := v.(type) {
	case map[string]any:
		table := l.NewTable()
		for k, e := range v {
			table.RawSetString(k, toLua(l, e))
		}
		return table
	case []any:
		table := l.NewTable()
		for _, e := range v {
			table.Append(toLua(l, e))
		}
		return table
	case string:
		return lua.LString(v)
	case float64:
		return lua.LNumber(v)
	case bool:
		return lua.LBool(v)
	}
	return lua.LNil
}

// read reads a file of one YAML document.
func read(t *testing.T, path string, into any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
