package picker

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"signalbox.dev/extproc/contract"
)

const (
	maxMessage = 64 << 20 // largest message accepted from a picker, bytes
	// Fixed windows switch off grpc-go's bandwidth estimate, which would ping the picker.
	streamWindow, connWindow = 1 << 20, 16 << 20
)

// key tells pickers apart: the same address dialled in two ways is two pickers.
type key struct {
	endpoint, serverName string
	mode                 contract.TLSMode
	ca                   [sha256.Size]byte
}

// remotes are the pickers that requests use, or used a while ago.
type remotes struct {
	log    *zap.Logger
	timing timing
	mu     sync.Mutex
	m      map[key]*remote
}

// remote is one endpoint of a picker: its connection, and whether it lives.
type remote struct {
	dead      atomic.Bool
	lastHeard atomic.Int64 // UnixNano

	key      key
	timing   timing
	log      *zap.Logger
	tls      *tls.Config // nil: plaintext
	ping     func(context.Context) error
	ctx      context.Context // ends with the remote
	cancel   context.CancelFunc
	watchers sync.WaitGroup

	mu       sync.Mutex
	conn     *shared       // nil until used
	died     chan struct{} // closed when it dies; a new one when it revives
	mourned  bool          // died is closed
	waiting  int           // requests that wait for an answer
	asked    time.Time     // when a request last wanted it
	watching bool
	closed   bool
	users    int // guarded by remotes.mu
	idle     *time.Timer
}

// shared is a connection that closes when it was dropped and its last stream has ended:
// a picker that hung may yet finish the responses it is part of.
type shared struct {
	*grpc.ClientConn
	streams int
	dropped bool
}

// get returns the picker at endpoint, to be given back with put.
func (rs *remotes) get(endpoint string, p contract.Picker) (*remote, error) {
	k := key{endpoint: endpoint, serverName: p.ServerName, mode: p.TLS, ca: sha256.Sum256(p.CA)}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r := rs.m[k]
	if r == nil {
		t, err := tlsConfig(p)
		if err != nil {
			return nil, err
		}
		r = newRemote(k, t, rs.timing, rs.log.With(zap.String("endpoint", endpoint), zap.String("pool", p.Pool)))
		rs.m[k] = r
	}
	r.users++
	if r.idle != nil {
		r.idle.Stop()
		r.idle = nil
	}
	return r, nil
}

func (rs *remotes) put(r *remote) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r.users--; r.users > 0 {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(rs.timing.idle, func() {
		rs.mu.Lock()
		gone := r.idle == t
		if gone {
			delete(rs.m, r.key)
		}
		rs.mu.Unlock()
		if gone {
			r.close()
		}
	})
	r.idle = t
}

func (rs *remotes) close() {
	rs.mu.Lock()
	m := rs.m
	rs.m = map[key]*remote{}
	for _, r := range m {
		if r.idle != nil {
			r.idle.Stop()
			r.idle = nil
		}
	}
	rs.mu.Unlock()
	for _, r := range m {
		r.close()
	}
}

func newRemote(k key, t *tls.Config, when timing, log *zap.Logger) *remote {
	p := newProber(k.endpoint, t)
	ctx, cancel := context.WithCancel(context.Background())
	context.AfterFunc(ctx, p.close)
	return &remote{key: k, timing: when, log: log, tls: t, ping: p.ping, ctx: ctx, cancel: cancel, died: make(chan struct{})}
}

// tlsConfig returns nil for plaintext.
func tlsConfig(p contract.Picker) (*tls.Config, error) {
	c := &tls.Config{ServerName: p.ServerName, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	switch {
	case p.TLS == contract.TLSPlaintext:
		return nil, nil
	case p.TLS == contract.TLSInsecure:
		c.InsecureSkipVerify = true // pickers ship with a certificate that they signed themselves
	case len(p.CA) > 0:
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(p.CA) {
			return nil, errors.New("the CA of the endpoint picker holds no certificate")
		}
	}
	return c, nil
}

// lease returns the connection; the release function is called when the stream on it ended.
func (r *remote) lease() (*grpc.ClientConn, func(), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		cc, err := r.dial()
		if err != nil {
			return nil, nil, err
		}
		r.conn = &shared{ClientConn: cc}
	}
	c := r.conn
	c.streams++
	return c.ClientConn, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		c.streams--
		c.closeIfUnused()
	}, nil
}

func (c *shared) closeIfUnused() {
	if c.dropped && c.streams == 0 {
		_ = c.Close()
	}
}

// dropConn makes the next request dial anew. Caller holds mu.
func (r *remote) dropConn() {
	if r.conn != nil {
		r.conn.dropped = true
		r.conn.closeIfUnused()
		r.conn = nil
	}
}

// dialer has the kernel notice a connection whose other end is gone without a word (see
// avoid). Pickers see nothing of TCP's keepalive.
var dialer = net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 5}}

func (r *remote) dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if r.tls != nil {
		creds = credentials.NewTLS(r.tls)
	}
	return grpc.NewClient("passthrough:///"+r.key.endpoint,
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(), // a picker is never behind the proxy of the environment
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // the relay has its own, which knows what was given back
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 2 * time.Second,
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
	)
}

// death returns the channel that closes when the picker dies.
func (r *remote) death() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.died
}

// load returns how many requests wait for the picker, and whether it may be asked. Asking
// keeps a dead one probed.
func (r *remote) load() (waiting int, alive bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = time.Now()
	return r.waiting, !r.dead.Load()
}

// die takes the picker out of use until a probe is answered; whoever waits on it stops.
func (r *remote) die(why string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setAside(why, err)
	if r.dead.Load() && !r.mourned {
		r.mourned = true
		close(r.died)
	}
}

// avoid takes the picker out of use for new requests, since it takes no connections. It may
// be one that ends gracefully: then what waits on it is still answered, on the connection
// that it has. If its process is gone, that connection is broken and says so.
func (r *remote) avoid(why string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setAside(why, err)
}

// setAside makes new requests avoid the picker until a probe is answered. Caller holds mu.
func (r *remote) setAside(why string, err error) {
	if r.closed || !r.dead.CompareAndSwap(false, true) {
		return
	}
	r.log.Warn("endpoint picker is out of use until it answers a probe", zap.String("why", why), zap.Error(err))
	r.startWatch(r.timing.revive)
}

func (r *remote) close() {
	r.mu.Lock()
	r.closed = true
	r.dropConn()
	r.mu.Unlock()
	r.cancel()
	r.watchers.Wait()
}
