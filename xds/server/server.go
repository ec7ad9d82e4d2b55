// Package server brings the resources of the translator to Envoys over ADS, delta and
// state of the world, in an order in which no request fails: an Envoy never gets a
// route before the cluster that it names is warm, and never loses a cluster that a
// request may still need. The snapshot cache of go-control-plane cannot do that: it
// answers each type by itself, removals first (facts: 82 to 119 of 7,000 requests
// failed).
//
// Publish merges a change into the target of its group and tells the streams of the
// group. From there each stream moves its own Envoy, at that Envoy's pace:
//
//	server.go     groups and their targets; which stream belongs to which
//	stream.go     one Envoy's stream: its goroutine, its lock, its end
//	watch.go      what go-control-plane's stream loop calls: ConfigWatcher and callbacks
//	plan.go       where one Envoy is and should go: the versions of each resource
//	subscribe.go  what the Envoy wants, and what it brings from an earlier stream
//	steps.go      the order table and what is next by it
//	response.go   messages
//	answer.go     ACKs and NACKs
//	debug.go      what /debug/xds and /debug/config show
//	metrics.go    signalbox_xds_…
//
// go-control-plane (pkg/server/delta and /sotw) runs the protocol: it reads, writes,
// numbers and drops stale requests. It is given one server per stream, whose
// ConfigWatcher and callbacks are that stream, because a ConfigWatcher alone learns
// neither which stream asks nor what was refused. Start with steps.go.
//
// An EDS resource has the name of its cluster.
//
// One limit is the protocol's: a state-of-the-world Envoy that reconnects does not say
// what it holds, and its first CDS answer takes away what the target lost while it was
// away, before its routes have moved on. Delta has no such gap.
package server

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"signalbox.dev/xds"
)

// Options says how a Server works. The zero value of each field is its default.
type Options struct {
	Logger     *zap.Logger           // default: none
	Registerer prometheus.Registerer // where the metrics go; default: nowhere
	// OnAck is told every answer of every Envoy, in its order for one Envoy, from
	// goroutines of several. No lock is held; blocking it delays that Envoy alone.
	OnAck func(xds.Ack)
	// Identify says whose Envoy a stream is of, by what cannot be forged: its client
	// certificate. It gets that group and no other, whatever its node says. "" leaves it
	// to node.cluster, an error refuses the stream. Default: node.cluster always.
	Identify func(context.Context) (xds.Group, error)
	// ClusterWait bounds how long routes wait for the CDS answer, which Envoy holds
	// back until the clusters are warm. Default 5 s: the initial_fetch_timeout of
	// clusters (3 s), a first health check, and a second.
	ClusterWait time.Duration
	// StepWait bounds how long an unanswered response of another type holds back the
	// next of its type. Default 5 s.
	StepWait time.Duration
	// Linger is how long what is not needed any more stays after the Envoy has taken
	// what replaces it: at least the longest time that filters may hold a request.
	// Default 30 s.
	Linger time.Duration
}

// Server serves ADS.
type Server struct {
	opt     Options
	metrics *metrics

	mu      sync.Mutex // before any stream's mu; never held while something blocks
	synced  bool
	groups  map[xds.Group]*group
	streams map[*stream]struct{}
}

// group is the target of the Envoys of one Gateway.
type group struct {
	target  map[xds.Type]map[string]*xds.Resource
	size    int // resources in target; a group without any does not exist
	streams map[*stream]struct{}
}

// New returns a server that has nothing to serve yet.
func New(opt Options) *Server {
	if opt.Logger == nil {
		opt.Logger = zap.NewNop()
	}
	if opt.Identify == nil {
		opt.Identify = func(context.Context) (xds.Group, error) { return "", nil }
	}
	if opt.OnAck == nil {
		opt.OnAck = func(xds.Ack) {}
	}
	opt.ClusterWait = cmp.Or(opt.ClusterWait, 5*time.Second)
	opt.StepWait = cmp.Or(opt.StepWait, 5*time.Second)
	opt.Linger = cmp.Or(opt.Linger, 30*time.Second)
	return &Server{opt: opt, metrics: newMetrics(opt.Registerer), groups: map[xds.Group]*group{}, streams: map[*stream]struct{}{}}
}

// Register adds ADS, and no other xDS service, to a gRPC server. Stop that one with
// Stop, not GracefulStop: ADS streams do not end by themselves.
func (s *Server) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, ads{server: s})
}

// GRPCOptions are the options that a gRPC server for Envoys needs.
func GRPCOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		// Envoy pings every 30 s at most; the default would close such connections.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 30 * time.Second, Timeout: 20 * time.Second, // finds Envoys whose machine has gone
			// Spreads Envoys over replicas again; gRPC adds a tenth at random.
			MaxConnectionAge: 11 * time.Hour, MaxConnectionAgeGrace: 2 * time.Minute,
		}),
		// A reconnecting Envoy says every name and version that it has in one message.
		grpc.MaxRecvMsgSize(32 << 20),
	}
}

