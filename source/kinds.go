package source

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// KindInfo is how one kind is called in Kubernetes and which Go type it has.
type KindInfo struct {
	Kind       Kind
	GVK        schema.GroupVersionKind
	Resource   string // plural, as in URLs
	Namespaced bool
	New        func() Object
}

var (
	gateway   = schema.GroupVersion{Group: gatewayv1.GroupName, Version: "v1"}
	inference = schema.GroupVersion{Group: inferencev1.GroupName, Version: "v1"}
)

// Kinds lists every kind that signalbox reads.
var Kinds = []KindInfo{
	{KindGatewayClass, gateway.WithKind("GatewayClass"), "gatewayclasses", false, func() Object { return &gatewayv1.GatewayClass{} }},
	{KindGateway, gateway.WithKind("Gateway"), "gateways", true, func() Object { return &gatewayv1.Gateway{} }},
	{KindHTTPRoute, gateway.WithKind("HTTPRoute"), "httproutes", true, func() Object { return &gatewayv1.HTTPRoute{} }},
	{KindReferenceGrant, gateway.WithKind("ReferenceGrant"), "referencegrants", true, func() Object { return &gatewayv1.ReferenceGrant{} }},
	{KindBackendTLSPolicy, gateway.WithKind("BackendTLSPolicy"), "backendtlspolicies", true, func() Object { return &gatewayv1.BackendTLSPolicy{} }},
	{KindInferencePool, inference.WithKind("InferencePool"), "inferencepools", true, func() Object { return &inferencev1.InferencePool{} }},
	{KindService, corev1.SchemeGroupVersion.WithKind("Service"), "services", true, func() Object { return &corev1.Service{} }},
	{KindEndpointSlice, discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), "endpointslices", true, func() Object { return &discoveryv1.EndpointSlice{} }},
	{KindPod, corev1.SchemeGroupVersion.WithKind("Pod"), "pods", true, func() Object { return &corev1.Pod{} }},
	{KindNamespace, corev1.SchemeGroupVersion.WithKind("Namespace"), "namespaces", false, func() Object { return &corev1.Namespace{} }},
	{KindSecret, corev1.SchemeGroupVersion.WithKind("Secret"), "secrets", true, func() Object { return &corev1.Secret{} }},
	{KindConfigMap, corev1.SchemeGroupVersion.WithKind("ConfigMap"), "configmaps", true, func() Object { return &corev1.ConfigMap{} }},
}

// RefOf returns the ref of an object of one of Kinds, by its Go type; the zero Ref
// for any other.
func RefOf(o Object) Ref {
	if k, ok := kindByType[reflect.TypeOf(o)]; ok {
		return Ref{Kind: k, Namespace: o.GetNamespace(), Name: o.GetName()}
	}
	return Ref{}
}

var kindByType = func() map[reflect.Type]Kind {
	m := map[reflect.Type]Kind{}
	for _, k := range Kinds {
		m[reflect.TypeOf(k.New())] = k.Kind
	}
	return m
}()
