package translator

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// What an API server says of a Service's load balancer; no manifest can say it.
func TestServiceAddresses(t *testing.T) {
	service := func(typ corev1.ServiceType, ips []string, ingress ...corev1.LoadBalancerIngress) *corev1.Service {
		return &corev1.Service{Spec: corev1.ServiceSpec{Type: typ, ClusterIPs: ips}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: ingress}}}
	}
	many := make([]corev1.LoadBalancerIngress, 20)
	for i := range many {
		many[i].IP = "192.0.2.1"
	}
	for name, c := range map[string]struct {
		service *corev1.Service
		want    []string
	}{
		"load balancer's addresses, not the cluster's": {service("LoadBalancer", []string{"10.0.0.1"}, corev1.LoadBalancerIngress{IP: "192.0.2.1"}, corev1.LoadBalancerIngress{IP: "2001:db8::1"}),
			[]string{"IPAddress 192.0.2.1", "IPAddress 2001:db8::1"}},
		"host name":     {service("LoadBalancer", nil, corev1.LoadBalancerIngress{Hostname: "lb.example.com"}), []string{"Hostname lb.example.com"}},
		"none yet":      {service("LoadBalancer", []string{"10.0.0.1"}), nil},
		"dual stack":    {service("ClusterIP", []string{"10.0.0.1", "fd00::1"}), []string{"IPAddress 10.0.0.1", "IPAddress fd00::1"}},
		"node port":     {service("NodePort", []string{"10.0.0.1"}), []string{"IPAddress 10.0.0.1"}},
		"headless":      {service("ClusterIP", []string{"None"}), nil},
		"empty ingress": {service("LoadBalancer", nil, corev1.LoadBalancerIngress{}), nil},
	} {
		var got []string
		for _, a := range serviceAddresses(c.service) {
			got = append(got, string(*a.Type)+" "+a.Value)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got := len(serviceAddresses(service("LoadBalancer", nil, many...))); got != maxAddresses {
		t.Errorf("%d addresses of 20; a Gateway's status holds %d", got, maxAddresses)
	}
}
