package picker

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"syscall"
	"time"
)

// timing is how long pickers are waited for, when they are probed and disconnected.
type timing struct {
	first    time.Duration // a request that waits this long has its picker probed
	interval time.Duration // from probe to probe
	timeout  time.Duration // of one probe
	revive   time.Duration // from probe to probe of a dead picker
	forget   time.Duration // probing a dead picker ends when nobody asked for it this long
	response time.Duration // for the headers or the end of a response: there is nothing to think about
	idle     time.Duration // a picker that nobody uses for this long is disconnected
}

var defaultTiming = timing{first: 250 * time.Millisecond, interval: time.Second, timeout: time.Second,
	revive: 500 * time.Millisecond, forget: time.Minute, response: 5 * time.Second, idle: 5 * time.Minute}

// probeMisses in a row make a picker dead: 2.25 s after a request began to wait.
const probeMisses = 2

// probePath is answered by every gRPC server, whether it has a health service or not:
// gRPC's own health check would call pickers dead that run without that service.
const probePath = "/grpc.health.v1.Health/Check"

// prober asks a picker's process for a sign of life with an HTTP/2 GET, on a connection of
// its own. Never with HTTP/2 PINGs on the connection of the requests: grpc-go servers
// answer those with GOAWAY too_many_pings and cut the streams.
type prober struct {
	transport *http.Transport
	url       string
}

func newProber(endpoint string, t *tls.Config) *prober {
	p := &prober{transport: &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: t}, url: "http://" + endpoint + probePath}
	if t == nil {
		p.transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		p.transport.Protocols.SetHTTP2(true)
		p.url = "https://" + endpoint + probePath
	}
	return p
}

// ping returns nil if anything that speaks HTTP/2 answered. After an error the connection
// is not used again: the process may be gone without a FIN.
func (p *prober) ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return err
	}
	resp, err := p.transport.RoundTrip(req)
	if err != nil {
		p.transport.CloseIdleConnections()
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	return resp.Body.Close()
}

func (p *prober) close() { p.transport.CloseIdleConnections() }

// wait says that a request waits for this picker; the watch begins with the first.
func (r *remote) wait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting++
	r.startWatch(r.timing.first)
}

func (r *remote) waited() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
}

// heard notes a message of the picker: as good as an answered probe, for a picker that is
// too busy to answer one in time.
func (r *remote) heard() { r.lastHeard.Store(time.Now().UnixNano()) }

// startWatch runs the watch unless it runs. Caller holds mu.
func (r *remote) startWatch(first time.Duration) {
	if r.watching || r.closed {
		return
	}
	r.watching = true
	r.watchers.Go(func() { r.watch(first) })
}

// watch probes while requests wait, and while the picker is dead, until it is forgotten.
func (r *remote) watch(first time.Duration) {
	misses := 0
	next := time.NewTimer(first)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-r.ctx.Done():
			return
		}
		if !r.stillWatched() {
			return
		}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(r.ctx, r.timing.timeout)
		err := r.ping(ctx)
		cancel()
		switch {
		case err == nil || r.lastHeard.Load() >= begin.UnixNano():
			misses = 0
			r.alive()
		case errors.Is(err, syscall.ECONNREFUSED):
			r.avoid("refuses connections", err)
		default:
			if misses++; misses >= probeMisses {
				r.die("no answer to probes", err)
			}
		}
		every := r.timing.interval
		if r.dead.Load() {
			every = r.timing.revive
		}
		next.Reset(max(0, every-time.Since(begin)))
	}
}

// stillWatched ends the watch when nobody waits any more. A dead picker that nobody asked
// for is forgotten: whoever asks next finds out for himself.
func (r *remote) stillWatched() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting > 0 || r.dead.Load() && time.Since(r.asked) < r.timing.forget {
		return true
	}
	r.watching = false
	r.revive()
	return false
}

// alive ends a death.
func (r *remote) alive() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead.Load() {
		r.log.Info("endpoint picker is back")
	}
	r.revive()
}

// revive opens the circuit for new requests. Caller holds mu.
func (r *remote) revive() {
	if r.dead.CompareAndSwap(true, false) {
		if r.mourned {
			r.died, r.mourned = make(chan struct{}), false
		}
		r.dropConn() // grpc-go may be backing off, or hold a connection that leads nowhere
	}
}
