package bootstrap

import (
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
