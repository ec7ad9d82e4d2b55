package demo

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"signalbox.dev/source"
)

// What the gateway reads as well; it dials a picker and lists a pool's endpoints by the
// same rules (docs/configuration.md).
const (
	annotationPickerTLS = "signalbox.dev/picker-tls"
	appProtocolH2C      = "kubernetes.io/h2c"
)

// activePorts limit which of the pool's ports a Pod serves; the first that is there counts.
var activePorts = []string{"llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports"}

func (f *finder) asksForPicker(s *discoveryv1.EndpointSlice) bool {
	if s.Annotations[Annotation] == ValuePicker {
		return true
	}
	service := f.service(s.Namespace, s.Labels[discoveryv1.LabelServiceName])
	return service != nil && service.Annotations[Annotation] == ValuePicker && s.Annotations[Annotation] == ""
}

func (f *finder) service(namespace, name string) *corev1.Service {
	i := slices.IndexFunc(f.services, func(s *corev1.Service) bool { return s.Namespace == namespace && s.Name == name })
	if i < 0 {
		return nil
	}
	return f.services[i]
}

// checkService reports what is wrong with an annotated Service itself.
func (f *finder) checkService(s *corev1.Service) {
	switch v := s.Annotations[Annotation]; v {
	case "":
	case ValuePicker:
		if !slices.ContainsFunc(f.slices, func(e *discoveryv1.EndpointSlice) bool {
			return e.Namespace == s.Namespace && e.Labels[discoveryv1.LabelServiceName] == s.Name
		}) {
			f.problem(s, "annotation %s: no EndpointSlice with the label %s: %s says where the picker is to listen", Annotation, discoveryv1.LabelServiceName, s.Name)
		}
	default:
		f.problem(s, "annotation %s is %q; want %s (%s goes on an EndpointSlice)", Annotation, v, ValuePicker, ValueModelServer)
	}
}

// pickersOf adds a picker for each address of the slice.
func (f *finder) pickersOf(s *discoveryv1.EndpointSlice) {
	name := s.Labels[discoveryv1.LabelServiceName]
	service := f.service(s.Namespace, name)
	if service == nil {
		f.problem(s, "annotation %s: %s needs the label %s with the name of a Service that is there, not %q", Annotation, ValuePicker, discoveryv1.LabelServiceName, name)
		return
	}
	pool := f.poolOf(s, service)
	if pool == nil {
		return
	}
	i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool {
		return pool.Spec.EndpointPickerRef.Port != nil && p.Port == int32(pool.Spec.EndpointPickerRef.Port.Number)
	})
	if i < 0 {
		f.problem(s, "Service %s has no port of the number that InferencePool %s names in endpointPickerRef", service.Name, pool.Name)
		return
	}
	port := service.Spec.Ports[i]
	j := slices.IndexFunc(s.Ports, func(p discoveryv1.EndpointPort) bool {
		return p.Port != nil && ptr.Deref(p.Name, "") == port.Name
	})
	if j < 0 {
		f.problem(s, "lists no port named %q, as port %d of Service %s is", port.Name, port.Port, service.Name)
		return
	}
	plaintext := ptr.Deref(port.AppProtocol, "") == appProtocolH2C
	switch pool.Annotations[annotationPickerTLS] {
	case "plaintext":
		plaintext = true
	case "insecure":
		plaintext = false
	}
	for _, e := range s.Endpoints {
		if a, ok := f.claim(s, firstAddress(e), *s.Ports[j].Port); ok {
			f.pickers = append(f.pickers, Picker{Object: source.RefOf(s), Pool: pool.Namespace + "/" + pool.Name, Listen: a, Plaintext: plaintext, Endpoints: f.endpoints(pool)})
		}
	}
}

// poolOf returns the one pool whose endpointPickerRef names the Service.
func (f *finder) poolOf(s *discoveryv1.EndpointSlice, service *corev1.Service) *inferencev1.InferencePool {
	var found []*inferencev1.InferencePool
	var names []string
	for _, p := range f.pools {
		ref := p.Spec.EndpointPickerRef
		if p.Namespace == service.Namespace && ref != nil && string(ref.Name) == service.Name &&
			ptr.Deref(ref.Group, "") == "" && (ref.Kind == "" || ref.Kind == "Service") {
			found, names = append(found, p), append(names, p.Name)
		}
	}
	switch len(found) {
	case 1:
		return found[0]
	case 0:
		f.problem(s, "annotation %s: no InferencePool of namespace %s has an endpointPickerRef to Service %s", Annotation, s.Namespace, service.Name)
	default:
		f.problem(s, "annotation %s: the InferencePools %s share Service %s, but a picker picks for one pool; give each a Service", Annotation, strings.Join(names, ", "), service.Name)
	}
	return nil
}

// endpoints returns the ready endpoints of a pool: of the Pods and the EndpointSlices
// that its selector matches.
func (f *finder) endpoints(pool *inferencev1.InferencePool) []netip.AddrPort {
	selector := labels.Set{}
	for k, v := range pool.Spec.Selector.MatchLabels {
		selector[string(k)] = string(v)
	}
	var targets []int32
	for _, p := range pool.Spec.TargetPorts {
		targets = append(targets, int32(p.Number))
	}
	var out []netip.AddrPort
	add := func(address string, ports []int32) {
		ip, err := netip.ParseAddr(address)
		if err != nil {
			return // the gateway has said so in the pool's status
		}
		for _, p := range ports {
			out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(p)))
		}
	}
	matches := func(o source.Object) bool {
		return o.GetNamespace() == pool.Namespace && selector.AsSelector().Matches(labels.Set(o.GetLabels()))
	}
	for _, p := range f.pods {
		if matches(p) && podServes(p) {
			add(p.Status.PodIP, podPorts(p, targets))
		}
	}
	for _, s := range f.slices {
		if !matches(s) || strings.HasSuffix(s.Labels[discoveryv1.LabelManagedBy], ".k8s.io") {
			continue // Kubernetes' own slices repeat Pods
		}
		ports := slicePorts(s, targets)
		for _, e := range s.Endpoints {
			if ptr.Deref(e.Conditions.Ready, true) {
				add(firstAddress(e), ports)
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// slicePorts returns the ports of a slice that are endpoints of a pool: its only one, or
// those that are targetPorts; all targetPorts, if it lists none.
func slicePorts(s *discoveryv1.EndpointSlice, targets []int32) []int32 {
	switch listed := listedPorts(s); len(listed) {
	case 0:
		return targets
	case 1:
		return listed
	default:
		return slices.DeleteFunc(listed, func(p int32) bool { return !slices.Contains(targets, p) })
	}
}

// podServes says whether a Pod takes requests. One written by hand has no conditions
// and counts as ready.
func podServes(p *corev1.Pod) bool {
	if p.Status.PodIP == "" || p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return true
}

func podPorts(p *corev1.Pod, targets []int32) []int32 {
	for _, name := range activePorts {
		value, ok := p.Annotations[name]
		if !ok {
			continue
		}
		var active []int32
		for s := range strings.SplitSeq(value, ",") {
			n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 32)
			if err == nil && slices.Contains(targets, int32(n)) {
				active = append(active, int32(n))
			}
		}
		return active
	}
	return targets
}
