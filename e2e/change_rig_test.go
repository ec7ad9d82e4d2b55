package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"signalbox.dev/demo/picker"
)

// changing is a box under load, of which a test changes something.
type changing struct {
	*box
	ledger *ledger
	load   *load
	envoy  *envoyAdmin
	before map[string]int64 // Envoy's counters when the load had begun
}

// runChanging runs a box. The load begins with begin.
func runChanging(t *testing.T, l *ledger, files map[string]string, o boxOptions) *changing {
	t.Helper()
	// The Envoy's own admin socket is in the folder of sockets of `signalbox run`.
	tmp, err := os.MkdirTemp("", "sb") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	t.Setenv("TMPDIR", tmp)
	c := &changing{ledger: l, box: startBox(t, files, o)}
	sockets, err := filepath.Glob(filepath.Join(tmp, "signalbox-*", "default_gw.admin.sock"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("admin sockets of Envoys: %v %v", sockets, err)
	}
	c.envoy = newEnvoyAdmin(t, "unix", sockets[0])
	return c
}

// begin starts the load, and notes how Envoy's listeners are.
func (c *changing) begin(targets ...*loadTarget) {
	c.box.t.Helper()
	c.load = startLoad(c.box.t, c.URL, c.ledger, nil, targets...)
	c.before = c.envoy.stats(listenerStats)
}

// end ends the load: nothing has failed, no listener has changed.
func (c *changing) end() {
	c.box.t.Helper()
	c.load.finish()
	c.envoy.undisturbed(c.before)
}

// change does something to the folder and waits until the Envoy has taken what follows
// from it; something must.
func (c *changing) change(do func()) {
	c.box.t.Helper()
	before, _ := c.wanted()
	do()
	waitFor(c.box.t, "the Envoy has taken a change", func() bool {
		now, taken := c.wanted()
		return now != before && taken
	})
}

// move changes where a target goes: in between either will do, afterwards the new way
// only.
func (c *changing) move(x *loadTarget, to []*pod, pickers []string, do func()) {
	c.box.t.Helper()
	was := x.want.Load()
	x.expect(to, pickers...)
	now := x.want.Load()
	x.want.Store(&expectation{append(slices.Clone(was.pods), now.pods...), append(slices.Clone(was.pickers), now.pickers...)})
	c.change(do)
	// An Envoy says that it has taken a table a moment before its workers use it.
	c.load.settle()
	x.want.Store(now)
	c.load.during(20)
}

// wanted identifies what the Envoys should have, and says whether they have it. What is
// kept a while longer does not count.
func (b *box) wanted() (versions string, taken bool) {
	var envoys []struct {
		Node, Step string
		Types      map[string]struct{ WantedVersion string }
	}
	b.adminJSON("/debug/xds", &envoys)
	taken = len(envoys) > 0
	for _, e := range envoys {
		taken = taken && (e.Step == "in sync" || strings.HasPrefix(e.Step, "3 "))
		types, err := json.Marshal(e.Types)
		if err != nil {
			b.t.Fatal(err)
		}
		versions += e.Node + string(types)
	}
	return versions, taken
}

// listenerStats are counters that move when a listener is changed, drained or refused, or
// anything else is refused.
const listenerStats = `^listener_manager\.(listener_(added|modified|removed|in_place_updated|create_failure)|total_(listeners|filter_chains)_draining|lds\.update_success|lds\.version)$` +
	`|downstream_cx_drain_close$|\.update_rejected$`

// envoyAdmin is the admin interface of an Envoy.
type envoyAdmin struct {
	t      testing.TB
	client *http.Client
}

func newEnvoyAdmin(t testing.TB, network, address string) *envoyAdmin {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &envoyAdmin{t, &http.Client{Transport: tr, Timeout: patience}}
}

func (e *envoyAdmin) get(path string) string {
	e.t.Helper()
	resp, err := e.client.Get("http://envoy" + path)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		e.t.Fatalf("Envoy's admin %s: %s %v", path, resp.Status, err)
	}
	return string(b)
}

// stats returns the counters and gauges whose names match.
func (e *envoyAdmin) stats(names string) map[string]int64 {
	e.t.Helper()
	match, out := regexp.MustCompile(names), map[string]int64{}
	for line := range strings.Lines(e.get("/stats")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		var n int64
		if _, err := fmt.Sscan(value, &n); err == nil && match.MatchString(name) {
			out[name] = n
		}
	}
	return out
}

// changed says which of the counters that are looked at are others than before, sorted.
func (e *envoyAdmin) changed(before map[string]int64) []string {
	e.t.Helper()
	if _, ok := before["listener_manager.listener_added"]; !ok {
		e.t.Fatalf("Envoy's counters are not those that are looked at: %v", before)
	}
	var out []string
	now := e.stats(listenerStats)
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if was, looked := before[name]; looked && was != now[name] || !looked && now[name] != 0 {
			out = append(out, fmt.Sprintf("%s of the Envoy went from %d to %d", name, was, now[name]))
		}
	}
	return out
}

