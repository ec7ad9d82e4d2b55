package translator

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// activePorts are the annotations of a Pod that say which of the pool's targetPorts it
// serves, "8000,8001"; the first one that is there counts. The pickers read the same, in
// the same order.
var activePorts = []string{"llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports"}

// endpointRow is the endpoints of a backend, for one group.
type endpointRow struct {
	Resource *xds.Resource
	Warnings []string // about objects that name endpoints; sorted, unique
}

func sameEndpoints(a, b endpointRow) bool {
	return sameResource(a.Resource, b.Resource) && slices.Equal(a.Warnings, b.Warnings)
}

// warnedBackend lists an endpoint row under its backend if it has warnings. A status
// reads this list first, so it is not computed again with every change of an endpoint.
func warnedBackend(k key, row endpointRow) []key {
	if len(row.Warnings) == 0 {
		return nil
	}
	_, name := splitGroup(k)
	return []key{key(name)}
}

// endpointWarnings returns what is wrong with the objects that name a backend's
// endpoints; sorted, unique.
func (t *tables) endpointWarnings(r *incr.Reads, backend key) []string {
	var out []string
	for _, k := range t.warnedByBackend.Keys(r, backend) {
		row, _ := t.endpoints.Get(r, k)
		out = append(out, row.Warnings...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// clusterEndpoints makes the endpoints of a backend that some route of the group uses;
// an empty assignment when there are none, never silence. It reads the pool itself and
// not its row, which changes with the picker's endpoints.
func (t *tables) clusterEndpoints(r *incr.Reads, x key) (endpointRow, bool) {
	_, name := splitGroup(x)
	kind, object, number, ok := parseBackend(key(name))
	if !ok {
		return endpointRow{}, false
	}
	var endpoints []netip.AddrPort
	var warnings []string
	if kind == source.KindService {
		row, ok := t.serviceRows.Get(r, object)
		port, found := row.port(number)
		if !ok || !found {
			return endpointRow{}, false
		}
		endpoints, warnings = t.serviceEndpoints(r, object, port)
	} else {
		pool, ok := t.pools.Get(r, object)
		if !ok {
			return endpointRow{}, false
		}
		endpoints, warnings = t.poolEndpoints(r, pool)
	}
	return endpointRow{xds.NewResource(xds.Endpoint, name, loadAssignment(name, endpoints)), warnings}, true
}

func loadAssignment(cluster string, endpoints []netip.AddrPort) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	if len(endpoints) == 0 {
		return out
	}
	locality := &endpointv3.LocalityLbEndpoints{}
	for _, e := range endpoints {
		address := &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address:       e.Addr().String(),
			PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(e.Port())},
		}}}
		locality.LbEndpoints = append(locality.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
		})
	}
	out.Endpoints = []*endpointv3.LocalityLbEndpoints{locality}
	return out
}

// endpointSet collects endpoints, and what is wrong with those it refuses.
type endpointSet struct {
	guard     bool // Options.GuardAddresses
	endpoints []netip.AddrPort
	warnings  []string
}

// add takes an address of an object with each of the ports.
func (s *endpointSet) add(object, address string, ports []int32) {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		s.warn(msgWarnNotIP, object, address)
		return
	}
	ip = ip.Unmap().WithZone("")
	if ip.IsUnspecified() || ip.IsMulticast() {
		s.warn(msgWarnNotEndpoint, object, address)
		return
	}
	if s.guard && (ip.IsLoopback() || ip.IsLinkLocalUnicast()) {
		s.warn(msgWarnGuarded, object, address)
		return
	}
	for _, p := range ports {
		s.endpoints = append(s.endpoints, netip.AddrPortFrom(ip, uint16(p)))
	}
}

func (s *endpointSet) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// sorted returns the distinct endpoints and the distinct warnings, in order.
func (s *endpointSet) sorted() ([]netip.AddrPort, []string) {
	slices.SortFunc(s.endpoints, netip.AddrPort.Compare)
	slices.Sort(s.warnings)
	return slices.Compact(s.endpoints), slices.Compact(s.warnings)
}

