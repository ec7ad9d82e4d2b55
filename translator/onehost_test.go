package translator

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

// TestOneHost: where Gateways share a host, a port belongs to the earliest Gateway, and
// goes to the next when that one leaves it.
func TestOneHost(t *testing.T) {
	class := &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: ControllerName}}
	gw := func(name string, port int32) *gatewayv1.Gateway {
		return &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "c",
			Listeners: []gatewayv1.Listener{{Name: "http", Port: port, Protocol: gatewayv1.HTTPProtocolType}}}}
	}
	change := func(o source.Object) source.Change { return source.Change{Ref: source.RefOf(o), Object: o} }
	accepted := func(out Output, name string) string {
		for _, s := range out.Statuses {
			if s.Ref.Kind == source.KindGateway && s.Ref.Name == name && s.Gateway != nil {
				for _, c := range s.Gateway.Listeners[0].Conditions {
					if c.Type == string(gatewayv1.ListenerConditionAccepted) {
						return c.Reason
					}
				}
			}
		}
		return "unchanged"
	}
	tr := New(Options{OneHost: true, Ports: map[int32]int32{80: 8080}})
	out := tr.Apply([]source.Change{change(class), change(gw("a", 80)), change(gw("b", 8080))}, nil)
	if a, b := accepted(out, "a"), accepted(out, "b"); a != "Accepted" || b != "PortUnavailable" {
		t.Fatalf("a is %s, b is %s; want a to keep the port", a, b)
	}
	out = tr.Apply([]source.Change{change(gw("a", 81))}, nil)
	if b := accepted(out, "b"); b != "Accepted" {
		t.Fatalf("b is %s after a has left the port; want Accepted", b)
	}
}
