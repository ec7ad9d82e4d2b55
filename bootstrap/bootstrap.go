// Package bootstrap writes the bootstrap with which a plain Envoy connects to
// signalbox and gets everything else over ADS.
package bootstrap

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/template"
)

//go:embed bootstrap.yaml.tmpl
var text string

var tmpl = template.Must(template.New("bootstrap").Funcs(template.FuncMap{"q": quote, "address": address}).Parse(text))

// Options says who the Envoy is and whom it talks to. An address is "HOST:PORT" with
// a numeric host, or "unix:PATH".
type Options struct {
	Group string // "namespace/name" of the Gateway: node.cluster
	ID    string // node.id, unique among the Gateway's Envoys
	XDS   string // where the control plane serves ADS
	Admin string // where Envoy's own admin interface listens
	// MaxHeapBytes is what the overload manager may let Envoy use; 0 means 2 GiB.
	MaxHeapBytes uint64
	// StateOfTheWorld asks for the older xDS protocol variant; delta is the default.
	StateOfTheWorld bool
}

// Render returns the bootstrap as YAML. The error names the option that is wrong.
func Render(o Options) ([]byte, error) {
	if strings.Count(o.Group, "/") != 1 {
		return nil, fmt.Errorf("the Gateway must be given as namespace/name, not %q", o.Group)
	}
	for name, a := range map[string]string{"xDS": o.XDS, "admin": o.Admin} {
		if _, err := address(a); err != nil {
			return nil, fmt.Errorf("%s address: %w", name, err)
		}
	}
	if o.MaxHeapBytes == 0 {
		o.MaxHeapBytes = 2 << 30
	}
	var b bytes.Buffer
	if err := tmpl.Execute(&b, o); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return b.Bytes(), nil
}

// quote returns s as a JSON string, which is a YAML string too.
func quote(s string) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}

// address returns an Envoy Address as inline YAML.
func address(a string) (string, error) {
	if path, ok := strings.CutPrefix(a, "unix:"); ok {
		q, err := quote(path)
		return "{pipe: {path: " + q + ", mode: 384}}", err
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return "", fmt.Errorf("%q is neither HOST:PORT nor unix:PATH", a)
	}
	if net.ParseIP(host) == nil {
		return "", fmt.Errorf("%q: Envoy wants a numeric host here", a)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", fmt.Errorf("%q: the port must be a number up to 65535", a)
	}
	return fmt.Sprintf("{socket_address: {address: %q, port_value: %d}}", host, n), nil
}
