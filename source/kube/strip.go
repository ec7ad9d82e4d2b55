package kube

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// strip shows an object to Observe and then takes away, in place, what translation must
// not look at: statuses that signalbox itself writes, so that no write of its own comes
// back as a change, and what is large or changes often and means nothing here. The object
// is this source's own, fresh from the wire.
func (s *store) strip(obj runtime.Object) error {
	o, err := s.object(obj)
	if err != nil {
		return fmt.Errorf("stripping: %w", err)
	}
	s.observe(o)
	o.GetObjectKind().SetGroupVersionKind(s.kind.GVK) // set in lists and not in watches
	o.SetManagedFields(nil)
	o.SetResourceVersion("")
	if a := o.GetAnnotations(); a != nil {
		delete(a, corev1.LastAppliedConfigAnnotation)
	}
	switch o := o.(type) {
	case *gatewayv1.GatewayClass:
		o.Status = gatewayv1.GatewayClassStatus{}
	case *gatewayv1.Gateway:
		o.Status = gatewayv1.GatewayStatus{}
	case *gatewayv1.HTTPRoute:
		o.Status = gatewayv1.HTTPRouteStatus{}
	case *gatewayv1.BackendTLSPolicy:
		o.Status = gatewayv1.PolicyStatus{}
	case *inferencev1.InferencePool:
		o.Status = inferencev1.InferencePoolStatus{}
	case *corev1.Pod:
		stripPod(o)
	case *discoveryv1.EndpointSlice:
		for i := range o.Endpoints {
			e := &o.Endpoints[i]
			*e = discoveryv1.Endpoint{Addresses: e.Addresses, Conditions: e.Conditions, TargetRef: stripTarget(e.TargetRef)}
		}
	}
	return nil
}

// stripTarget leaves of what an endpoint stands for its name.
func stripTarget(o *corev1.ObjectReference) *corev1.ObjectReference {
	if o == nil {
		return nil
	}
	return &corev1.ObjectReference{Kind: o.Kind, Name: o.Name}
}

// stripPod leaves of a Pod where it is and whether it is ready: probes' and heartbeats'
// times change often, and its spec is most of it.
func stripPod(o *corev1.Pod) {
	var ready []corev1.PodCondition
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
			ready = append(ready, corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: c.Reason})
		}
	}
	o.Spec, o.OwnerReferences = corev1.PodSpec{}, nil
	o.Status = corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, Conditions: ready}
}