// undisturbed fails if a listener has changed since, or the Envoy has refused anything.
func (e *envoyAdmin) undisturbed(before map[string]int64) {
	e.t.Helper()
	for _, c := range e.changed(before) {
		e.t.Error(c)
	}
}

// clusters returns the names of the clusters that the Envoy has.
func (e *envoyAdmin) clusters() map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(e.get("/clusters")) {
		name, _, _ := strings.Cut(line, "::")
		out[name] = true
	}
	return out
}

// steered is a picker of which a test says from which pods it picks.
type steered struct {
	Address   string
	endpoints *picker.Endpoints
	t         testing.TB
}

// startSteered runs a picker in the test's own process until the test ends.
func startSteered(t testing.TB, name string, plaintext bool, pods ...*pod) *steered {
	t.Helper()
	s := &steered{endpoints: &picker.Endpoints{}, t: t}
	s.pick(pods...)
	// No metrics: pods of these tests take requests in turn.
	p, err := picker.New(picker.Config{Name: name, Endpoints: s.endpoints, ScrapeInterval: time.Hour, Plaintext: plaintext})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// pick says from which pods the picker picks from now on.
func (s *steered) pick(pods ...*pod) {
	s.t.Helper()
	if err := s.endpoints.Set(addresses(pods)); err != nil {
		s.t.Fatal(err)
	}
}

func addresses(pods []*pod) []string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Address)
	}
	return out
}

// changePool is an InferencePool default/NAME in the making.
type changePool struct {
	name        string
	app         string // selector; default: the name
	picker      string // the Service of its picker; "": none
	failOpen    bool
	ports       []string // default: one that no pod has, as slices say theirs
	h2c         bool
	annotations string
}

func (p changePool) yaml() string {
	if p.app == "" {
		p.app = p.name
	}
	if len(p.ports) == 0 {
		p.ports = []string{"8000"}
	}
	out := fmt.Sprintf(`---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: %s, namespace: default, annotations: {%s}}
spec:
  selector: {matchLabels: {app: %s}}
  targetPorts: [{number: %s}]
`, p.name, p.annotations, p.app, strings.Join(p.ports, "}, {number: "))
	if p.picker != "" {
		mode := map[bool]string{true: "FailOpen", false: "FailClose"}[p.failOpen]
		out += fmt.Sprintf("  endpointPickerRef: {name: %s, port: {number: 9002}, failureMode: %s}\n", p.picker, mode)
	}
	if p.h2c {
		out += "  appProtocol: kubernetes.io/h2c\n"
	}
	return out
}

// yamlEPP is the Service of a picker, and where it is.
func yamlEPP(name string, at ...string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: default}
spec:
  ports: [{name: http, port: 9002}]
`, name) + yamlSlice(name, "kubernetes.io/service-name: "+name, at...)
}

// yamlApp is what makes pods those of the pools that select an app.
func yamlApp(app string, pods ...*pod) string {
	return yamlSlice(app, "app: "+app, addresses(pods)...)
}

// standing is what every test of changes has: two pools with pickers, one of each failure
// mode, a Service, and routes to them that stay as they are.
type standing struct {
	ledger           *ledger
	a, b, s          []*pod // of pool a, which is FailClose, of pool b and of the Service
	pickA, pickB     *steered
	toA, toB, toS    *loadTarget
	files            map[string]string
	atPickA, atPickB []string
}

func newStanding(t testing.TB) *standing {
	t.Helper()
	x := &standing{ledger: newLedger(), atPickA: []string{"pick-a"}, atPickB: []string{"pick-b"}}
	for _, n := range []string{"0", "1"} {
		x.a = append(x.a, x.ledger.startPod(t, "a-"+n))
		x.b = append(x.b, x.ledger.startPod(t, "b-"+n))
		x.s = append(x.s, x.ledger.startPod(t, "s-"+n))
	}
	x.pickA, x.pickB = startSteered(t, "pick-a", false, x.a...), startSteered(t, "pick-b", false, x.b...)
	x.toA = newTarget("steady-a", "steady-a", "").expect(x.a, "pick-a")
	x.toB = newTarget("steady-b", "steady-b", "").expect(x.b, "pick-b")
	x.toS = newTarget("plain", "", "/plain").expect(x.s)
	x.files = map[string]string{
		"gateway.yaml": yamlGateway,
		"pool-a.yaml":  changePool{name: "a", picker: "epp-a"}.yaml(),
		"pool-b.yaml":  changePool{name: "b", picker: "epp-b", failOpen: true}.yaml(),
		"epp-a.yaml":   yamlEPP("epp-a", x.pickA.Address),
		"epp-b.yaml":   yamlEPP("epp-b", x.pickB.Address),
		"pods-a.yaml":  yamlApp("a", x.a...),
		"pods-b.yaml":  yamlApp("b", x.b...),
		"service.yaml": yamlService("s", x.s...),
		"steady.yaml":  yamlRoute("steady", rule(toPool("a"), onModel("steady-a")), rule(toPool("b"), onModel("steady-b")), rule(toService("s"), onPath("/plain"))),
	}
	return x
}
