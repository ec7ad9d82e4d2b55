package standalone

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator"
)

// announcer prints one line for each listener once it answers. It is a status.Writer:
// a listener is worth trying when its Gateway's status says that an Envoy has taken it;
// its port opens only after its routes have arrived there too, so it is dialled.
type announcer struct {
	out  io.Writer
	opt  translator.Options
	news chan struct{} // holds one token while there may be something to announce

	mu       sync.Mutex
	gateways map[string]*gatewayv1.Gateway
	ready    map[string]bool // "namespace/name listener": Programmed=True
	said     map[string]bool
}

func newAnnouncer(out io.Writer, opt translator.Options) *announcer {
	return &announcer{out: out, opt: opt, news: make(chan struct{}, 1), gateways: map[string]*gatewayv1.Gateway{}, ready: map[string]bool{}, said: map[string]bool{}}
}

// objects notes the Gateways as they are now.
func (a *announcer) objects(objects []source.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gateways = map[string]*gatewayv1.Gateway{}
	for _, o := range objects {
		if gw, ok := o.(*gatewayv1.Gateway); ok {
			a.gateways[gw.Namespace+"/"+gw.Name] = gw
		}
	}
}

// Write implements status.Writer.
func (a *announcer) Write(statuses []translator.Status) {
	a.mu.Lock()
	for _, s := range statuses {
		if s.Ref.Kind != source.KindGateway {
			continue
		}
		gateway := s.Ref.Namespace + "/" + s.Ref.Name
		for k := range a.ready {
			if strings.HasPrefix(k, gateway+" ") {
				delete(a.ready, k)
			}
		}
		if s.Gateway == nil {
			continue
		}
		for _, l := range s.Gateway.Listeners {
			for _, c := range l.Conditions {
				if c.Type == string(gatewayv1.ListenerConditionProgrammed) && c.Status == metav1.ConditionTrue {
					a.ready[gateway+" "+string(l.Name)] = true
				}
			}
		}
	}
	a.mu.Unlock()
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// run announces until ctx ends.
func (a *announcer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.news:
		}
		for _, l := range a.due() {
			if !dialable(ctx, l.address) {
				continue
			}
			fmt.Fprintf(a.out, "ready %s://%s gateway=%s listener=%s\n", l.scheme, l.address, l.gateway, l.name)
			a.mu.Lock()
			a.said[l.gateway+" "+l.name] = true
			a.mu.Unlock()
		}
	}
}

type readyListener struct{ gateway, name, scheme, address string }

// due returns the listeners that are programmed and not announced.
func (a *announcer) due() []readyListener {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []readyListener
	for name, gw := range a.gateways {
		for _, l := range gw.Spec.Listeners {
			k := name + " " + string(l.Name)
			if !a.ready[k] || a.said[k] {
				continue
			}
			port := l.Port
			if p, ok := a.opt.Ports[port]; ok {
				port = p
			}
			host := a.opt.BindAddress
			if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
				host = "127.0.0.1"
			}
			out = append(out, readyListener{name, string(l.Name), strings.ToLower(string(l.Protocol)), net.JoinHostPort(host, fmt.Sprint(port))})
		}
	}
	return out
}

// dialable waits until the address accepts a connection, at most 10 s.
func dialable(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		var d net.Dialer
		if c, err := d.DialContext(ctx, "tcp", address); err == nil {
			c.Close()
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}
