package translator

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"signalbox.dev/source"
)

// pair is a certificate and its key, as PEM.
type pair struct{ cert, key []byte }

// secret returns a TLS Secret of the namespace ns as YAML.
func (p pair) secret(name string) string {
	b := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("kind: Secret\nmetadata: {namespace: ns, name: %s}\ntype: kubernetes.io/tls\ndata:\n  tls.crt: %s\n  tls.key: %s\n", name, b(p.cert), b(p.key))
}

func newPair(t *testing.T, hostnames ...string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signedBy(t, key, hostnames...)
}

func signedBy(t *testing.T, key crypto.Signer, hostnames ...string) pair {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: hostnames,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}
}

func TestKeyPair(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, other, viaRSA := signedBy(t, ec, "a.org"), newPair(t, "a.org"), signedBy(t, rsaKey, "a.org")
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})
	curve := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
	for _, test := range []struct {
		name      string
		cert, key []byte
		want      pair
		err       string
	}{
		{name: "as it is", cert: good.cert, key: good.key, want: good},
		{name: "SEC 1 after its curve", cert: good.cert, key: append(curve, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...), want: good},
		{name: "PKCS 1", cert: viaRSA.cert, key: pkcs1, want: viaRSA},
		{name: "mislabelled, which Envoy refuses", cert: good.cert, key: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: mustPEM(t, good.key)}), want: good},
		{name: "words around the blocks", cert: []byte("subject=x\n" + string(good.cert) + "\nend\n"), key: append([]byte("key:\n"), good.key...), want: good},
		{name: "a chain", cert: append(append([]byte{}, good.cert...), other.cert...), key: good.key, want: pair{append(append([]byte{}, good.cert...), other.cert...), good.key}},
		{name: "Ed25519", cert: signedBy(t, edKey).cert, key: signedBy(t, edKey).key, want: signedBy(t, edKey)},
		{name: "another key", cert: good.cert, key: other.key, err: "does not match"},
		{name: "no key", cert: good.cert, err: "tls.key is missing"},
		{name: "no certificate", key: good.key, err: "tls.crt is missing"},
		{name: "not PEM", cert: []byte("x"), key: good.key, err: "failed to find any PEM data"},
		{name: "a chain with a broken member", cert: append(append([]byte{}, good.cert...), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"...), key: good.key, err: "certificate 2 of tls.crt"},
		{name: "P-224", cert: signedBy(t, p224).cert, key: signedBy(t, p224).key, err: "P-224"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &corev1.Secret{Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": test.cert, "tls.key": test.key}}
			cert, key, err := keyPair(s)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if test.name != "Ed25519" && test.name != "P-224" {
				if diff := cmp.Diff(string(test.want.cert)+string(test.want.key), string(cert)+string(key)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

func mustPEM(t *testing.T, b []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatal("no PEM block")
	}
	return block.Bytes
}

func TestCertificateReferences(t *testing.T) {
	listener := func(refs string) string {
		return gatewayOf(`{name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [` + refs + `]}}`)
	}
	good, elsewhere := newPair(t, "a.org"), strings.Replace(newPair(t, "a.org").secret("far"), "namespace: ns", "namespace: other", 1)
	grant := "kind: ReferenceGrant\nmetadata: {namespace: other, name: g}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: ns}], to: [{group: '', kind: Secret}]}"
	for _, test := range []struct {
		name    string
		objects []string
		want    string // reason of the listener's ResolvedRefs, and of Programmed
		message string
		serves  bool
	}{
		{name: "usable", objects: []string{listener(`{name: c}`), good.secret("c")}, want: "ResolvedRefs Pending", serves: true},
		{name: "missing", objects: []string{listener(`{name: c}`)}, want: "InvalidCertificateRef Invalid", message: "there is no Secret ns/c of the type kubernetes.io/tls", serves: true},
		{name: "one of two is missing", objects: []string{listener(`{name: d}, {name: c}`), good.secret("c")}, want: "InvalidCertificateRef Pending", message: "certificateRefs[0]", serves: true},
		{name: "another kind", objects: []string{listener(`{kind: ConfigMap, name: c}`)}, want: "InvalidCertificateRef Invalid", message: "ConfigMap is not supported"},
		{name: "another group", objects: []string{listener(`{group: example.com, kind: Secret, name: c}`)}, want: "InvalidCertificateRef Invalid", message: "example.com/Secret is not supported"},
		{name: "no name that a Secret can have", objects: []string{listener(`{name: a/b}`)}, want: "InvalidCertificateRef Invalid", message: `"a/b" is no name`},
		{name: "none", objects: []string{listener("")}, want: "InvalidCertificateRef Invalid", message: "certificateRefs is empty"},
		{name: "not granted, there", objects: []string{listener(`{name: far, namespace: other}`), elsewhere}, want: "RefNotPermitted Invalid"},
		{name: "not granted, not there", objects: []string{listener(`{name: far, namespace: other}`)}, want: "RefNotPermitted Invalid"},
		{name: "granted", objects: []string{listener(`{name: far, namespace: other}`), elsewhere, grant}, want: "ResolvedRefs Pending", serves: true},
		{name: "mode", objects: []string{strings.Replace(listener(`{name: c}`), "tls: {", "tls: {mode: Passthrough, ", 1)}, want: "InvalidCertificateRef Invalid", message: "tls.mode: Passthrough is not supported"},
		{name: "options", objects: []string{strings.Replace(listener(`{name: c}`), "tls: {", "tls: {options: {b: x, a: x}, ", 1), good.secret("c")}, want: "ResolvedRefs Invalid", message: "tls.options: a is not supported"},
		{name: "client certificates", objects: []string{listener(`{name: c}`) + "\n  tls: {frontend: {default: {validation: {caCertificateRefs: [{kind: ConfigMap, name: ca, group: ''}]}}}}", good.secret("c")}, want: "ResolvedRefs Invalid", message: "spec.tls.frontend"},
		{name: "client certificates on another port", objects: []string{listener(`{name: c}`) + "\n  tls: {frontend: {default: {}, perPort: [{port: 444, tls: {validation: {caCertificateRefs: [{kind: ConfigMap, name: ca, group: ''}]}}}]}}", good.secret("c")}, want: "ResolvedRefs Pending", serves: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := Translate(decode(t, append(test.objects, testClass)...), Options{})
			l := gatewayStatus(t, out).Listeners[0]
			if got := reason(l.Conditions, "ResolvedRefs") + " " + reason(l.Conditions, "Programmed"); got != test.want {
				t.Errorf("reasons %s, want %s", got, test.want)
			}
			if m := messages(out, source.KindGateway); !strings.Contains(m, test.message) {
				t.Errorf("no message holds %q:\n%s", test.message, m)
			}
			if serves := len(listenersOf(out)) > 0; serves != test.serves {
				t.Errorf("served: %v, want %v", serves, test.serves)
			}
		})
	}
	forbidden := Translate(decode(t, testClass, listener(`{name: far, namespace: other}`)), Options{})
	there := Translate(decode(t, testClass, listener(`{name: far, namespace: other}`), elsewhere), Options{})
	if diff := cmp.Diff(messages(forbidden, source.KindGateway), messages(there, source.KindGateway)); diff != "" {
		t.Errorf("the refusal tells whether the Secret exists:\n%s", diff)
	}
}
