package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func authority(t *testing.T, now time.Time) *Authority {
	t.Helper()
	a, err := NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// FuzzIdentity: nothing but what ID makes names a Gateway.
func FuzzIdentity(f *testing.F) {
	for _, s := range []string{"spiffe://signalbox.dev/ns/default/gateway/gw", "spiffe://signalbox.dev/ns/default/gateway/gw/", "spiffe://signalbox.dev/ns/a%2Fb/gateway/gw",
		"spiffe://evil.dev/ns/default/gateway/gw", "https://signalbox.dev/ns/default/gateway/gw", "spiffe://signalbox.dev/ns/default/gateway/gw?x", "spiffe://signalbox.dev/ns//gateway/gw",
		"spiffe://u@signalbox.dev/ns/default/gateway/gw", "spiffe://signalbox.dev:1/ns/default/gateway/gw", "spiffe://signalbox.dev/ns/default/gateway/../gw", "spiffe:/ns/default/gateway/gw", "spiffe://signalbox.dev/ns/default/gateway/GW"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		namespace, name, err := Identity(&x509.Certificate{URIs: []*url.URL{u}})
		if err == nil && s != "spiffe://signalbox.dev/ns/"+namespace+"/gateway/"+name {
			t.Errorf("%q is taken for Gateway %s/%s", s, namespace, name)
		}
	})
}

func TestIdentity(t *testing.T) {
	a := authority(t, start)
	pair, err := a.Client("default", "gw.example", start)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := Certificates(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if ns, name, err := Identity(certs[0]); err != nil || ns != "default" || name != "gw.example" {
		t.Errorf("the certificate is of %s/%s, %v; want default/gw.example", ns, name, err)
	}
	certs[0].URIs = append(certs[0].URIs, certs[0].URIs[0])
	if _, _, err := Identity(certs[0]); err == nil {
		t.Error("a certificate of two IDs names a Gateway")
	}
}

func TestCurrent(t *testing.T) {
	a := authority(t, start)
	pair, err := a.Client("default", "gw", start)
	if err != nil {
		t.Fatal(err)
	}
	other := authority(t, start)
	for name, c := range map[string]struct {
		by         *Authority
		gateway    string
		after      time.Duration
		wantUsable bool
	}{
		"new":                    {a, "gw", 0, true},
		"before a third of life": {a, "gw", ClientLife/3 - time.Hour, true},
		"after a third of life":  {a, "gw", ClientLife/3 + time.Hour, false},
		"of another Gateway":     {a, "other", 0, false},
		"of another authority":   {other, "gw", 0, false},
	} {
		if got := c.by.Current(pair, "default", c.gateway, start.Add(c.after)); got != c.wantUsable {
			t.Errorf("%s: Current is %v", name, got)
		}
	}
	if a.Current(Pair{Cert: pair.Cert}, "default", "gw", start) || a.Current(Pair{Cert: []byte("x"), Key: pair.Key}, "default", "gw", start) {
		t.Error("half a pair is current")
	}
}

// handshake connects as a client and returns what the server has shown.
func handshake(t *testing.T, s *Server, client *tls.Config) (*x509.Certificate, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	done := make(chan error, 1)
	go func() {
		defer b.Close()
		done <- tls.Server(b, s.TLS()).HandshakeContext(t.Context())
	}()
	conn := tls.Client(a, client)
	clientErr := conn.HandshakeContext(t.Context())
	if clientErr == nil {
		go func() { _, _ = conn.Read(make([]byte, 1)) }() // TLS 1.3: the server's verdict comes after the client's
	} else {
		a.Close()
	}
	if err := <-done; err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], clientErr
}

func clientConfig(t *testing.T, a *Authority, trusted []byte, now time.Time) *tls.Config {
	t.Helper()
	pair, err := a.Client("default", "gw", now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trusted)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: "signalbox.signalbox-system.svc", Time: func() time.Time { return now }, MinVersion: tls.VersionTLS13}
}

