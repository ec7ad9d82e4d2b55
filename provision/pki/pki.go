// Package pki is signalbox's own certificate authority, for the one connection that it
// has with the Envoys that it runs: xDS over mTLS, TLS 1.3, ECDSA P-256.
//
//   - The authority lives in a Secret of signalbox's namespace (store.go). Whichever
//     replica comes first makes it; all read it.
//   - Each replica serves xDS with a certificate of its own, which it makes in memory
//     (server.go).
//   - The Envoys of a Gateway share a client certificate that names the Gateway in a
//     SPIFFE ID. It is all that they have to say: a stream gets what is for that
//     Gateway, whatever its node calls itself.
//
// Nothing here looks at a clock: whoever asks says what time it is.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// How long certificates are valid, and when they are made anew.
const (
	AuthorityLife = 10 * 365 * 24 * time.Hour
	ClientLife    = 30 * 24 * time.Hour
	ServerLife    = 24 * time.Hour

	// backdated is how far clocks may differ.
	backdated = 5 * time.Minute
)

// TrustDomain is that of the SPIFFE IDs.
const TrustDomain = "signalbox.dev"

// Pair is a certificate and its key, in PEM.
type Pair struct{ Cert, Key []byte }

// Authority issues certificates.
type Authority struct {
	pair   Pair
	bundle []byte // PEM of all authorities to trust, this one among them
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
}

// NewAuthority makes an authority.
func NewAuthority(now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key of the authority: %w", err)
	}
	t, err := template(now, AuthorityLife)
	if err != nil {
		return nil, err
	}
	t.Subject = pkix.Name{CommonName: "signalbox"}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the authority: %w", err)
	}
	pair, err := encode(der, key)
	if err != nil {
		return nil, err
	}
	return ParseAuthority(pair, pair.Cert)
}

// ParseAuthority reads an authority, and those to trust besides it.
func ParseAuthority(pair Pair, bundle []byte) (*Authority, error) {
	a := &Authority{pair: pair, bundle: bundle}
	certs, err := Certificates(pair.Cert)
	if err != nil {
		return nil, err
	}
	a.cert = certs[0]
	if !a.cert.IsCA {
		return nil, errors.New("the certificate is not an authority's")
	}
	block, _ := pem.Decode(pair.Key)
	if block == nil {
		return nil, errors.New("the key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	var ok bool
	if a.key, ok = key.(*ecdsa.PrivateKey); !ok || !a.key.PublicKey.Equal(a.cert.PublicKey) {
		return nil, errors.New("the key is not that of the certificate")
	}
	trusted, err := Certificates(bundle)
	if err != nil {
		return nil, fmt.Errorf("trusted authorities: %w", err)
	}
	for _, c := range trusted {
		if c.Equal(a.cert) {
			return a, nil
		}
	}
	return nil, errors.New("the authority is not among those to trust")
}

// Pair returns the authority's own certificate and key.
func (a *Authority) Pair() Pair { return a.pair }

// Bundle returns the PEM of all authorities to trust.
func (a *Authority) Bundle() []byte { return a.bundle }

// NotAfter says until when the authority is valid.
func (a *Authority) NotAfter() time.Time { return a.cert.NotAfter }

// Equal says whether two authorities issue and trust the same.
func (a *Authority) Equal(b *Authority) bool {
	return b != nil && bytes.Equal(a.pair.Cert, b.pair.Cert) && bytes.Equal(a.bundle, b.bundle)
}

// Client issues the certificate of a Gateway's Envoys.
func (a *Authority) Client(namespace, name string, now time.Time) (Pair, error) {
	t, err := template(now, ClientLife)
	if err != nil {
		return Pair{}, err
	}
	t.URIs = []*url.URL{ID(namespace, name)}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.issue(t)
}

// Replica issues the certificate with which a replica of signalbox asks another.
func (a *Authority) Replica(now time.Time) (Pair, error) {
	t, err := template(now, ServerLife)
	if err != nil {
		return Pair{}, err
	}
	t.URIs = []*url.URL{replicaID}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.issue(t)
}

// Server issues a certificate for a server of these names.
func (a *Authority) Server(names []string, now time.Time) (Pair, error) {
	t, err := template(now, ServerLife)
	if err != nil {
		return Pair{}, err
	}
	t.DNSNames = names
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return a.issue(t)
}

func (a *Authority) issue(t *x509.Certificate) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("key: %w", err)
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("certificate: %w", err)
	}
	return encode(der, key)
}

// Current says whether a client certificate is the Gateway's, of this authority, and has
// at least two thirds of its life before it.
func (a *Authority) Current(pair Pair, namespace, name string, now time.Time) bool {
	certs, err := Certificates(pair.Cert)
	if err != nil || len(pair.Key) == 0 {
		return false
	}
	ns, n, err := Identity(certs[0])
	return err == nil && ns == namespace && n == name && certs[0].CheckSignatureFrom(a.cert) == nil && !now.After(renewal(certs[0]))
}

// renewal returns when a certificate is made anew: after a third of its life, so that
// two thirds are left in which nobody may be there to do it.
func renewal(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3)
}

// ID returns the SPIFFE ID of a Gateway's Envoys.
func ID(namespace, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: TrustDomain, Path: "/ns/" + namespace + "/gateway/" + name}
}

// replicaID is the SPIFFE ID of signalbox's own replicas.
var replicaID = &url.URL{Scheme: "spiffe", Host: TrustDomain, Path: "/replica"}

// IsReplica says whether a certificate, which the caller has verified, is a replica's.
func IsReplica(c *x509.Certificate) bool {
	return len(c.URIs) == 1 && c.URIs[0].String() == replicaID.String()
}

// Identity returns the Gateway whose Envoy a certificate is. It takes nothing but what
// ID makes. Whether the certificate is to be believed is the caller's to know.
func Identity(c *x509.Certificate) (namespace, name string, err error) {
	if len(c.URIs) != 1 {
		return "", "", fmt.Errorf("the certificate has %d URIs; want one SPIFFE ID", len(c.URIs))
	}
	id := c.URIs[0]
	p := strings.Split(id.Path, "/")
	if len(p) != 5 || p[1] != "ns" || p[3] != "gateway" || len(validation.IsDNS1123Label(p[2])) > 0 || len(validation.IsDNS1123Subdomain(p[4])) > 0 || id.String() != ID(p[2], p[4]).String() {
		return "", "", fmt.Errorf("%q is not the SPIFFE ID of a Gateway", id)
	}
	return p[2], p[4], nil
}

// Certificates reads the certificates of some PEM: at least one.
func Certificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return out, nil
}

func template(now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-backdated), NotAfter: now.Add(life)}, nil
}

func encode(der []byte, key *ecdsa.PrivateKey) (Pair, error) {
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("key: %w", err)
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k}),
	}, nil
}
