package bootstrap

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestRenderRefuses(t *testing.T) {
	good := Options{Group: "default/gw", ID: "a", XDS: "127.0.0.1:18000", Admin: "unix:/run/admin.sock"}
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"group without namespace": {func(o *Options) { o.Group = "gw" }, `namespace/name, not "gw"`},
		"group without name":      {func(o *Options) { o.Group = "default/" }, `namespace/name, not "default/"`},
		"host name":               {func(o *Options) { o.XDS = "localhost:18000" }, "xDS address: \"localhost:18000\": Envoy wants a numeric host"},
		"no port":                 {func(o *Options) { o.Admin = "127.0.0.1" }, "admin address: \"127.0.0.1\" is neither HOST:PORT nor unix:PATH"},
		"port too large":          {func(o *Options) { o.Admin = "127.0.0.1:70000" }, "up to 65535"},
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			c.change(&o)
			if _, err := Render(o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Render: error %v, want one with %q", err, c.want)
			}
		})
	}
	if _, err := Render(good); err != nil {
		t.Errorf("Render of good options: %v", err)
	}
}

// What is printed for each kind of Envoy is a bootstrap that Envoy takes.
func TestEnvoyTakes(t *testing.T) {
	envoy := os.Getenv("ENVOY")
	if found, _ := filepath.Glob("../.bin/envoy-*/envoy"); envoy == "" && len(found) > 0 {
		envoy = found[0]
	}
	if envoy == "" {
		t.Fatal("no Envoy: set ENVOY, or run make envoy")
	}
	for name, o := range map[string]Options{
		"bare":               {Group: "default/gw", ID: "a", XDS: "127.0.0.1:18000", Admin: "127.0.0.1:0"},
		"state of the world": {Group: "default/gw", ID: "a", XDS: "unix:/run/xds.sock", Admin: "unix:/run/admin.sock", StateOfTheWorld: true},
		"in a pod": {Group: "default/gw", XDS: "signalbox.signalbox-system.svc:18001", Admin: "unix:/run/admin.sock", ReadyPort: 19001, ReadyAddress: "0.0.0.0",
			TLS: &TLS{ServerName: "signalbox.signalbox-system.svc"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if o.TLS != nil {
				o.TLS.Config = dir
				for file, text := range SDS(dir) {
					if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			b, err := Render(o)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "envoy.yaml")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "--service-node", "pod", "-c", path).CombinedOutput(); err != nil {
				t.Errorf("Envoy refuses it: %v\n%s\n%s", err, out, b)
			}
		})
	}
}
