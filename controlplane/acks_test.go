package controlplane

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"signalbox.dev/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// heard is what a translator would know by what a book has told.
type heard struct {
	mu    sync.Mutex
	news  chan struct{}
	words map[string]string // "node listener" → version
}

func newHeard() *heard { return &heard{news: make(chan struct{}, 1), words: map[string]string{}} }

func (h *heard) hear(a xds.Ack) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key := range h.words {
		if a.Gone && len(key) > len(a.Node) && key[:len(a.Node)+1] == a.Node+"|" {
			delete(h.words, key)
		}
	}
	for l, v := range a.Versions {
		h.words[a.Node+"|"+l] = v + a.Error
	}
	select {
	case h.news <- struct{}{}:
	default:
	}
}

func (h *heard) all() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]string{}
	for k, v := range h.words {
		out[k] = v
	}
	return out
}

// await waits until the translator would know exactly this.
func (h *heard) await(t *testing.T, want map[string]string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		if cmp.Equal(want, h.all()) {
			return
		}
		select {
		case <-h.news:
		case <-timeout:
			t.Fatalf("known is %v; want %v", h.all(), want)
		}
	}
}

func ack(node, listener, version string) xds.Ack {
	return xds.Ack{Group: "default/gw", Node: node, Type: xds.Listener, Versions: map[string]string{listener: version}}
}

func gone(node string) xds.Ack { return xds.Ack{Group: "default/gw", Node: node, Gone: true} }

// An Envoy that has disconnected counts for the grace, and for ever if it comes back.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHeard()
		b := newAckBook(30*time.Second, h.hear)
		b.take(ack("1", "80", "v1"))
		b.take(ack("2", "80", "v1"))
		b.take(xds.Ack{Group: "default/gw", Node: "1", Type: xds.Cluster, Versions: map[string]string{"c": "v"}}) // nobody's business
		b.take(gone("1"))
		b.take(gone("2"))
		b.take(gone("2"))
		time.Sleep(20 * time.Second)
		b.take(ack("2", "80", "v1")) // the very same: it has come back
		time.Sleep(9 * time.Second)
		if got := h.all(); len(got) != 2 {
			t.Errorf("known within the grace is %v", got)
		}
		time.Sleep(2 * time.Second)
		if diff := cmp.Diff(map[string]string{"2|80": "v1"}, h.all()); diff != "" {
			t.Errorf("after the grace (-want +got):\n%s", diff)
		}
		time.Sleep(time.Minute)
		if got := h.all(); len(got) != 1 {
			t.Errorf("known of an Envoy that has come back is %v", got)
		}
	})
}

func TestNoGrace(t *testing.T) {
	h := newHeard()
	b := newAckBook(0, h.hear)
	b.take(ack("1", "80", "v1"))
	b.take(gone("1"))
	if got := h.all(); len(got) > 0 {
		t.Errorf("known of an Envoy that has gone is %v", got)
	}
}

// Two replicas: each knows what the other's Envoys have taken, as it changes, and an
// Envoy that moves from one to the other is known all the time.
func TestReplicasFollow(t *testing.T) {
	far := &peers{replica: "far", book: newAckBook(0, func(xds.Ack) {}), log: zaptest.NewLogger(t)}
	g := newGate(t, far.register)
	h := newHeard()
	near := &peers{replica: "near", book: newAckBook(0, h.hear), log: zaptest.NewLogger(t), authority: &authority{serverName: testServer}}
	far.book.take(ack("1", "80", "v1"))
	near.book.take(ack("9", "80", "v1"))

	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); near.follow(ctx, g.tls) }()
	near.authority.current.Store(g.authority) // known only now: it tries again
	h.await(t, map[string]string{"9|80": "v1", "1 at far|80": "v1"})
	far.book.take(ack("1", "80", "v2"))
	far.book.take(xds.Ack{Group: "default/gw", Node: "1", Type: xds.Listener, Versions: map[string]string{"81": "v1"}, Error: " refused"})
	h.await(t, map[string]string{"9|80": "v1", "1 at far|80": "v2", "1 at far|81": "v1 refused"})
	near.book.take(ack("1", "80", "v2")) // it has come here,
	far.book.take(gone("1"))             // and is found to have left there
	h.await(t, map[string]string{"9|80": "v1", "1|80": "v2"})
	stop()
	<-done
}

// What is known of another replica's Envoys goes when it does.
func TestReplicaDies(t *testing.T) {
	far := &peers{replica: "far", book: newAckBook(0, func(xds.Ack) {}), log: zaptest.NewLogger(t)}
	far.book.take(ack("1", "80", "v1"))
	servers := make(chan *grpc.Server, 2)
	g := newGate(t, func(s *grpc.Server) { far.register(s); servers <- s })
	h := newHeard()
	near := &peers{replica: "near", book: newAckBook(0, h.hear), log: zaptest.NewLogger(t), authority: &authority{serverName: testServer}}
	near.authority.current.Store(g.authority)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); near.follow(ctx, g.tls) }()
	h.await(t, map[string]string{"1 at far|80": "v1"})
	(<-servers).Stop()
	h.await(t, map[string]string{})
	stop()
	<-done
}

// A replica that finds itself among the others leaves itself alone.
func TestFollowsNotItself(t *testing.T) {
	p := &peers{replica: "me", book: newAckBook(0, func(xds.Ack) { t.Error("it tells itself") }), log: zaptest.NewLogger(t), authority: &authority{serverName: testServer}}
	g := newGate(t, p.register)
	p.authority.current.Store(g.authority)
	p.follow(t.Context(), g.tls) // returns
}

// Envoys may not ask what others have taken.
func TestOnlyReplicasFollow(t *testing.T) {
	far := &peers{replica: "far", book: newAckBook(0, func(xds.Ack) {}), log: zaptest.NewLogger(t)}
	g := newGate(t, far.register)
	for name, conn := range map[string]*grpc.ClientConn{"an Envoy": g.as(g.gateway("default", "a")), "somebody on the machine": g.dial(g.plain, insecure.NewCredentials())} {
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, acksMethod)
		if err == nil {
			if err = stream.CloseSend(); err == nil {
				err = stream.RecvMsg(new(wrapperspb.BytesValue))
			}
		}
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s follows: %v", name, err)
		}
	}
}

func TestOwnIsSorted(t *testing.T) {
	b := newAckBook(0, func(xds.Ack) {})
	for _, n := range []string{"c", "a", "b"} {
		b.take(ack(n, "80", "v"))
	}
	b.takeFrom("far", []entry{{Group: "default/gw", Node: "x", Listener: "80", Version: "v"}})
	got, _ := b.own()
	var nodes []string
	for _, e := range got {
		nodes = append(nodes, e.Node)
	}
	if !slices.Equal(nodes, []string{"a", "b", "c"}) {
		t.Errorf("own is %v; want its own Envoys, sorted", nodes)
	}
}
