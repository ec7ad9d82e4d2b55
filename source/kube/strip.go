package kube

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
)

// strip takes away what translation must not look at: statuses that signalbox itself
// writes, so that no write of its own comes back as a change, and what is large and
// means nothing here. The object is this source's own, fresh from the wire.
func (s *store) strip(obj any) (source.Object, error) {
	o, ok := obj.(source.Object)
	if !ok {
		return nil, fmt.Errorf("%s: %w", s.kind.Kind, errNotAnObject)
	}
	o.SetManagedFields(nil)
	o.SetResourceVersion("")
	if a := o.GetAnnotations(); a[corev1.LastAppliedConfigAnnotation] != "" {
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
		// Heartbeats and probes' times change often and mean nothing here.
		ready := o.Status.Conditions[:0:0]
		for _, c := range o.Status.Conditions {
			if c.Type == corev1.PodReady {
				ready = append(ready, corev1.PodCondition{Type: c.Type, Status: c.Status})
			}
		}
		o.Spec = corev1.PodSpec{}
		o.Status = corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs, Conditions: ready}
	}
	return o, nil
}
