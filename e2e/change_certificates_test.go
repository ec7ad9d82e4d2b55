package e2e

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestChangeCertificates: all certificates of a Gateway are replaced 20 times; new
// connections see the new ones, and nobody else notices anything.
func TestChangeCertificates(t *testing.T) {
	x := newStanding(t)
	c := startRotation(t, x)
	c.load.hold(x.toA)
	var took []time.Duration
	for range 20 {
		took = append(took, c.rotate())
		c.load.during(20)
	}
	slices.Sort(took)
	t.Logf("new certificates were seen after %v at best, %v in the middle, %v at worst", took[0], took[10], took[19])
	if took[5] > 2*time.Second { // of the slower ones the machine may be the cause
		t.Errorf("a new certificate takes %v, should take 2 s at most", took[5])
	}

	// A key of another certificate, and then no Secret at all: the last good one stays.
	next := issue(t)
	broken := slices.Clone(next)
	broken[0].Key = next[1].Key
	c.Write("secrets.yaml", yamlSecrets(broken))
	c.current[1], c.current[2] = next[1], next[2]
	c.stay()
	c.Remove("secrets.yaml")
	waitFor(t, "the Gateway says that its certificates are missing", func() bool {
		return strings.HasPrefix(c.condition("Gateway", "default/gw", "listener https-1", "ResolvedRefs"), "False InvalidCertificateRef")
	})
	c.load.during(50)
	c.stay()
	c.rotate()
	c.end()
}

// rotation is a Gateway with three HTTPS listeners under load, and the certificates that
// they should serve.
type rotation struct {
	*changing
	address string
	current []certificate // of each listener
}

// rotated are the hostnames of the listeners, and under which name a client comes.
var rotated = [][2]string{{"one.example.com", "one.example.com"}, {"two.example.com", "two.example.com"}, {"*.wild.example.com", "any.wild.example.com"}}

func startRotation(t *testing.T, x *standing) *rotation {
	t.Helper()
	c := &rotation{current: issue(t)}
	x.files["gateway.yaml"] = yamlHTTPSGateway(rotated[0][0], rotated[1][0], rotated[2][0])
	x.files["secrets.yaml"] = yamlSecrets(c.current)
	c.changing = runChanging(t, x.ledger, x.files, boxOptions{Listeners: []int{443}, Ready: 3})
	c.address = fmt.Sprintf("127.0.0.1:%d", c.Ports[443])
	for _, target := range []*loadTarget{x.toA, x.toB, x.toS} {
		target.host = rotated[0][1]
	}
	c.load = startLoad(t, "https://"+c.address, x.ledger, &tls.Config{InsecureSkipVerify: true, ServerName: rotated[0][1]}, x.toA, x.toB, x.toS)
	c.before = c.envoy.stats(listenerStats)
	return c
}

// issue makes a new certificate for each listener.
func issue(t testing.TB) (out []certificate) {
	t.Helper()
	for _, h := range rotated {
		out = append(out, newCertificate(t, h[0]))
	}
	return out
}

func yamlSecrets(of []certificate) (out string) {
	for i, c := range of {
		out += yamlSecret(fmt.Sprintf("cert-%d", i), c)
	}
	return out
}

// serves says whether a new connection to the i-th listener sees its current certificate.
func (c *rotation) serves(i int) bool {
	c.box.t.Helper()
	conn, err := tls.Dial("tcp", c.address, &tls.Config{RootCAs: c.current[i].pool(c.box.t), ServerName: rotated[i][1]})
	if err == nil {
		conn.Close()
	} else if !strings.Contains(err.Error(), "certificate") {
		c.box.t.Fatalf("handshake with %s: %v", rotated[i][1], err)
	}
	return err == nil
}

// rotate replaces all certificates and returns how long it takes until they are seen.
func (c *rotation) rotate() time.Duration {
	c.box.t.Helper()
	c.current = issue(c.box.t)
	started := time.Now()
	c.Write("secrets.yaml", yamlSecrets(c.current))
	for i, h := range rotated {
		waitFor(c.box.t, "a new connection to "+h[1]+" sees the new certificate", func() bool { return c.serves(i) })
	}
	return time.Since(started)
}

// stay waits until each listener serves its certificate, and makes sure that it goes on.
func (c *rotation) stay() {
	c.box.t.Helper()
	all := func() bool { return c.serves(0) && c.serves(1) && c.serves(2) }
	waitFor(c.box.t, "every listener serves its last good certificate", all)
	c.load.during(30)
	if !all() {
		c.box.t.Error("a last good certificate is not served any more")
	}
}

// condition returns "STATUS REASON MESSAGE" of a condition of an object; where is
// "listener NAME", "parent NAMESPACE/NAME" or, of the object itself, "".
func (b *box) condition(kind, object, where, typ string) string {
	b.t.Helper()
	type condition struct{ Type, Status, Reason, Message string }
	var page struct {
		Objects []struct {
			Kind, Namespace, Name string
			Status                struct {
				Conditions []condition
				Listeners  []struct {
					Name       string
					Conditions []condition
				}
				Parents []struct {
					ParentRef  struct{ Namespace, Name, SectionName string }
					Conditions []condition
				}
			}
		}
	}
	b.adminJSON("/debug/status", &page)
	for _, o := range page.Objects {
		if o.Kind != kind || o.Namespace+"/"+o.Name != object {
			continue
		}
		found := map[string][]condition{"": o.Status.Conditions}
		for _, l := range o.Status.Listeners {
			found["listener "+l.Name] = l.Conditions
		}
		for _, p := range o.Status.Parents {
			found[strings.TrimSuffix("parent "+p.ParentRef.Name+"/"+p.ParentRef.SectionName, "/")] = p.Conditions
		}
		for _, c := range found[where] {
			if c.Type == typ {
				return c.Status + " " + c.Reason + " " + c.Message
			}
		}
	}
	return ""
}

// yamlHTTPSGateway is a GatewayClass and a Gateway default/gw with an HTTPS listener on
// 443 for each hostname, "" for none. Listener https-N has Secret cert-N.
func yamlHTTPSGateway(hostnames ...string) string {
	out, _, _ := strings.Cut(yamlGateway, "  listeners:")
	out += "  listeners:\n"
	for i, h := range hostnames {
		out += fmt.Sprintf("  - {name: https-%d, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert-%d}]}", i, i)
		if h != "" {
			out += fmt.Sprintf(", hostname: %q", h)
		}
		out += "}\n"
	}
	return out
}
