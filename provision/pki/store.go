package pki

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Keys of the authority's Secret, and of the Envoys'.
const (
	KeyCert = corev1.TLSCertKey
	KeyKey  = corev1.TLSPrivateKeyKey
	KeyCA   = "ca.crt" // all authorities to trust

	keyNextCert = "next.crt" // the authority that comes next, trusted already
	keyNextKey  = "next.key"
)

// SecretName is the Secret of the authority, in signalbox's namespace. It is not of the
// type kubernetes.io/tls, so that no Gateway can name it for its listeners.
const SecretName = "signalbox-ca"

// stage is how long an authority is trusted before it signs: far longer than a Secret
// takes to reach the Envoys' files.
const stage = 24 * time.Hour

// Store keeps the authority in a Secret.
type Store struct{ Secrets typedcorev1.SecretInterface }

// Load reads the authority, or makes it if there is none. Of several replicas that find
// none, the first to write wins and all get its.
func (s Store) Load(ctx context.Context, now time.Time) (*Authority, error) {
	for {
		secret, err := s.Secrets.Get(ctx, SecretName, metav1.GetOptions{})
		if err == nil {
			return parse(secret)
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("the certificate authority cannot be read: %w", err)
		}
		a, err := NewAuthority(now)
		if err != nil {
			return nil, err
		}
		_, err = s.Secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: SecretName, Labels: map[string]string{"app.kubernetes.io/managed-by": "signalbox"}},
			Type:       corev1.SecretTypeOpaque,
			Data:       map[string][]byte{KeyCert: a.pair.Cert, KeyKey: a.pair.Key, KeyCA: a.bundle},
		}, metav1.CreateOptions{})
		if err == nil {
			return a, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("the certificate authority cannot be stored: %w", err)
		}
	}
}

func parse(secret *corev1.Secret) (*Authority, error) {
	a, err := ParseAuthority(Pair{secret.Data[KeyCert], secret.Data[KeyKey]}, secret.Data[KeyCA])
	if err != nil {
		return nil, fmt.Errorf("Secret %s: %w; delete it, and a new authority is made", SecretName, err)
	}
	return a, nil
}

// Rotate replaces an authority that has lived two thirds of its life: first its
// successor is trusted, a day later it signs, and the old one is trusted until it ends.
// So no Envoy ever meets a certificate that it cannot verify. It says whether anything
// has changed. Only one replica may call it at a time.
func (s Store) Rotate(ctx context.Context, now time.Time) (bool, error) {
	secret, err := s.Secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("the certificate authority cannot be read: %w", err)
	}
	a, err := parse(secret)
	if err != nil {
		return false, err
	}
	data := maps.Clone(secret.Data)
	if err := rotated(a, data, now); err != nil {
		return false, err
	}
	if maps.EqualFunc(data, secret.Data, bytes.Equal) {
		return false, nil
	}
	secret.Data = data
	if _, err := s.Secrets.Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		return false, fmt.Errorf("the certificate authority cannot be stored: %w", err)
	}
	return true, nil
}

// rotated brings the data of the Secret where it should be by now.
func rotated(a *Authority, data map[string][]byte, now time.Time) error {
	old := a.cert.NotBefore.Add(a.cert.NotAfter.Sub(a.cert.NotBefore) / 3 * 2)
	if len(data[keyNextCert]) == 0 {
		if !now.After(old) {
			return nil
		}
		next, err := NewAuthority(now)
		if err != nil {
			return err
		}
		data[keyNextCert], data[keyNextKey] = next.pair.Cert, next.pair.Key
		data[KeyCA] = append(bytes.Clone(data[KeyCA]), next.pair.Cert...)
		return nil
	}
	next, err := ParseAuthority(Pair{data[keyNextCert], data[keyNextKey]}, data[KeyCA])
	if err != nil {
		return fmt.Errorf("Secret %s, the authority that comes next: %w", SecretName, err)
	}
	if now.After(next.cert.NotBefore.Add(stage)) {
		data[KeyCert], data[KeyKey] = next.pair.Cert, next.pair.Key
		data[KeyCA] = append(bytes.Clone(a.pair.Cert), next.pair.Cert...)
		delete(data, keyNextCert)
		delete(data, keyNextKey)
	}
	return nil
}
