// Package extproc is what runs beside each Envoy: one ext_proc gRPC server on a Unix
// socket or the loopback address. A stream's initial metadata says which part it is
// for: extproc/model reads the model out of request bodies, extproc/picker asks the
// endpoint picker of a pool. The server knows neither Kubernetes nor routes; Envoy's
// configuration tells it all it needs (extproc/contract).
package extproc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"signalbox.dev/extproc/contract"
	"signalbox.dev/extproc/model"
	"signalbox.dev/extproc/picker"
)

// DefaultDrainTimeout is how long streams in flight may go on after the stop.
const DefaultDrainTimeout = 8 * time.Second

// serviceName is the gRPC service that Envoy's filters call.
const serviceName = "envoy.service.ext_proc.v3.ExternalProcessor"

// Config of a Server.
type Config struct {
	// Listen is "unix:PATH" or "HOST:PORT"; only Run uses it.
	Listen string
	// AllowRemote permits an address that is not the loopback's. The protocol is
	// plaintext: whoever reaches the port decides where requests go.
	AllowRemote bool

	Logger     *zap.Logger           // nil: silent
	Registerer prometheus.Registerer // nil: no metrics are exposed

	// HoldLimit, in bytes, and MaxConcurrent, in requests, are those of model.Config.
	HoldLimit     int
	MaxConcurrent int
	// BodyBudget and StreamBudget, in bytes, are those of picker.Config.
	BodyBudget, StreamBudget int64

	// DrainTimeout bounds the end of streams in flight. 0: DefaultDrainTimeout.
	DrainTimeout time.Duration
}

// part serves the streams that are meant for it. It returns nil only after an
// answer: Envoy lets a request go on whose stream ends well without one.
type part interface {
	Serve(stream grpc.ServerStream) error
}

// Server is the ext_proc server with its parts.
type Server struct {
	log   *zap.Logger
	parts map[string]part // by the value of contract.KeyPart
	relay *picker.Relay   // one of the parts; it has connections to close
	drain time.Duration
}

// New returns a Server, for one call of Serve. An error names the field of the config that is wrong.
func New(c Config) (*Server, error) {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = DefaultDrainTimeout
	}
	extractor, err := model.New(model.Config{Logger: c.Logger, Registerer: c.Registerer, HoldLimit: c.HoldLimit, MaxConcurrent: c.MaxConcurrent})
	if err != nil {
		return nil, err
	}
	relay := picker.New(picker.Config{Logger: c.Logger, Registerer: c.Registerer, BodyBudget: c.BodyBudget, StreamBudget: c.StreamBudget})
	return &Server{log: c.Logger, drain: c.DrainTimeout, relay: relay,
		parts: map[string]part{contract.PartModel: extractor, contract.PartPicker: relay}}, nil
}

// Run listens on c.Listen and serves until ctx ends.
func Run(ctx context.Context, c Config) error {
	l, err := Listen(ctx, c.Listen, c.AllowRemote)
	if err != nil {
		return err
	}
	s, err := New(c)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return s.Serve(ctx, l)
}

// Serve serves on l until ctx ends; then the health service says NOT_SERVING, new
// streams are refused, and those in flight may end within the drain timeout. It
// closes l and returns nil after a stop that was asked for.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	alive := health.NewServer()
	g := grpc.NewServer(
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxRecvMsgSize(model.MaxMessage),
		grpc.WaitForHandlers(true),
		// Envoy's HTTP/2 keepalive may be this short; the default of 5 min would
		// answer it with GOAWAY too_many_pings.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "Process", Handler: s.process, ServerStreams: true, ClientStreams: true}},
	}, nil)
	healthv1.RegisterHealthServer(g, alive)
	alive.SetServingStatus(serviceName, healthv1.HealthCheckResponse_SERVING)

	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	s.log.Info("ext_proc server is up", zap.Stringer("address", l.Addr()))
	select {
	case err := <-served:
		return fmt.Errorf("ext_proc server on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	alive.Shutdown()
	s.stop(g)
	s.relay.Close()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("ext_proc server on %s: %w", l.Addr(), err)
	}
	return nil
}

// stop lets streams in flight end, but not for ever.
func (s *Server) stop(g *grpc.Server) {
	stopped := make(chan struct{})
	go func() {
		g.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(s.drain):
		s.log.Warn("streams in flight are cut", zap.Duration("drain", s.drain))
		g.Stop()
		<-stopped
	}
}

// process hands a stream to the part that its initial metadata names.
func (s *Server) process(_ any, stream grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	name := md.Get(contract.KeyPart)
	if len(name) == 1 {
		if p := s.parts[name[0]]; p != nil {
			return p.Serve(stream)
		}
	}
	return status.Errorf(codes.InvalidArgument, "initial metadata %s is %q; want %s or %s", contract.KeyPart, name, contract.PartModel, contract.PartPicker)
}
