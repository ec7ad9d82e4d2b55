package picker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

func TestFollowDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // of what DNS says
		var answer []netip.Addr
		var failure error
		says := func(a []netip.Addr, err error) {
			mu.Lock()
			defer mu.Unlock()
			answer, failure = a, err
		}
		lookup := func(_ context.Context, network, host string) ([]netip.Addr, error) {
			if network != "ip" || host != "pods.ns.svc" {
				t.Errorf("asked for %s %s", network, host)
			}
			mu.Lock()
			defer mu.Unlock()
			return answer, failure
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		e := &Endpoints{}
		name, err := parseDNSName("pods.ns.svc:8000")
		if err != nil {
			t.Fatal(err)
		}
		says(nil, errors.New("no server"))
		go e.follow(ctx, name, lookup, zap.NewNop())
		step := func(what string, known bool, want ...string) {
			t.Helper()
			<-time.After(2 * dnsInterval) // of the bubble's clock
			synctest.Wait()
			if list, k := e.get(); k != known || !cmp.Equal(want, list) && len(want)+len(list) > 0 {
				t.Errorf("%s: %v, known %t; want %v, %t", what, list, k, want, known)
			}
		}
		step("before DNS answers nothing is known", false)
		says([]netip.Addr{netip.MustParseAddr("::ffff:10.0.0.2"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.1")}, nil)
		step("addresses", true, "10.0.0.1:8000", "10.0.0.2:8000", "[fd00::1]:8000")
		says(nil, errors.New("i/o timeout"))
		step("a failure changes nothing", true, "10.0.0.1:8000", "10.0.0.2:8000", "[fd00::1]:8000")
		says(nil, &net.DNSError{Err: "no such host", IsNotFound: true})
		step("no such name: not believed at once", true, "10.0.0.1:8000", "10.0.0.2:8000", "[fd00::1]:8000")
		<-time.After(dnsDoubt)
		step("no such name: no ready pod", true)
		says([]netip.Addr{netip.MustParseAddr("10.0.0.3")}, nil)
		step("back at once", true, "10.0.0.3:8000")
	})
}

func TestParseDNSName(t *testing.T) {
	if n, err := parseDNSName("pods:8000"); err != nil || n != (dnsName{"pods", 8000}) {
		t.Error(n, err)
	}
	for _, s := range []string{"pods", "pods:", "pods:http", "pods:0", "pods:65536", ":8000", ""} {
		if _, err := parseDNSName(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
	if _, err := New(Config{Name: "p", EndpointsDNS: "pods"}); err == nil {
		t.Error("a picker without a port to pick was made")
	}
}
