package controlplane

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"signalbox.dev/provision/pki"
	"signalbox.dev/xds"
)

// identify says whose Envoy a stream is of: the Gateway in its client certificate, which
// TLS has verified. A stream without TLS came over loopback or a socket, and says itself.
func identify(ctx context.Context) (xds.Group, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", errors.New("the stream comes from nowhere")
	}
	if p.AuthInfo == nil || p.AuthInfo.AuthType() == "insecure" {
		return "", nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return "", errors.New("the client certificate has not been verified")
	}
	namespace, name, err := pki.Identity(info.State.VerifiedChains[0][0])
	if err != nil {
		return "", err
	}
	return xds.Group(fmt.Sprintf("%s/%s", namespace, name)), nil
}
