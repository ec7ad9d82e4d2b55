package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestChangeEndpoints: pods and pickers are replaced one by one, as rollouts do.
func TestChangeEndpoints(t *testing.T) {
	x := newStanding(t)
	// A pool whose pods all listen on two ports, and whose slices say none: targetPorts do.
	first, second := freePort(t), freePort(t)
	onFirst, onSecond := x.ledger.startPod(t, "rank-0", fmt.Sprintf("127.0.0.1:%d", first)), x.ledger.startPod(t, "rank-1", fmt.Sprintf("127.0.0.1:%d", second))
	ranks := newTarget("ranks", "ranks", "").expect([]*pod{onFirst})
	pool := changePool{name: "ranks", ports: []string{onFirst.Port()}}
	x.files["ranks.yaml"] = pool.yaml()
	x.files["ranks-rest.yaml"] = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ranks, namespace: default, labels: {app: ranks}}
addressType: IPv4
endpoints: [{addresses: [127.0.0.1], conditions: {ready: true}}]
` + yamlRoute("ranks", rule(toPool("ranks"), onModel("ranks")))

	c := runChanging(t, x.ledger, x.files, boxOptions{})
	c.begin(x.toA, x.toB, x.toS, ranks)
	c.load.hold(x.toA)
	c.load.hold(x.toB)

	for i := range 4 {
		c.replacePod(x, i)
	}
	for _, listed := range [][]*pod{{onFirst, onSecond}, {onSecond}, {onSecond, onFirst}, {onFirst}} {
		pool.ports = nil
		for _, p := range listed {
			pool.ports = append(pool.ports, p.Port())
		}
		c.move(ranks, listed, nil, func() { c.Write("ranks.yaml", pool.yaml()) })
	}
	c.end()
}

// replacePod replaces the oldest pod of each pool and of the Service by a new one.
func (c *changing) replacePod(x *standing, round int) {
	t := c.box.t
	t.Helper()
	next := func(pods []*pod, name string) []*pod {
		return append(slices.Clone(pods), x.ledger.startPod(t, fmt.Sprintf("%s-%d", name, round+2)))
	}
	// A picker of a FailClose pool must not pick what Envoy does not know yet, nor any more.
	x.a = next(x.a, "a")
	c.change(func() { c.Write("pods-a.yaml", yamlApp("a", x.a...)) })
	c.load.settle()
	x.toA.expect(x.a, "pick-a")
	x.pickA.pick(x.a...)
	c.load.during(20)
	x.a = x.a[1:]
	x.pickA.pick(x.a...)
	c.load.settle()
	x.toA.expect(x.a, "pick-a")
	c.change(func() { c.Write("pods-a.yaml", yamlApp("a", x.a...)) })

	// With a FailOpen pool it may: any other pod serves then. And a Service has no picker.
	x.b, x.s = next(x.b, "b"), next(x.s, "s")
	both := func() {
		c.Write("pods-b.yaml", yamlApp("b", x.b...))
		c.Write("service.yaml", yamlService("s", x.s...))
	}
	x.toB.expect(x.b, "pick-b")
	x.toS.expect(x.s)
	x.pickB.pick(x.b...)
	c.change(both)
	c.load.during(20)
	x.b, x.s = x.b[1:], x.s[1:]
	c.change(both)
	x.pickB.pick(x.b...)
	c.load.settle()
	x.toB.expect(x.b, "pick-b")
	x.toS.expect(x.s)
	c.load.during(20)
}

// TestChangePickers: pickers are processes that come and go, by EndpointSlice; those of a
// FailOpen pool also by SIGKILL.
func TestChangePickers(t *testing.T) {
	x := newStanding(t)
	c := runChanging(t, x.ledger, x.files, boxOptions{})
	c.begin(x.toA, x.toB, x.toS)
	c.load.hold(x.toA)
	c.load.hold(x.toB)

	var runningA, runningB *pickerChild
	for i := range 4 {
		a := startPickerChild(t, fmt.Sprintf("child-a-%d", i), x.a...)
		c.move(x.toA, x.a, []string{a.name}, func() { c.Write("epp-a.yaml", yamlEPP("epp-a", a.address)) })
		if runningA != nil { // nobody asks it any more; streams that it is part of go on without it
			runningA.end(syscall.SIGTERM)
		}
		runningA = a

		b := startPickerChild(t, fmt.Sprintf("child-b-%d", i), x.b...)
		if runningB == nil {
			x.toB.expect(x.b, "pick-b", b.name)
		} else {
			x.toB.expect(x.b, runningB.name, b.name, "")
			runningB.end(syscall.SIGKILL) // while it is asked
			c.load.during(30)
		}
		c.change(func() { c.Write("epp-b.yaml", yamlEPP("epp-b", b.address)) })
		c.load.settle()
		x.toB.expect(x.b, b.name)
		c.load.during(20)
		runningB = b
	}
	// Two at a time, of which one is gone.
	second := startPickerChild(t, "child-a-second", x.a...)
	x.toA.expect(x.a, runningA.name, second.name)
	c.change(func() { c.Write("epp-a.yaml", yamlEPP("epp-a", runningA.address, second.address)) })
	c.load.during(40)
	c.change(func() { c.Write("epp-a.yaml", yamlEPP("epp-a", second.address)) })
	c.load.settle()
	x.toA.expect(x.a, second.name)
	runningA.end(syscall.SIGKILL)
	c.load.during(40)
	c.end()
}

// pickerChild is a `signalbox demo picker`.
type pickerChild struct {
	t             testing.TB
	name, address string
	cmd           *exec.Cmd
	output        *lockedBuffer
	ended         chan error
}

func startPickerChild(t testing.TB, name string, pods ...*pod) *pickerChild {
	t.Helper()
	p := &pickerChild{t: t, name: name, address: fmt.Sprintf("127.0.0.1:%d", freePort(t)), output: &lockedBuffer{}, ended: make(chan error, 1)}
	p.cmd = exec.Command(binary(t, "SIGNALBOX"), "demo", "picker", "--name", name, "--listen", p.address, "--endpoints", strings.Join(addresses(pods), ","))
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.ended <- p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	waitFor(t, "picker "+name+" listens", func() bool {
		conn, err := net.Dial("tcp", p.address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return p
}

// end ends the picker and waits until it has.
func (p *pickerChild) end(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s)
	if err := <-p.ended; err != nil && s == syscall.SIGTERM {
		p.t.Errorf("picker %s: %v\n%s", p.name, err, p.output)
	}
}
