package translator

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// addresses returns the addresses under which the Gateway can be reached, as far as
// the spec and the bind address tell, and a Programmed=False condition for the first
// of the spec's that cannot be used. Those of other types have been refused before.
func (t *tables) addresses(o *gatewayv1.Gateway) (out []gatewayv1.GatewaySpecAddress, problem *metav1.Condition) {
	bound, _ := netip.ParseAddr(t.opt.BindAddress)
	typ := gatewayv1.IPAddressType
	add := func(a netip.Addr) {
		out = append(out, gatewayv1.GatewaySpecAddress{Type: &typ, Value: a.String()})
	}
	if len(o.Spec.Addresses) == 0 && !bound.IsUnspecified() {
		add(bound)
	}
	report := func(c metav1.Condition) {
		if problem == nil {
			problem = &c
		}
	}
	if t.opt.Provision && len(o.Spec.Addresses) == 0 {
		report(gatewayAddressNotAssigned.because(msgAddressBrought))
	}
	for i, a := range o.Spec.Addresses {
		switch ip, err := netip.ParseAddr(a.Value); {
		case a.Value == "" && bound.IsUnspecified():
			report(gatewayAddressNotAssigned.because(msgGatewayAddressNotChosen, i))
		case a.Value == "":
			add(bound)
		case err != nil:
			report(gatewayAddressNotUsable.because(msgGatewayAddressNotAddress, i, a.Value))
		case !reaches(bound, ip):
			report(gatewayAddressNotUsable.because(msgGatewayAddressNotUsable, i, a.Value, t.opt.BindAddress))
		default:
			add(ip)
		}
	}
	return out, problem
}

// reaches says whether a socket bound to the one address is reached under the other.
func reaches(bound, ip netip.Addr) bool {
	if bound.IsUnspecified() {
		return bound.Is6() || ip.Is4() // an IPv6 socket takes IPv4 too: see socketAddress
	}
	return bound == ip
}

// askedAddress returns the address that a provisioned Gateway asks for, "" for any, and
// a Programmed=False condition if no Service can have what it asks for.
func askedAddress(o *gatewayv1.Gateway) (string, *metav1.Condition) {
	var asked []string
	for i, a := range o.Spec.Addresses {
		if a.Value == "" {
			continue
		}
		ip, err := netip.ParseAddr(a.Value)
		if err != nil {
			c := gatewayAddressNotUsable.because(msgGatewayAddressNotAddress, i, a.Value)
			return "", &c
		}
		asked = append(asked, ip.String())
	}
	switch len(asked) {
	case 0:
		return "", nil
	case 1:
		return asked[0], nil
	}
	c := gatewayAddressNotUsable.because(msgAddressMany, strings.Join(asked, ", "))
	return "", &c
}

// maxAddresses is how many a Gateway's status may hold.
const maxAddresses = 16

// serviceAddresses returns where a Service is reached: a load balancer's addresses, else
// those in the cluster, which a NodePort has too, beside every node's.
func serviceAddresses(s *corev1.Service) []gatewayv1.GatewayStatusAddress {
	var out []gatewayv1.GatewayStatusAddress
	add := func(typ gatewayv1.AddressType, value string) {
		if value != "" && value != corev1.ClusterIPNone && len(out) < maxAddresses {
			out = append(out, gatewayv1.GatewayStatusAddress{Type: ptr.To(typ), Value: value})
		}
	}
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		for _, ip := range s.Spec.ClusterIPs {
			add(gatewayv1.IPAddressType, ip)
		}
		return out
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IP != "" {
			add(gatewayv1.IPAddressType, i.IP)
		} else {
			add(gatewayv1.HostnameAddressType, i.Hostname)
		}
	}
	return out
}
