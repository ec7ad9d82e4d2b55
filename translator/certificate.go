package translator

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// certificates fills in the certificates of an HTTPS listener and returns a
// ResolvedRefs=False condition for each reference that leads nowhere.
func (t *tables) certificates(r *incr.Reads, o *gatewayv1.Gateway, l *gatewayv1.Listener, row *listenerRow) (failed []metav1.Condition) {
	if l.TLS == nil || len(l.TLS.CertificateRefs) == 0 {
		return []metav1.Condition{listenerInvalidCertificate.because(msgCertificateNone)}
	}
	for i, ref := range l.TLS.CertificateRefs {
		secret, refused := t.certificateRef(r, o.Namespace, i, ref)
		if refused != nil {
			failed = append(failed, *refused)
			continue
		}
		row.Secrets = append(row.Secrets, secret)
		k := objectKey(secret.Namespace, secret.Name)
		if s, ok := t.tlsSecret(r, k); !ok {
			failed = append(failed, listenerInvalidCertificate.because(msgCertificateMissing, i, k))
		} else if _, _, err := keyPair(s); err != nil {
			failed = append(failed, listenerInvalidCertificate.because(msgCertificateBad, i, k, err))
		} else {
			row.Certified = true
		}
	}
	row.Secrets = sortRefs(row.Secrets)
	return failed
}

// certificateRef returns the Secret that the i-th certificateRef names, if the Gateway
// may use it, or a ResolvedRefs=False condition.
func (t *tables) certificateRef(r *incr.Reads, namespace string, i int, ref gatewayv1.SecretObjectReference) (source.Ref, *metav1.Condition) {
	refuse := func(v verdict, format string, args ...any) (source.Ref, *metav1.Condition) {
		c := v.because(format, args...)
		return source.Ref{}, &c
	}
	group, kind := "", string(source.KindSecret)
	if ref.Group != nil {
		group = string(*ref.Group)
	}
	if ref.Kind != nil {
		kind = string(*ref.Kind)
	}
	if group != "" || kind != string(source.KindSecret) {
		return refuse(listenerInvalidCertificate, msgCertificateKind, i, qualified(group, kind))
	}
	secret := source.Ref{Kind: source.KindSecret, Namespace: namespace, Name: string(ref.Name)}
	if ref.Namespace != nil {
		secret.Namespace = string(*ref.Namespace)
	}
	if len(validation.IsDNS1123Subdomain(secret.Name)) > 0 {
		return refuse(listenerInvalidCertificate, msgCertificateName, i, secret.Name)
	}
	if !t.granted(r, source.KindGateway, namespace, "", kind, secret.Namespace, secret.Name) {
		return refuse(listenerRefNotPermitted, msgCertificateForbidden, i, secret.Namespace, namespace, secret.Name)
	}
	return secret, nil
}

// qualified returns "group/kind", or the kind alone in the core group.
func qualified(group, kind string) string {
	if group == "" {
		return kind
	}
	return group + "/" + kind
}

// tlsSecret returns a Secret of the type kubernetes.io/tls. Others count as absent: of a
// cluster's Secrets they are never read, and a directory must mean the same.
func (t *tables) tlsSecret(r *incr.Reads, k key) (*corev1.Secret, bool) {
	s, ok := t.secrets.Get(r, k)
	return s, ok && s.Type == corev1.SecretTypeTLS
}

// keyPair returns a TLS Secret's certificate chain and private key, both as PEM that is
// written anew: Envoy is more particular than Go about what stands around and in the
// blocks. An error says what Envoy would refuse.
func keyPair(s *corev1.Secret) (chain, privateKey []byte, err error) {
	for _, data := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if len(s.Data[data]) == 0 {
			return nil, nil, fmt.Errorf("%s is missing", data)
		}
	}
	pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	for i, der := range pair.Certificate {
		if _, err := x509.ParseCertificate(der); err != nil {
			return nil, nil, fmt.Errorf("certificate %d of %s: %w", i+1, corev1.TLSCertKey, err)
		}
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return nil, nil, err
		}
	}
	if err := usableKey(pair.Leaf); err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	return out.Bytes(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// usableKey returns an error for keys that Envoy refuses to serve with.
func usableKey(leaf *x509.Certificate) error {
	switch k := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("the RSA key has %d bits; Envoy wants 2048 or more", k.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P224() {
			return errors.New("the ECDSA key is on the curve P-224; Envoy wants P-256, P-384 or P-521")
		}
	}
	return nil
}

// envoySecret returns the certificate that Envoy listeners of the group name x. There
// is none as long as the Secret is missing or unusable; an Envoy that has an earlier
// one keeps it.
func (t *tables) envoySecret(r *incr.Reads, x key, _ []key) (*xds.Resource, bool) {
	_, name := splitGroup(x)
	k, ok := parseSecretName(name)
	if !ok {
		return nil, false
	}
	s, ok := t.tlsSecret(r, k)
	if !ok {
		return nil, false
	}
	chain, privateKey, err := keyPair(s)
	if err != nil {
		return nil, false
	}
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	return xds.NewResource(xds.Secret, name, &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(chain),
			PrivateKey:       inline(privateKey),
		}},
	}), true
}