func TestServer(t *testing.T) {
	now := start
	a := authority(t, now)
	s := NewServer([]string{"signalbox.signalbox-system.svc"}, func() time.Time { return now })
	if _, err := handshake(t, s, clientConfig(t, a, a.Bundle(), now)); err == nil {
		t.Error("a handshake without an authority succeeds")
	}
	if err := s.Use(a); err != nil {
		t.Fatal(err)
	}
	first, err := handshake(t, s, clientConfig(t, a, a.Bundle(), now))
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(ServerLife/3 + time.Hour)
	second, err := handshake(t, s, clientConfig(t, a, a.Bundle(), now))
	if err != nil {
		t.Fatal(err)
	}
	if first.SerialNumber.Cmp(second.SerialNumber) == 0 {
		t.Error("the server's certificate is the same after a third of its life")
	}
	foreign := authority(t, now)
	bad := map[string]*tls.Config{"of another authority": clientConfig(t, foreign, a.Bundle(), now), "expired": clientConfig(t, a, a.Bundle(), now.Add(-ClientLife-time.Hour)), "none": clientConfig(t, a, a.Bundle(), now), "TLS 1.2": clientConfig(t, a, a.Bundle(), now)}
	bad["expired"].Time = func() time.Time { return now }
	bad["none"].Certificates = nil
	bad["TLS 1.2"].MinVersion, bad["TLS 1.2"].MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, c := range bad {
		if _, err := handshake(t, s, c); err == nil {
			t.Errorf("a client certificate (%s) is taken", name)
		}
	}
}

// TestRotate goes through the life of an authority in steps of twelve hours: at each of
// them clients and servers of any two neighbouring steps trust each other.
func TestRotate(t *testing.T) {
	ctx := t.Context()
	store := Store{fake.NewClientset().CoreV1().Secrets("signalbox-system")}
	now := start
	before, err := store.Load(ctx, now)
	if err != nil {
		t.Fatal(err)
	}
	changes := 0
	for now = start.Add(AuthorityLife/3*2 - 24*time.Hour); now.Before(start.Add(AuthorityLife/3*2 + 72*time.Hour)); now = now.Add(12 * time.Hour) {
		changed, err := store.Rotate(ctx, now)
		if err != nil {
			t.Fatal(err)
		}
		if changed {
			changes++
		}
		after, err := store.Load(ctx, now)
		if err != nil {
			t.Fatal(err)
		}
		clock := func() time.Time { return now }
		for _, pair := range [][2]*Authority{{before, after}, {after, before}, {after, after}} {
			s := NewServer([]string{"signalbox.signalbox-system.svc"}, clock)
			if err := s.Use(pair[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := handshake(t, s, clientConfig(t, pair[1], pair[1].Bundle(), now)); err != nil {
				t.Fatalf("%v after the start: %v", now.Sub(start), err)
			}
		}
		before = after
	}
	if changes != 2 {
		t.Errorf("%d changes; want 2: trusted, then signing", changes)
	}
	if until := before.NotAfter(); !until.After(start.Add(AuthorityLife)) {
		t.Errorf("the authority is valid until %v; it has not been replaced", until)
	}
}

// Replicas that start together end with one authority.
func TestLoadRace(t *testing.T) {
	secrets := fake.NewClientset().CoreV1().Secrets("signalbox-system")
	var wg sync.WaitGroup
	got := make([]*Authority, 8)
	for i := range got {
		wg.Go(func() {
			a, err := Store{secrets}.Load(context.Background(), start)
			if err != nil {
				t.Error(err)
			}
			got[i] = a
		})
	}
	wg.Wait()
	for _, a := range got {
		if !a.Equal(got[0]) {
			t.Fatal("two replicas have two authorities")
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	a, other := authority(t, start), authority(t, start)
	leaf, err := a.Client("default", "gw", start)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]map[string][]byte{
		"empty":               {},
		"not an authority":    {KeyCert: leaf.Cert, KeyKey: leaf.Key, KeyCA: leaf.Cert},
		"another's key":       {KeyCert: a.pair.Cert, KeyKey: other.pair.Key, KeyCA: a.bundle},
		"not trusted":         {KeyCert: a.pair.Cert, KeyKey: a.pair.Key, KeyCA: other.bundle},
		"key that is not PEM": {KeyCert: a.pair.Cert, KeyKey: []byte("x"), KeyCA: a.bundle},
	} {
		store := Store{fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: SecretName}, Data: data}).CoreV1().Secrets("n")}
		if _, err := store.Load(t.Context(), start); err == nil {
			t.Errorf("an authority (%s) is taken", name)
		}
	}
}
