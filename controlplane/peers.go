package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"signalbox.dev/provision/pki"
)

// Each replica follows what the Envoys of every other have taken: an Envoy is connected
// to one replica, and the leader, which writes statuses, is perhaps another. Replicas
// find each other by the endpoints of the Service that Envoys come through, and show each
// other certificates of the authority that they share.

// serviceName is the Service of all replicas.
const serviceName = "signalbox"

const acksMethod = "/signalbox.v1.Replicas/Acks"

// report is what a replica says to those that follow it, whole each time.
type report struct {
	Replica string  `json:"replica"`
	Acks    []entry `json:"acks"`
}

// peers is this replica among the others.
type peers struct {
	replica   string // unique
	book      *ackBook
	authority *authority
	log       *zap.Logger
}

// pause is the shortest time between two reports to one follower.
const pause = 50 * time.Millisecond

// register serves this replica's own words. Only other replicas may follow.
func (p *peers) register(s *grpc.Server) {
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "signalbox.v1.Replicas", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Acks", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error { return p.serve(stream) }}}}, nil)
}

func (p *peers) serve(stream grpc.ServerStream) error {
	if !isReplica(stream.Context()) {
		p.log.Warn("somebody who is not a replica asks for what Envoys have said")
		return status.Error(codes.PermissionDenied, "the certificate is not a replica's")
	}
	for {
		acks, changed := p.book.own()
		b, err := json.Marshal(report{p.replica, acks})
		if err != nil {
			return err
		}
		if err := stream.SendMsg(wrapperspb.Bytes(b)); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-time.After(pause):
		}
	}
}

func isReplica(ctx context.Context) bool {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
			return pki.IsReplica(info.State.VerifiedChains[0][0])
		}
	}
	return false
}

var errSelf = errors.New("this is the replica itself")

// follow keeps the words of the replica at an address until ctx ends.
func (p *peers) follow(ctx context.Context, address string) {
	via, failures := "", 0
	for ctx.Err() == nil {
		err := p.listen(ctx, address, func(r report) {
			via, failures = r.Replica, 0
			p.book.takeFrom(via, r.Acks)
		})
		if errors.Is(err, errSelf) {
			return
		}
		if via != "" {
			p.book.takeFrom(via, nil)
		}
		if failures++; failures == 3 && ctx.Err() == nil { // not while it only starts or ends
			p.log.Warn("another replica does not answer", zap.String("address", address), zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// listen follows one replica as long as it answers.
func (p *peers) listen(ctx context.Context, address string, take func(report)) error {
	config, err := p.authority.asReplica(time.Now())
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second})) // a node that has gone says nothing
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, acksMethod, grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		var m wrapperspb.BytesValue
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		var r report
		if err := json.Unmarshal(m.GetValue(), &r); err != nil {
			return err
		}
		if r.Replica == p.replica {
			return errSelf
		}
		take(r)
	}
}

// run follows all other replicas until ctx ends.
func (p *peers) run(ctx context.Context, client kubernetes.Interface, namespace string) error {
	lw := cache.NewFilteredListWatchFromClient(client.DiscoveryV1().RESTClient(), "endpointslices", namespace,
		func(o *metav1.ListOptions) { o.LabelSelector = discoveryv1.LabelServiceName + "=" + serviceName })
	informer := cache.NewSharedInformer(lw, &discoveryv1.EndpointSlice{}, 0)
	wake := make(chan struct{}, 1)
	look := func(any) {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, o any) { look(o) }, DeleteFunc: look}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { informer.RunWithContext(ctx) })
	following := map[string]context.CancelFunc{}
	for {
		select {
		case <-ctx.Done():
			for _, end := range following {
				end()
			}
			return nil
		case <-wake:
		}
		there := addresses(informer.GetStore().List())
		for address := range there {
			if following[address] == nil {
				own, end := context.WithCancel(ctx)
				following[address] = end
				wg.Go(func() { p.follow(own, address) })
			}
		}
		for address, end := range following {
			if !there[address] {
				end()
				delete(following, address)
			}
		}
	}
}

// addresses returns where the replicas of some EndpointSlices are, ready or not.
func addresses(slices []any) map[string]bool {
	out := map[string]bool{}
	for _, o := range slices {
		s, ok := o.(*discoveryv1.EndpointSlice)
		if !ok || len(s.Ports) == 0 || s.Ports[0].Port == nil {
			continue // the Service has one port
		}
		for _, e := range s.Endpoints {
			if len(e.Addresses) > 0 {
				out[net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*s.Ports[0].Port)))] = true
			}
		}
	}
	return out
}

// asReplica returns how this replica shows itself to another.
func (a *authority) asReplica(now time.Time) (*tls.Config, error) {
	ca := a.current.Load()
	if ca == nil {
		return nil, errors.New("the certificate authority is not known yet")
	}
	pair, err := ca.Replica(now)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca.Bundle())
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: a.serverName, RootCAs: trusted, Certificates: []tls.Certificate{cert}}, nil
}
