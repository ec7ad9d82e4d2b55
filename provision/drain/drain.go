// Package drain ends an Envoy in a pod without losing a request.
//
// Neither Envoy's image nor the kubelet can do that: Envoy exits at once when it is told
// to, and there is no shell to wait in. So when a pod ends, the kubelet runs two hooks at
// the same time: `signalbox drain` in the container beside Envoy, which is Run, and a GET
// of /drained for Envoy's own container, which is Handler and answers when Run has
// finished. Only then is Envoy told to exit, and the process beside it after that.
// The GET does nothing but wait, so it does no harm that anybody in the cluster can ask.
package drain

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Options of a drain.
type Options struct {
	// Admin is Envoy's admin interface, HOST:PORT or unix:PATH.
	Admin string
	// Propagation is how long Envoy goes on accepting connections: until everybody knows
	// that the pod's address is no more. Default 5 s.
	Propagation time.Duration
	// Quiet is how long no request may come over connections that are left before they
	// count as forgotten. Every answer on them closes them, so these are idle. Default 15 s.
	Quiet time.Duration
	// Timeout bounds it all.
	Timeout time.Duration
	// Done is a file that is made at the end.
	Done   string
	Logger *zap.Logger
}

// poll is how often Envoy is asked.
const poll = 200 * time.Millisecond

// Run drains an Envoy: it reports itself unhealthy and closes connections after their
// next answer, at once; it is left alone when nobody is connected any more, when those
// who are have been silent, or at the timeout.
func Run(ctx context.Context, o Options) error {
	if o.Propagation == 0 {
		o.Propagation = 5 * time.Second
	}
	if o.Quiet == 0 {
		o.Quiet = 15 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	envoy := admin(o.Admin)
	start := time.Now()
	if _, err := envoy.ask(ctx, http.MethodPost, "/healthcheck/fail"); err != nil {
		o.Logger.Warn("Envoy cannot be drained; it may have ended", zap.Error(err))
		return finish(o.Done)
	}
	select {
	case <-ctx.Done():
	case <-time.After(min(o.Propagation, o.Timeout/2)):
	}
	why := envoy.await(ctx, o.Quiet)
	o.Logger.Info("Envoy has drained", zap.String("because", why), zap.Duration("took", time.Since(start)))
	return finish(o.Done)
}

func finish(path string) error {
	if path == "" {
		return nil
	}
	return os.WriteFile(path, nil, 0o600)
}

// await returns, with the reason, when Envoy may end.
func (e client) await(ctx context.Context, quiet time.Duration) string {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var total int64
	since := time.Now()
	for {
		now, err := e.traffic(ctx)
		switch {
		case ctx.Err() != nil:
			return "the time is over"
		case err != nil:
			return "it does not answer any more"
		case now.connections == 0:
			return "nobody is connected"
		case now.active > 0 || now.total != total:
			total, since = now.total, time.Now()
		case time.Since(since) >= quiet:
			return "those connected are silent"
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// client talks to an admin interface.
type client struct{ *http.Client }

func admin(address string) client {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	return client{&http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}}}}
}

func (e client) ask(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := e.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("admin %s: %s", path, resp.Status)
	}
	return b, err
}

// traffic is what goes on on all listeners but Envoy's own.
type traffic struct{ connections, active, total int64 }

// traffic asks Envoy's statistics. Those of the admin interface and of the readiness
// listener are of whoever watches, not of clients.
func (e client) traffic(ctx context.Context) (traffic, error) {
	var out traffic
	b, err := e.ask(ctx, http.MethodGet, `/stats?filter=^http\..*\.downstream_(cx_active|rq_active|rq_total)$`)
	if err != nil {
		return out, err
	}
	for line := range bytes.Lines(b) {
		name, value, ok := strings.Cut(strings.TrimSpace(string(line)), ": ")
		n, err := strconv.ParseInt(value, 10, 64)
		if !ok || err != nil || strings.HasPrefix(name, "http.admin.") || strings.HasPrefix(name, "http.ready.") {
			continue
		}
		switch {
		case strings.HasSuffix(name, "cx_active"):
			out.connections += n
		case strings.HasSuffix(name, "rq_active"):
			out.active += n
		default:
			out.total += n
		}
	}
	return out, nil
}

// Handler answers once Run has made the file, wherever it runs.
func Handler(done string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(poll)
		defer tick.Stop()
		for {
			if _, err := os.Stat(done); err == nil {
				fmt.Fprintln(w, "drained")
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
		}
	}
}
