// Package kubetest runs a Kubernetes API server, of a test's own: the real
// kube-apiserver on a real etcd, with the CRDs that signalbox reads. No controller and no
// node belongs to it, so that nothing changes but what the test changes, and it can be
// killed and hung.
//
// The environment variable KUBEBUILDER_ASSETS names the folder of the two binaries, as it
// does for controller-runtime's envtest.
package kubetest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// Server is a running API server and its etcd.
type Server struct {
	// Config reaches the server as an administrator.
	Config *rest.Config

	dir, bin      string
	etcd, apis    *exec.Cmd
	etcdURL, port string
}

// patience is how long the server may take for whatever it is asked.
const patience = 60 * time.Second

// Start starts a server, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{dir: t.TempDir(), bin: os.Getenv("KUBEBUILDER_ASSETS")}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if _, err := os.Stat(filepath.Join(s.bin, name)); s.bin == "" || err != nil {
			t.Fatalf("no %s in KUBEBUILDER_ASSETS=%q: give a folder with etcd and kube-apiserver, such as that of 'setup-envtest use -p path'", name, s.bin)
		}
	}
	s.etcdURL, s.port = "http://127.0.0.1:"+freePort(t), freePort(t)
	s.writeFiles(t)
	t.Cleanup(func() { stop(s.apis); stop(s.etcd) })
	s.StartEtcd(t)
	s.StartAPI(t)
	s.until(t, "the default namespace is there", func(ctx context.Context) error {
		return s.get(ctx, "/api/v1/namespaces/default")
	})
	for _, crd := range crds(t) {
		s.InstallCRD(t, crd)
	}
	return s
}

// StartEtcd starts etcd, with the data that it had.
func (s *Server) StartEtcd(t testing.TB) {
	t.Helper()
	s.etcd = s.start(t, "etcd", "--data-dir="+filepath.Join(s.dir, "data"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+s.etcdURL, "--advertise-client-urls="+s.etcdURL, "--listen-peer-urls=http://127.0.0.1:0")
}

// StartAPI starts the API server, where it was, and waits until it is ready.
func (s *Server) StartAPI(t testing.TB) {
	t.Helper()
	s.apis = s.start(t, "kube-apiserver", "--etcd-servers="+s.etcdURL,
		"--bind-address=127.0.0.1", "--secure-port="+s.port, "--cert-dir="+s.dir, "--service-cluster-ip-range=10.96.0.0/16",
		"--token-auth-file="+s.path("tokens"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubetest", "--service-account-key-file="+s.path("key"), "--service-account-signing-key-file="+s.path("key"),
		"--disable-admission-plugins=ServiceAccount", // no controller makes any
		"--audit-policy-file="+s.path("audit.yaml"), "--audit-log-path="+s.path("audit.log"))
	s.Config = s.As("admin")
	s.until(t, "the API server is ready", func(ctx context.Context) error { return s.get(ctx, "/readyz") })
}

// As returns how to reach the server as one of its users: "admin", who may do
// everything, or "signalbox", who may do what the test's roles grant.
func (s *Server) As(user string) *rest.Config {
	return &rest.Config{
		Host: "https://127.0.0.1:" + s.port, BearerToken: user, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAFile: s.path("apiserver.crt"), ServerName: "kubernetes"},
	}
}

func (s *Server) get(ctx context.Context, path string) error {
	config := rest.CopyConfig(s.Config)
	config.NegotiatedSerializer, config.GroupVersion = scheme.Codecs.WithoutConversion(), &schema.GroupVersion{Version: "v1"}
	client, err := rest.UnversionedRESTClientFor(config)
	if err != nil {
		return err // its certificate is not there yet
	}
	return client.Get().AbsPath(path).Do(ctx).Error()
}

// Kubeconfig writes As(user) as a file for programs.
func (s *Server) Kubeconfig(t testing.TB, user string) string {
	t.Helper()
	path := s.path(user + ".kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%s", certificate-authority: %s, tls-server-name: kubernetes}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, s.port, s.path("apiserver.crt"), user)
	write(t, path, text)
	return path
}

// KillAPI kills the API server, and KillEtcd its etcd, without a word to anyone.
func (s *Server) KillAPI() { stop(s.apis) }

// KillEtcd kills etcd.
func (s *Server) KillEtcd() { stop(s.etcd) }

// Hang stops the API server's process where it stands; Continue lets it go on.
func (s *Server) Hang(t testing.TB) { s.signal(t, syscall.SIGSTOP) }

// Continue ends what Hang began.
func (s *Server) Continue(t testing.TB) { s.signal(t, syscall.SIGCONT) }

func (s *Server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.apis.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) writeFiles(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.path("key"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
	write(t, s.path("tokens"), "admin,admin,1,system:masters\nsignalbox,signalbox,2\n")
	write(t, s.path("audit.yaml"), `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
`)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) start(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.OpenFile(s.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the process has it by then
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.bin, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func stop(cmd *exec.Cmd) {
	if cmd != nil && cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// until asks again until there is no error.
func (s *Server) until(t testing.TB, what string, ask func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: still not: %v\n%s", what, err, s.lastWords())
		}
	}
}

// lastWords is the end of the servers' logs.
func (s *Server) lastWords() string {
	var out strings.Builder
	for _, name := range []string{"etcd", "kube-apiserver"} {
		b, err := os.ReadFile(s.path(name + ".log"))
		if err != nil {
			continue
		}
		lines := bytes.Split(b, []byte("\n"))
		fmt.Fprintf(&out, "%s:\n%s\n", name, bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
	}
	return out.String()
}
