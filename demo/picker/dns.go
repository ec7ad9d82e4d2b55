package picker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"go.uber.org/zap"
)

const (
	// dnsInterval is how often a DNS name is asked for again.
	dnsInterval = time.Second
	// dnsDoubt is how long a name must have no address before that is believed: a cluster
	// that has not heard from its nodes for a moment takes all Pods for not ready.
	dnsDoubt = 10 * time.Second
)

// dnsName is a name whose addresses are endpoints, on one port.
type dnsName struct {
	host string
	port uint16
}

func parseDNSName(s string) (dnsName, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return dnsName{}, fmt.Errorf("endpoints %q: want NAME:PORT: %w", s, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" {
		return dnsName{}, fmt.Errorf("endpoints %q: want NAME:PORT", s)
	}
	return dnsName{host, uint16(n)}, nil
}

// follow reads the name's addresses into the list until ctx ends. A name that does not
// exist has none: so says a cluster's DNS of a headless Service without a ready pod. That
// all of them have gone is believed after dnsDoubt. Of a name that cannot be asked for,
// nothing new is known.
func (e *Endpoints) follow(ctx context.Context, name dnsName, lookup func(ctx context.Context, network, host string) ([]netip.Addr, error), log *zap.Logger) {
	tick := time.NewTicker(dnsInterval)
	defer tick.Stop()
	var said string
	seen := time.Now() // an address
	for {
		changed := e.changed()
		addresses, err := lookup(ctx, "ip", name.host)
		var none *net.DNSError
		if errors.As(err, &none) && none.IsNotFound {
			addresses, err = nil, nil
		}
		if len(addresses) > 0 {
			seen = time.Now()
		}
		if err == nil && (len(addresses) > 0 || len(e.Get()) == 0 || time.Since(seen) >= dnsDoubt) {
			list := make([]string, len(addresses))
			for i, a := range addresses {
				list[i] = netip.AddrPortFrom(a.Unmap(), name.port).String()
			}
			err = e.Set(list)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != said:
			said = err.Error()
			log.Warn("endpoints stay as they were", zap.String("name", name.host), zap.Error(err))
		case err == nil:
			said = ""
		}
		select {
		case <-changed:
			log.Info("endpoints read", zap.String("name", name.host), zap.Strings("endpoints", e.Get()))
		default:
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
