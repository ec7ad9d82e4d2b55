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

var tmpl = template.Must(template.New("bootstrap").Funcs(template.FuncMap{"q": quote, "address": address, "xds": xdsAddress}).Parse(text))

// Options says who the Envoy is and whom it talks to. An address is "HOST:PORT" with
// a numeric host, or "unix:PATH".
type Options struct {
	Group string // "namespace/name" of the Gateway: node.cluster
	ID    string // node.id, unique among the Gateway's Envoys; "": Envoy is told by --service-node
	XDS   string // where the control plane serves ADS; with TLS also a DNS name
	Admin string // where Envoy's own admin interface listens
	// MaxHeapBytes is what the overload manager may let Envoy use; 0 means 2 GiB.
	MaxHeapBytes uint64
	// StateOfTheWorld asks for the older xDS protocol variant; delta is the default.
	StateOfTheWorld bool
	// ReadyPort is where Envoy answers /ready, from when it has its configuration until
	// it drains, and /stats/prometheus, on ReadyAddress; 0: nowhere.
	ReadyPort    int32
	ReadyAddress string
	TLS          *TLS // nil: plaintext
}

// TLS is how an Envoy shows who it is and knows the control plane.
type TLS struct {
	ServerName string // a DNS name in the control plane's certificate
	Config     string // the folder of the files that SDS returns
}

// SDS returns the files, by name, that tell Envoy the certificates in a folder:
// tls.crt, tls.key and ca.crt. Envoy follows when they are replaced as the kubelet
// replaces files, by moving a symbolic link.
func SDS(folder string) map[string]string {
	return map[string]string{
		"xds_client.yaml": fmt.Sprintf(`resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: xds_client
  tls_certificate:
    certificate_chain: {filename: %[1]s/tls.crt}
    private_key: {filename: %[1]s/tls.key}
    watched_directory: {path: %[1]s}
`, folder),
		"xds_ca.yaml": fmt.Sprintf(`resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: xds_ca
  validation_context:
    trusted_ca: {filename: %[1]s/ca.crt}
    watched_directory: {path: %[1]s}
`, folder),
	}
}

// Render returns the bootstrap as YAML. The error names the option that is wrong.
func Render(o Options) ([]byte, error) {
	if namespace, name, _ := strings.Cut(o.Group, "/"); namespace == "" || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("the Gateway must be given as namespace/name, not %q", o.Group)
	}
	if _, err := xdsAddress(o); err != nil {
		return nil, fmt.Errorf("xDS address: %w", err)
	}
	if _, err := address(o.Admin); err != nil {
		return nil, fmt.Errorf("admin address: %w", err)
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

// xdsAddress returns the control plane's address. The cluster with TLS looks names up.
func xdsAddress(o Options) (string, error) { return socket(o.XDS, o.TLS != nil) }

// address returns an Envoy Address as inline YAML.
func address(a string) (string, error) { return socket(a, false) }

func socket(a string, named bool) (string, error) {
	if path, ok := strings.CutPrefix(a, "unix:"); ok {
		q, err := quote(path)
		return "{pipe: {path: " + q + ", mode: 384}}", err
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return "", fmt.Errorf("%q is neither HOST:PORT nor unix:PATH", a)
	}
	if net.ParseIP(host) == nil && (!named || host == "") {
		return "", fmt.Errorf("%q: Envoy wants a numeric host here", a)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", fmt.Errorf("%q: the port must be a number up to 65535", a)
	}
	return fmt.Sprintf("{socket_address: {address: %q, port_value: %d}}", host, n), nil
}
