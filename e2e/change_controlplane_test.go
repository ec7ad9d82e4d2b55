package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestChangeControlPlane: the control plane is killed, ended and started again, without
// and with changes meanwhile, while an Envoy of its own serves a load.
func TestChangeControlPlane(t *testing.T) {
	for _, stream := range []string{"delta", "state of the world"} {
		t.Run(stream, func(t *testing.T) { changeControlPlane(t, stream) })
	}
}

func changeControlPlane(t *testing.T, stream string) {
	x := newStanding(t)
	movingTo := func(pool string) string { return yamlRoute("moving", rule(toPool(pool), onModel("moving"))) }
	x.files["moving.yaml"] = movingTo("a")
	moving := newTarget("moving", "moving", "").expect(x.a, "pick-a")
	b := startBare(t, x.files)
	envoy := b.runEnvoy(t, stream)
	b.inSync(t)

	load := startLoad(t, b.url(80), x.ledger, nil, x.toA, x.toB, x.toS, moving)
	load.hold(x.toA)
	before := envoy.stats(listenerStats)
	for i, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		b.endServe(t, signal)
		load.during(100)
		b.startServe(t)
		b.inSync(t)
		if sent := b.pushes(t); stream == "delta" && sent != 0 {
			t.Errorf("after restart %d %v responses were sent to an Envoy that had everything", i, sent)
		}
		load.during(50)
	}

	// What changes meanwhile is there afterwards, in an order that loses nothing.
	for i, to := range []string{"b", "a", "b"} {
		moving.expect(slices.Concat(x.a, x.b), "pick-a", "pick-b")
		b.endServe(t, syscall.SIGKILL)
		if err := os.WriteFile(filepath.Join(b.dir, "moving.yaml"), []byte(movingTo(to)+yamlService(fmt.Sprintf("new-%d", i), x.s...)+
			yamlRoute(fmt.Sprintf("new-%d", i), rule(toService(fmt.Sprintf("new-%d", i)), onPath(fmt.Sprintf("/new-%d", i))))), 0o600); err != nil {
			t.Fatal(err)
		}
		load.during(30)
		b.startServe(t)
		b.inSync(t)
		waitFor(t, "what changed meanwhile is in force", func() bool { return get(t.Context(), b.url(80)+fmt.Sprintf("/new-%d", i)).Status == 200 })
		load.settle()
		moving.expect(map[string][]*pod{"a": x.a, "b": x.b}[to], "pick-"+to)
		load.during(50)
	}
	load.finish()
	for _, c := range envoy.changed(before) {
		// In state of the world everything is sent again; what has not changed changes nothing.
		if stream == "delta" || !strings.Contains(c, "lds.update_success") {
			t.Error(c)
		}
	}
}

// runEnvoy starts an Envoy with a variant of the protocol and waits until it serves.
func (b *bare) runEnvoy(t *testing.T, stream string) *envoyAdmin {
	t.Helper()
	var args []string
	if stream != "delta" {
		args = append(args, "--state-of-the-world")
	}
	bootstrap := b.bootstrap("default/gw", "by-hand", args...)
	text, err := os.ReadFile(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	admin := regexp.MustCompile(`admin:\s+address: \{.*port_value: (\d+)`).FindSubmatch(text)
	if admin == nil {
		t.Fatalf("the bootstrap names no port of the admin interface:\n%s", text)
	}
	startEnvoy(t, bootstrap)
	waitFor(t, "the Envoy serves", func() bool {
		return post(t.Context(), b.url(80)+"/v1/chat/completions", "application/json", chat("steady-a")).Status == 200
	})
	return newEnvoyAdmin(t, "tcp", "127.0.0.1:"+string(admin[1]))
}

// inSync waits until the one Envoy is connected and has everything. An Envoy tries again
// after up to 30 s.
func (b *bare) inSync(t *testing.T) {
	t.Helper()
	deadline := time.NewTimer(3 * patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if get(t.Context(), b.admin+"/readyz").Status == 200 {
			if all := b.envoys(); len(all) == 1 && (all[0].Step == "in sync" || strings.HasPrefix(all[0].Step, "3 ")) {
				return
			}
		}
		select {
		case <-deadline.C:
			t.Fatalf("the Envoy is not connected and in sync after %v", 3*patience)
		case <-tick.C:
		}
	}
}

// endServe ends the control plane.
func (b *bare) endServe(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := b.serve.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.serve.exited:
	case <-time.After(patience):
		t.Fatalf("the control plane did not end within %v of %v", patience, s)
	}
	if b.serve.err != nil && s == syscall.SIGTERM {
		t.Errorf("the control plane ended: %v", b.serve.err)
	}
}

// startServe starts the control plane again, as it was.
func (b *bare) startServe(t *testing.T) {
	t.Helper()
	b.serve = startProgram(t, b.serve.cmd.Path, b.serve.cmd.Args[1:]...)
}

// pushes returns how many responses the control plane has sent to Envoys.
func (b *bare) pushes(t *testing.T) float64 {
	t.Helper()
	a := get(context.Background(), b.admin+"/metrics")
	if a.Err != nil || !strings.Contains(a.Body, "signalbox_xds_pushes_total") {
		t.Fatalf("metrics: %d %v", a.Status, a.Err)
	}
	var sum float64
	for line := range strings.Lines(a.Body) {
		if strings.HasPrefix(line, "signalbox_xds_pushes_total") {
			n, err := strconv.ParseFloat(strings.Fields(line)[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}
