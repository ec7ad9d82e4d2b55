package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Server is the TLS side of a server that only Envoys of ours may talk to. Its
// certificate lives in memory and is made anew, by itself, long before it ends.
type Server struct {
	names []string
	now   func() time.Time

	mu        sync.Mutex
	authority *Authority // nil until Use
	trusted   *x509.CertPool
	cert      tls.Certificate
	renew     time.Time
}

// NewServer returns a server of these DNS names. It refuses handshakes until Use.
func NewServer(names []string, now func() time.Time) *Server {
	return &Server{names: names, now: now}
}

// Use takes the authority that signs from now on, and those to trust.
func (s *Server) Use(a *Authority) error {
	trusted := x509.NewCertPool()
	certs, err := Certificates(a.bundle)
	if err != nil {
		return err
	}
	for _, c := range certs {
		trusted.AddCert(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.Equal(s.authority) {
		return nil
	}
	s.authority, s.trusted = a, trusted
	return s.issue()
}

// issue makes the certificate anew. The caller holds mu.
func (s *Server) issue() error {
	pair, err := s.authority.Server(s.names, s.now())
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return fmt.Errorf("certificate of the xDS server: %w", err)
	}
	s.cert, s.renew = cert, renewal(cert.Leaf)
	return nil
}

// TLS returns the configuration of a listener. It follows what Use is told: each
// handshake is made with what is valid at that moment.
func (s *Server) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.handshake() },
	}
}

var errNoAuthority = errors.New("the certificate authority has not been read yet")

func (s *Server) handshake() (*tls.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.authority == nil {
		return nil, errNoAuthority
	}
	if s.now().After(s.renew) {
		if err := s.issue(); err != nil {
			return nil, err
		}
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Time: s.now,
		Certificates: []tls.Certificate{s.cert},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: s.trusted,
		// A resumed session would carry an old certificate into a new connection.
		SessionTicketsDisabled: true,
	}, nil
}
