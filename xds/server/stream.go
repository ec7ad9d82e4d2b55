package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	delta "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	sotw "github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"signalbox.dev/xds"
)

// stream is one Envoy's ADS stream.
//
// Three goroutines touch it. go-control-plane's loop (the gRPC handler) calls the
// methods in watch.go. run, its own, decides what is sent and tells answers. And
// Publish brings changes. All they share is under mu, which nobody holds while
// something may block: the loop alone waits for the network, run alone for OnAck.
type stream struct {
	server *Server
	ctx    context.Context // ends with the stream, or by end
	cancel context.CancelFunc
	wake   chan struct{} // has one token when run should look again
	since  time.Time
	// principal is the group that the stream has proved to be of, "" if it has proved
	// nothing.
	principal xds.Group

	// group is empty until the stream has joined one. It is written under server.mu and
	// mu, so either is enough to read it.
	group xds.Group

	mu      sync.Mutex
	plan    *plan
	log     *zap.Logger
	node    *corev3.Node // nil until the first request
	refused error        // why the stream was ended, if by us
	// handed is the one response that the loop has been given and has not sent yet.
	// There is never a second: the next one is made when this one is on its way, so a
	// slow Envoy holds up nothing but itself, and gets the newest when it is ready.
	handed  *response
	toDelta chan cache.DeltaResponse
	toWorld chan cache.Response
	unknown map[string]bool // types that were asked for and are not served
}

// ads is the gRPC service.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
}

// named are the types of which an empty first request asks for nothing. For the others
// it asks for everything.
var named = config.DeactivateLegacyWildcardForTypes([]string{string(xds.Endpoint), string(xds.Route), string(xds.Secret)})

// DeltaAggregatedResources serves a delta stream.
func (a ads) DeltaAggregatedResources(g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	st, err := a.server.newStream(g.Context(), false)
	if err != nil {
		return err
	}
	return st.serve(func() error {
		return delta.NewServer(st.ctx, st, st, named).DeltaStreamHandler(g, resource.AnyType)
	})
}

// StreamAggregatedResources serves a state-of-the-world stream. The ordered loop of
// go-control-plane is asked for: the other picks among waiting responses at random.
func (a ads) StreamAggregatedResources(g discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	st, err := a.server.newStream(g.Context(), true)
	if err != nil {
		return err
	}
	return st.serve(func() error {
		return sotw.NewServer(st.ctx, st, st, named, sotw.WithOrderedADS()).StreamHandler(g, resource.AnyType)
	})
}

// newStream returns a stream, or an error for one that says that it is somebody and
// cannot be.
func (s *Server) newStream(ctx context.Context, sotw bool) (*stream, error) {
	principal, err := s.opt.Identify(ctx)
	if err != nil {
		s.opt.Logger.Warn("stream refused: it is not known whose", zap.Error(err), zap.String("peer", peerAddress(ctx)))
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	st := &stream{
		server: s, principal: principal, wake: make(chan struct{}, 1), since: time.Now(), log: s.opt.Logger, unknown: map[string]bool{},
		plan: newPlan(waits{cluster: s.opt.ClusterWait, step: s.opt.StepWait, linger: s.opt.Linger}, sotw),
	}
	st.ctx, st.cancel = context.WithCancel(ctx)
	return st, nil
}

func peerAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// serve runs the protocol until the stream ends, and leaves nothing behind.
func (st *stream) serve(protocol func() error) error {
	st.server.add(st)
	done := make(chan struct{})
	go func() { defer close(done); st.run() }()
	err := protocol()
	st.cancel()
	<-done
	lost := st.server.remove(st)

	st.mu.Lock()
	refused, group, log := st.refused, st.group, st.log
	st.mu.Unlock()
	if lost {
		st.server.opt.OnAck(xds.Ack{Group: group, Node: st.id(), Gone: true})
	}
	if refused != nil {
		err = refused
	}
	log.Info("Envoy disconnected", zap.Error(err))
	return err
}

// run moves the Envoy: whenever something has happened it makes the next response.
func (st *stream) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		st.mu.Lock()
		st.hand(now)
		told, log, deadline := st.plan.news, st.log, st.plan.deadline(now)
		group, node := st.group, st.node.GetId()
		if group != "" {
			st.plan.news = news{}
		}
		st.mu.Unlock()
		if group != "" {
			st.tell(told, group, node, log)
		}
		timer.Reset(time.Hour)
		if !deadline.IsZero() {
			timer.Reset(time.Until(deadline))
		}
		select {
		case <-st.ctx.Done():
			return
		case <-st.wake:
		case <-timer.C:
		}
	}
}

