package picker

import (
	"net"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
)

// TestDraining: a picker that ends gracefully takes no new connections, so probes of it
// fail; what waits on it is still answered. New requests do not wait for it.
func TestDraining(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked, answer := make(chan struct{}), make(chan struct{})
	p := &scripted{replyTo: func(_ extprocv3.ExternalProcessor_ProcessServer, ph string) error {
		if ph == beforeHeaders {
			asked <- struct{}{}
			<-answer
		}
		return nil
	}}
	srv := grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(srv, processor{f: p.process})
	go srv.Serve(l)
	g := newGateway(t, Config{})
	g.remotes.timing.first, g.remotes.timing.revive = 10*time.Millisecond, 10*time.Millisecond
	waits := make(chan *outcome)
	go func() { waits <- g.do(t.Context(), t, at(l.Addr().String()), post(bytesOf(100000))) }()
	<-asked
	drained := make(chan struct{})
	go func() { srv.GracefulStop(); close(drained) }()
	for tick := time.NewTicker(10 * time.Millisecond); g.deaths() == 0; {
		<-tick.C
	}
	checkFailClose(t, g.do(t.Context(), t, at(l.Addr().String()), post(bytesOf(300)))) // learns of a refused connection by itself
	select {
	case o := <-waits:
		t.Errorf("what waits for a draining picker was given up: %d", o.status())
		close(answer)
	case <-time.After(200 * time.Millisecond): // many probes
		close(answer)
		if o := <-waits; o.status() != 200 || o.pick() != pod || !o.whole {
			t.Errorf("status %d (%v), pick %q; want the picker's", o.status(), o.err, o.pick())
		}
	}
	<-drained
}
