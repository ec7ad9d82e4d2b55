// Package demo runs the simulated model servers and endpoint pickers that a directory
// of YAML asks for, in the process of `signalbox run`. Everything else ignores the
// annotations by which it asks:
//
//	signalbox.dev/demo: model-server         on an EndpointSlice: each of its addresses is
//	                                         a simulated pod that listens on the slice's
//	                                         ports (several: data-parallel ranks)
//	signalbox.dev/demo-models: "base,a,b"    beside it: the base model and its adapters
//	signalbox.dev/demo: picker               on the Service of an endpointPickerRef, or on
//	                                         an EndpointSlice of that Service: each of its
//	                                         addresses is an endpoint picker of the pool
//
// Addresses must be loopback addresses: a demo is for this machine, and objects that
// were made for a cluster must not open ports on it.
package demo

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"signalbox.dev/source"
)

// The annotations, and the values of Annotation.
const (
	Annotation       = "signalbox.dev/demo"
	AnnotationModels = "signalbox.dev/demo-models"
	ValueModelServer = "model-server"
	ValuePicker      = "picker"
)

// ModelServer is one simulated pod.
type ModelServer struct {
	Object source.Ref // the EndpointSlice that asks for it
	Pod    string     // its targetRef, else the slice's name and its place there
	Models []string   // the base model, then its adapters
	Listen []netip.AddrPort
}

// Picker is one endpoint picker.
type Picker struct {
	Object    source.Ref // the EndpointSlice that says where
	Pool      string     // namespace/name
	Listen    netip.AddrPort
	Plaintext bool             // as the gateway will dial it
	Endpoints []netip.AddrPort // the pool's ready endpoints
}

// Find reads which model servers and pickers the objects ask for, in a fixed order. A
// declaration that cannot be followed is left out and said to be a problem.
func Find(objects []source.Object) ([]ModelServer, []Picker, []source.Problem) {
	f := finder{taken: map[netip.AddrPort]source.Ref{}}
	f.sort(objects)
	for _, s := range f.slices {
		switch v := s.Annotations[Annotation]; v {
		case "", ValuePicker:
		case ValueModelServer:
			f.modelServers(s)
		default:
			f.problem(s, "annotation %s is %q; want %s or %s", Annotation, v, ValueModelServer, ValuePicker)
		}
	}
	for _, s := range f.slices {
		if f.asksForPicker(s) {
			f.pickersOf(s)
		}
	}
	for _, s := range f.services {
		f.checkService(s)
	}
	return f.servers, f.pickers, f.problems
}

type finder struct {
	slices   []*discoveryv1.EndpointSlice
	services []*corev1.Service
	pods     []*corev1.Pod
	pools    []*inferencev1.InferencePool

	taken    map[netip.AddrPort]source.Ref
	servers  []ModelServer
	pickers  []Picker
	problems []source.Problem
}

// sort sorts the objects by kind and name, so that the order of the source plays no part.
func (f *finder) sort(objects []source.Object) {
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(a, b source.Object) int {
		return cmp.Or(strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
	})
	for _, o := range objects {
		switch o := o.(type) {
		case *discoveryv1.EndpointSlice:
			f.slices = append(f.slices, o)
		case *corev1.Service:
			f.services = append(f.services, o)
		case *corev1.Pod:
			f.pods = append(f.pods, o)
		case *inferencev1.InferencePool:
			f.pools = append(f.pools, o)
		}
		if _, asked := o.GetAnnotations()[Annotation]; asked {
			switch o.(type) {
			case *discoveryv1.EndpointSlice, *corev1.Service:
			default:
				f.problem(o, "annotation %s has no effect here; write it on an EndpointSlice or a Service", Annotation)
			}
		}
	}
}

func (f *finder) problem(o source.Object, format string, args ...any) {
	f.problems = append(f.problems, source.Problem{Object: source.RefOf(o).String(), Message: fmt.Sprintf(format, args...)})
}

// claim says whether the declaration may listen on the address: it must be a loopback
// address that no other declaration has.
func (f *finder) claim(s *discoveryv1.EndpointSlice, address string, port int32) (netip.AddrPort, bool) {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		f.problem(s, "%q is not an IP address", address)
		return netip.AddrPort{}, false
	}
	if !ip.IsLoopback() {
		f.problem(s, "%s is not a loopback address; demo parts listen on 127.0.0.0/8 and ::1 only", address)
		return netip.AddrPort{}, false
	}
	a := netip.AddrPortFrom(ip, uint16(port))
	if first, ok := f.taken[a]; ok {
		f.problem(s, "%s is taken by %s already", a, first)
		return netip.AddrPort{}, false
	}
	f.taken[a] = source.RefOf(s)
	return a, true
}

func (f *finder) modelServers(s *discoveryv1.EndpointSlice) {
	var models []string
	for m := range strings.SplitSeq(s.Annotations[AnnotationModels], ",") {
		models = append(models, strings.TrimSpace(m))
	}
	if slices.Contains(models, "") {
		f.problem(s, "annotation %s is %q; want the base model and its adapters, separated by commas", AnnotationModels, s.Annotations[AnnotationModels])
		return
	}
	ports := listedPorts(s)
	if len(ports) == 0 {
		f.problem(s, "lists no TCP port, so a model server does not know where to listen")
		return
	}
	for i, e := range s.Endpoints {
		m := ModelServer{Object: source.RefOf(s), Pod: podName(s, i), Models: models}
		for _, port := range ports {
			if a, ok := f.claim(s, firstAddress(e), port); ok {
				m.Listen = append(m.Listen, a)
			}
		}
		if len(m.Listen) == len(ports) {
			f.servers = append(f.servers, m)
		}
	}
}

func podName(s *discoveryv1.EndpointSlice, i int) string {
	e := s.Endpoints[i]
	switch {
	case e.TargetRef != nil && e.TargetRef.Name != "":
		return e.TargetRef.Name
	case ptr.Deref(e.Hostname, "") != "":
		return *e.Hostname
	}
	return fmt.Sprintf("%s-%d", s.Name, i)
}

// firstAddress returns the one address that counts (EndpointSlice: consumers use the
// first, all are the same pod).
func firstAddress(e discoveryv1.Endpoint) string {
	if len(e.Addresses) == 0 {
		return ""
	}
	return e.Addresses[0]
}

func listedPorts(s *discoveryv1.EndpointSlice) (ports []int32) {
	for _, p := range s.Ports {
		if p.Port != nil && ptr.Deref(p.Protocol, corev1.ProtocolTCP) == corev1.ProtocolTCP {
			ports = append(ports, *p.Port)
		}
	}
	return ports
}