// Publish moves the target by changes, which belong together: no Envoy is moved to a
// part of them. The first call, with or without changes, says that the sources have
// been read; until then streams stay open unanswered. It returns at once.
func (s *Server) Publish(changes []xds.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	byGroup := map[xds.Group][]xds.Change{}
	for _, c := range changes {
		byGroup[c.Group] = append(byGroup[c.Group], c)
	}
	for name, own := range byGroup {
		g := s.groups[name]
		if g == nil {
			g = &group{target: map[xds.Type]map[string]*xds.Resource{}, streams: map[*stream]struct{}{}}
			s.groups[name] = g
		}
		for _, c := range own {
			g.set(c)
		}
		for st := range g.streams {
			st.change(own, now)
		}
		if g.size == 0 && len(g.streams) == 0 {
			delete(s.groups, name)
		}
	}
	s.synced = true
	s.regroup(now)
}

// Synced is true once there was a first Publish.
func (s *Server) Synced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

func (g *group) set(c xds.Change) {
	of := g.target[c.Type]
	if of == nil {
		of = map[string]*xds.Resource{}
		g.target[c.Type] = of
	}
	before := len(of)
	if c.Resource == nil {
		delete(of, c.Name)
	} else {
		of[c.Name] = c.Resource
	}
	g.size += len(of) - before
}

// regroup joins streams to groups that have come, and ends those whose group has gone
// and was not the one they name, so that they come again and get another.
// The caller holds mu.
func (s *Server) regroup(now time.Time) {
	known := s.known()
	for st := range s.streams {
		switch node := st.joinable(); {
		case node == nil:
		case st.group == "":
			s.join(st, node, known, now)
		case st.principal == "" && node.GetCluster() != string(st.group) && s.groups[st.group].size == 0 && len(known) > 0:
			st.end(status.Errorf(codes.Unavailable, "Gateway %s has gone", st.group))
		}
	}
}

// joins tries to join a stream that has said who it is.
func (s *Server) joins(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if node := st.joinable(); node != nil && st.group == "" {
		s.join(st, node, s.known(), time.Now())
	}
}

// known lists the groups that exist, sorted. The caller holds mu.
func (s *Server) known() []xds.Group {
	var known []xds.Group
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		if s.groups[name].size > 0 {
			known = append(known, name)
		}
	}
	return known
}

// join gives the stream its group: the one that node.cluster names, or the only one.
// While there is none at all the stream waits; one that cannot be told apart is
// refused with words that say what to set. The caller holds mu.
func (s *Server) join(st *stream, node *corev3.Node, known []xds.Group, now time.Time) {
	if !s.synced || len(known) == 0 {
		return
	}
	name := cmp.Or(st.principal, xds.Group(node.GetCluster()))
	if g := s.groups[name]; g == nil || g.size == 0 {
		if st.principal != "" {
			return // its Gateway is not served yet, or any more
		}
		if len(known) > 1 {
			st.end(refusal(node, known))
			return
		}
		name = known[0]
	}
	g := s.groups[name]
	g.streams[st] = struct{}{}
	st.begin(name, g.target, now)
}

// refusal tells an Envoy of which several Gateways it should be. Only so many are
// listed: the words end up in Envoy's log.
func refusal(node *corev3.Node, known []xds.Group) error {
	const most = 20
	list := make([]string, 0, most)
	for _, g := range known[:min(most, len(known))] {
		list = append(list, string(g))
	}
	more := ""
	if len(known) > most {
		more = fmt.Sprintf(" and %d more", len(known)-most)
	}
	if node.GetCluster() == "" {
		return status.Errorf(codes.FailedPrecondition, "set node.cluster (envoy --service-cluster) to the Gateway whose Envoy this is, one of: %s%s", strings.Join(list, ", "), more)
	}
	return status.Errorf(codes.FailedPrecondition, "node.cluster %q is no Gateway; set it (envoy --service-cluster) to one of: %s%s", node.GetCluster(), strings.Join(list, ", "), more)
}

// add and remove keep the list of streams.
func (s *Server) add(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st] = struct{}{}
	s.metrics.clients.Set(float64(len(s.streams)))
}

// remove returns true if the group has lost the Envoy with that: an Envoy that came
// again before its old stream was found dead is still there.
func (s *Server) remove(st *stream) (lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	s.metrics.clients.Set(float64(len(s.streams)))
	g := s.groups[st.group]
	if g == nil {
		return false
	}
	delete(g.streams, st)
	if g.size == 0 && len(g.streams) == 0 {
		delete(s.groups, st.group)
	}
	for other := range g.streams {
		if other.id() == st.id() {
			return false
		}
	}
	return true
}