// hand makes the next response and gives it to the loop, if that is free. The channels
// have room for one: they hold at least a response per type, and there is but one.
// The caller holds mu.
func (st *stream) hand(now time.Time) {
	if st.handed != nil {
		return
	}
	if st.handed = st.plan.next(now); st.handed != nil {
		st.pass()
	}
}

// pass gives the handed response to the loop. The caller holds mu.
func (st *stream) pass() {
	if st.handed.delta != nil {
		st.toDelta <- st.handed.forDelta()
	} else {
		st.toWorld <- st.handed.forWorld()
	}
}

// tell passes on answers. No lock is held.
func (st *stream) tell(n news, group xds.Group, node string, log *zap.Logger) {
	for _, d := range n.converged {
		st.server.metrics.convergence.Observe(d.Seconds())
	}
	for _, a := range n.acks {
		a.Group, a.Node = group, node
		if a.Error != "" {
			names := keys(a.Versions)
			log.Warn("Envoy refused resources; it keeps what it had", zap.String("type", a.Type.Short()), zap.Strings("resources", names), zap.String("words", a.Error))
		}
		st.server.opt.OnAck(a)
	}
}

// nudge makes run look again.
func (st *stream) nudge() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// end ends the stream with a gRPC error.
func (st *stream) end(err error) {
	st.mu.Lock()
	if st.refused == nil {
		st.refused = err
	}
	st.mu.Unlock()
	st.cancel()
}

// joinable returns the node once the Envoy has said it, nil before and after the end.
func (st *stream) joinable() *corev3.Node {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.refused != nil || st.ctx.Err() != nil {
		return nil
	}
	return st.node
}

// id returns node.id.
func (st *stream) id() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.node.GetId()
}

// begin joins the stream to its group.
func (st *stream) begin(group xds.Group, target map[xds.Type]map[string]*xds.Resource, now time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.group = group
	st.log = st.log.With(zap.String("group", string(group)), zap.String("node", st.node.GetId()))
	st.log.Info("Envoy connected", zap.String("version", version(st.node)), zap.String("stream", st.protocol()))
	st.plan.begin(target, now)
	st.nudge()
}

// change moves the stream's target.
func (st *stream) change(changes []xds.Change, now time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.plan.change(changes, now)
	st.nudge()
}

// identify notes who the Envoy is, and holds it to it: what it may have follows from
// it. The caller holds mu.
func (st *stream) identify(node *corev3.Node) (first bool, err error) {
	switch {
	case st.node == nil:
		if node == nil {
			node = &corev3.Node{}
		}
		if cluster := node.GetCluster(); st.principal != "" && cluster != "" && cluster != string(st.principal) {
			st.log.Warn("stream refused: its node says that it is another Gateway's Envoy than its certificate", zap.String("certificate", string(st.principal)),
				zap.String("cluster", cluster), zap.String("node", node.GetId()), zap.String("peer", peerAddress(st.ctx)))
			return false, status.Errorf(codes.PermissionDenied, "node.cluster is %q, and the certificate is of an Envoy of %q", cluster, st.principal)
		}
		st.node = node
		return true, nil
	case node == nil || node.GetId() == st.node.GetId() && node.GetCluster() == st.node.GetCluster():
		return false, nil
	}
	return false, status.Errorf(codes.PermissionDenied, "node changed from %q of %q to %q of %q within a stream",
		st.node.GetId(), st.node.GetCluster(), node.GetId(), node.GetCluster())
}

func (st *stream) protocol() string {
	if st.plan.sotw {
		return "state of the world"
	}
	return "delta"
}

// version returns what an Envoy says of its version, "1.40.0", or "".
func version(node *corev3.Node) string {
	v := node.GetUserAgentBuildVersion().GetVersion()
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
}
