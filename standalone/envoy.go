package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"signalbox.dev/bootstrap"
)

// once runs one Envoy until it ends, by itself (an error) or because ctx has ended:
// then its requests in flight are waited for, up to the drain timeout.
func (f *fleet) once(ctx context.Context, group, name string, log *zap.Logger) error {
	admin := filepath.Join(f.cfg.dir, name+".admin.sock")
	config, err := bootstrap.Render(bootstrap.Options{Group: group, ID: "signalbox-run", XDS: f.cfg.xds, Admin: "unix:" + admin})
	if err != nil {
		return err
	}
	path := filepath.Join(f.cfg.dir, name+".yaml")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	_ = os.Remove(admin) // of an Envoy that died
	//nolint:noctx // the end of ctx means draining, not killing
	cmd := exec.Command(f.cfg.binary, "-c", path, "--disable-hot-restart", "--drain-time-s", "600", "--log-level", "warning")
	cmd.Stdout, cmd.Stderr = f.cfg.output, f.cfg.output
	cmd.SysProcAttr = childAttr()
	started, exited := make(chan error, 1), make(chan error, 1)
	go func() {
		// A death signal is tied to the thread that forked, which must therefore live
		// as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err // names the binary
	}
	log.Info("Envoy started", zap.Int("pid", cmd.Process.Pid))
	select {
	case err := <-exited:
		return err
	case <-ctx.Done():
	}
	return f.stop(cmd, admin, exited, log)
}

// stop drains an Envoy and ends it: new connections are refused at once, requests in
// flight finish (facts: envoy-bootstrap §2.4).
func (f *fleet) stop(cmd *exec.Cmd, admin string, exited <-chan error, log *zap.Logger) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", admin)
		}}}
	ctx, cancel := context.WithTimeout(context.Background(), f.cfg.drain)
	defer cancel()
	err := errors.Join(post(ctx, client, "/healthcheck/fail"), post(ctx, client, "/drain_listeners"))
	if err != nil {
		log.Warn("Envoy cannot be drained", zap.Error(err))
		cancel()
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for drained := false; !drained; {
		select {
		case err := <-exited:
			log.Info("Envoy ended while it drained", zap.NamedError("exit", err))
			return nil
		case <-ctx.Done():
			drained = true
		case <-ticker.C:
			drained = idle(ctx, client)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended meanwhile
	select {
	case err = <-exited:
	case <-time.After(5 * time.Second):
		_ = cmd.Process.Kill()
		err = <-exited
	}
	log.Info("Envoy stopped", zap.NamedError("exit", err))
	return nil
}

func post(ctx context.Context, client *http.Client, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://envoy"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("admin %s: %s", path, resp.Status)
	}
	return nil
}

// idle says whether no request is in flight on any listener.
func idle(ctx context.Context, client *http.Client) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy/stats?filter=^http\\..*downstream_rq_active$", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		// The admin interface counts this very request.
		if n, v, _ := strings.Cut(strings.TrimSpace(line), ": "); v != "0" && n != "http.admin.downstream_rq_active" {
			return false
		}
	}
	return true
}