// serviceEndpoints returns the endpoints of a Service's port, from the EndpointSlices
// that carry its name, as kube-proxy chooses them: the ready ones; if there is none, those
// that still serve while they terminate (KEP-1669), and those of lost Pods. Ports go by
// name.
func (t *tables) serviceEndpoints(r *incr.Reads, service key, port servicePort) ([]netip.AddrPort, []string) {
	ready, last := endpointSet{guard: t.opt.GuardAddresses}, endpointSet{guard: t.opt.GuardAddresses}
	for _, k := range t.slicesByService.Keys(r, service) {
		slice, _ := t.slices.Get(r, k)
		if len(slice.Endpoints) == 0 {
			continue // such as Kubernetes makes for a Service without Pods: no ports either
		}
		object := "EndpointSlice " + string(k)
		i := slices.IndexFunc(slice.Ports, func(p discoveryv1.EndpointPort) bool {
			return ptr.Deref(p.Name, "") == port.Name && p.Port != nil
		})
		if i < 0 {
			ready.warn(msgWarnPortName, object, port.Name, port.Port, service)
			continue
		}
		ports := []int32{*slice.Ports[i].Port}
		for _, e := range slice.Endpoints {
			switch c := e.Conditions; {
			case len(e.Addresses) == 0:
			case ptr.Deref(c.Ready, true):
				ready.add(object, e.Addresses[0], ports)
			case ptr.Deref(c.Serving, false) && ptr.Deref(c.Terminating, false), !ptr.Deref(c.Terminating, false) && t.podRuns(r, slice.Namespace, e.TargetRef):
				last.add(object, e.Addresses[0], ports)
			}
		}
	}
	if len(ready.endpoints) == 0 {
		ready.endpoints = last.endpoints
	}
	return ready.sorted()
}

// poolEndpoints returns the endpoints of a pool: the Pods that its selector matches,
// each with every targetPort or those that it says are active, and the EndpointSlices
// that its selector matches, which stand for Pods where no cluster is. If no endpoint is
// ready, lost Pods are.
func (t *tables) poolEndpoints(r *incr.Reads, pool *inferencev1.InferencePool) ([]netip.AddrPort, []string) {
	set, lost := endpointSet{guard: t.opt.GuardAddresses}, endpointSet{guard: t.opt.GuardAddresses}
	var ports []int32
	for _, p := range pool.Spec.TargetPorts {
		ports = append(ports, int32(p.Number))
	}
	selector := poolSelector(pool)
	for _, k := range t.podsBySelector.Keys(r, selector) {
		switch pod, _ := t.pods.Get(r, k); {
		case podServes(pod):
			set.add("Pod "+string(k), pod.Status.PodIP, podPorts(&set, k, pod, ports))
		case podLost(pod):
			lost.add("Pod "+string(k), pod.Status.PodIP, podPorts(&lost, k, pod, ports))
		}
	}
	for _, k := range t.slicesBySelector.Keys(r, selector) {
		slice, _ := t.slices.Get(r, k)
		addSlice(&set, k, slice, ports)
	}
	if len(set.endpoints) == 0 {
		set.endpoints = lost.endpoints
	}
	return set.sorted()
}

// podServes says whether a Pod takes requests: it has an address, runs, is not being
// deleted and is ready. A Pod written by hand has no conditions and counts as ready.
func podServes(pod *corev1.Pod) bool {
	ready := podCondition(pod, corev1.PodReady)
	return podStays(pod) && (ready == nil || ready.Status == corev1.ConditionTrue)
}

// podLost says whether a Pod is not ready for no reason of its own: its kubelet's last
// word was that all containers are, and then nobody heard from the node. So says
// Kubernetes of every Pod at once when its own API server comes back after a minute, and
// of a node that died. The two cannot be told apart, but in a pool of which nothing else is
// left the first is served, and the second is not made worse.
func podLost(pod *corev1.Pod) bool {
	ready, containers := podCondition(pod, corev1.PodReady), podCondition(pod, corev1.ContainersReady)
	return podStays(pod) && ready != nil && ready.Status != corev1.ConditionTrue && ready.Reason != reasonReadinessGates &&
		containers != nil && containers.Status == corev1.ConditionTrue
}

// reasonReadinessGates is what a kubelet says of a Pod whose containers are ready and
// whose readiness gates are not (k8s.io/kubernetes/pkg/kubelet/status).
const reasonReadinessGates = "ReadinessGatesNotReady"

// podStays says whether a Pod has an address, runs and is not being deleted.
func podStays(pod *corev1.Pod) bool {
	return pod.Status.PodIP != "" && pod.DeletionTimestamp == nil &&
		pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded
}

