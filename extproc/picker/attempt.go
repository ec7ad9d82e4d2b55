package picker

import (
	"context"
	"io"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// attempt is one stream to one picker. Its goroutines only carry messages, so that a
// picker that stops reading, or a dial that hangs, never holds up the stream's owner.
type attempt struct {
	remote *remote
	died   <-chan struct{}
	cancel context.CancelFunc
	send   chan *fromEnvoy // taken while the picker reads
	recv   chan *toEnvoy   // closed when the picker's stream has ended, then err says how
	err    error
	waits  bool // it is counted among those that wait for the picker
}

func (r *remote) attempt(ctx context.Context) *attempt {
	ctx, cancel := context.WithCancel(ctx)
	a := &attempt{remote: r, died: r.death(), cancel: cancel, send: make(chan *fromEnvoy), recv: make(chan *toEnvoy)}
	go a.run(ctx)
	return a
}

// run dials and receives. It holds the connection until the stream has ended.
func (a *attempt) run(ctx context.Context) {
	defer close(a.recv)
	defer a.cancel()
	cc, release, err := a.remote.lease()
	if err != nil {
		a.err = err
		return
	}
	defer release()
	stream, err := extprocv3.NewExternalProcessorClient(cc).Process(ctx)
	if err != nil {
		if status.Code(err) == codes.Unavailable && ctx.Err() == nil {
			a.remote.avoid("cannot connect", err)
		}
		a.err = err
		return
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		a.pumpOut(ctx, stream)
	}()
	a.err = a.pumpIn(ctx, stream)
	a.cancel()
	<-sent
}

func (a *attempt) pumpOut(ctx context.Context, stream extprocv3.ExternalProcessor_ProcessClient) {
	for {
		select {
		case m := <-a.send:
			if stream.Send(m) != nil {
				return // pumpIn learns why
			}
		case <-ctx.Done():
			return
		}
	}
}

// pumpIn returns io.EOF when the picker ended its stream with OK.
func (a *attempt) pumpIn(ctx context.Context, stream extprocv3.ExternalProcessor_ProcessClient) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		a.remote.heard()
		select {
		case a.recv <- m:
		case <-ctx.Done():
			return io.EOF
		}
	}
}

// wait keeps the count of those that wait for the picker.
func (a *attempt) wait(waits bool) {
	if waits == a.waits {
		return
	}
	if a.waits = waits; waits {
		a.remote.wait()
	} else {
		a.remote.waited()
	}
}

// end lets go of the picker: its stream is cancelled at once.
func (a *attempt) end() {
	a.wait(false)
	a.cancel()
}