func podCondition(pod *corev1.Pod, of corev1.PodConditionType) *corev1.PodCondition {
	for i, c := range pod.Status.Conditions {
		if c.Type == of {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// podRuns says whether the Pod that an endpoint of a slice stands for is lost, or ready
// again, which the slice has yet to say.
func (t *tables) podRuns(r *incr.Reads, namespace string, ref *corev1.ObjectReference) bool {
	if ref == nil || ref.Kind != string(source.KindPod) {
		return false
	}
	pod, ok := t.pods.Get(r, objectKey(namespace, ref.Name))
	return ok && (podServes(pod) || podLost(pod))
}

// podPorts returns which of the pool's ports the Pod serves.
func podPorts(set *endpointSet, k key, pod *corev1.Pod, ports []int32) []int32 {
	for _, annotation := range activePorts {
		value, ok := pod.Annotations[annotation]
		if !ok {
			continue
		}
		var active []int32
		for _, s := range strings.Split(value, ",") {
			s = strings.TrimSpace(s)
			n, err := strconv.ParseInt(s, 10, 32)
			if err == nil && slices.Contains(ports, int32(n)) {
				active = append(active, int32(n))
			} else if s != "" { // an empty list is a Pod that serves none of them
				set.warn(msgWarnActivePort, "Pod "+string(k), annotation, s)
			}
		}
		return active
	}
	return ports
}

// addSlice adds the endpoints of an EndpointSlice that a pool's selector matches: its
// ready addresses, each with
//
//   - every targetPort, if the slice lists no port;
//   - the port of the slice, if it lists one, also when the pool has another targetPort:
//     on one machine, model servers share an address and differ in their ports;
//   - those of its ports that are targetPorts, if it lists several (the others are for
//     metrics and the like).
//
// Slices of Kubernetes' own controllers are left out: they repeat Pods, by the port and
// the readiness of some Service.
func addSlice(set *endpointSet, k key, slice *discoveryv1.EndpointSlice, targets []int32) {
	if strings.HasSuffix(slice.Labels[discoveryv1.LabelManagedBy], ".k8s.io") {
		return
	}
	object := "EndpointSlice " + string(k)
	ports := targets
	if listed := slicePorts(slice); len(listed) == 1 {
		ports = listed
	} else if len(listed) > 1 {
		ports = slices.DeleteFunc(listed, func(p int32) bool { return !slices.Contains(targets, p) })
		if len(ports) == 0 {
			set.warn(msgWarnSlicePorts, object)
		}
	}
	for _, e := range slice.Endpoints {
		if len(e.Addresses) > 0 && ptr.Deref(e.Conditions.Ready, true) {
			set.add(object, e.Addresses[0], ports)
		}
	}
}

func slicePorts(slice *discoveryv1.EndpointSlice) []int32 {
	var out []int32
	for _, p := range slice.Ports {
		if p.Port != nil && ptr.Deref(p.Protocol, corev1.ProtocolTCP) == corev1.ProtocolTCP {
			out = append(out, *p.Port)
		}
	}
	return out
}

// sliceService returns the Service that an EndpointSlice belongs to.
func sliceService(_ key, o *discoveryv1.EndpointSlice) []key {
	if service := o.Labels[discoveryv1.LabelServiceName]; service != "" {
		return []key{objectKey(o.Namespace, service)}
	}
	return nil
}

// labelKeys returns one key for each label of an object, in its namespace.
func labelKeys[T metav1.Object](_ key, o T) []key {
	var out []key
	for name, value := range o.GetLabels() {
		out = append(out, labelKey(o.GetNamespace(), name, value))
	}
	return out
}

// selected is the query of a pool's selector (selectorKey): the list of one of its
// labels, and whether an object has all of them.
func selected[T metav1.Object](selector key) (label key, match func(key, T) bool) {
	namespace, labels := splitSelector(selector)
	if len(labels) > 0 {
		label = labelKey(namespace, labels[0][0], labels[0][1])
	}
	return label, func(_ key, o T) bool {
		has := o.GetLabels()
		for _, l := range labels {
			if v, ok := has[l[0]]; !ok || v != l[1] {
				return false
			}
		}
		return o.GetNamespace() == namespace
	}
}

// poolSelector returns the query for what belongs to a pool: its namespace only.
func poolSelector(pool *inferencev1.InferencePool) key {
	labels := map[string]string{}
	for name, value := range pool.Spec.Selector.MatchLabels {
		labels[string(name)] = string(value)
	}
	return selectorKey(pool.Namespace, labels)
}
