package translator

// Stand-ins until backend.go, pool.go, endpoints.go exist. Owner: backend side. Delete this file.

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// policyTargets: objectKey of every Service that a policy targets.
func policyTargets(k key, o *gatewayv1.BackendTLSPolicy) []key { return nil }

// sliceService: objectKey of the Service that an EndpointSlice belongs to (kubernetes.io/service-name).
func sliceService(k key, o *discoveryv1.EndpointSlice) []key { return nil }

// labelKeys: one key per label of an object, in its namespace.
func labelKeys(o metav1.Object) []key { return nil }

func (t *tables) policy(r *incr.Reads, k key, o *gatewayv1.BackendTLSPolicy) (policyRow, bool) {
	return policyRow{}, false
}

func (t *tables) service(r *incr.Reads, k key, o *corev1.Service) (serviceRow, bool) {
	return serviceRow{}, false
}

func (t *tables) pool(r *incr.Reads, k key, o *inferencev1.InferencePool) (poolRow, bool) {
	return poolRow{}, false
}

func (t *tables) cluster(r *incr.Reads, x key, routes []key) (*xds.Resource, bool) {
	return nil, false
}

func (t *tables) clusterEndpoints(r *incr.Reads, x key, routes []key) (*xds.Resource, bool) {
	return nil, false
}

func (t *tables) poolStatusOf(r *incr.Reads, k key, row poolRow) (Status, bool) {
	return Status{}, false
}

func (t *tables) policyStatusOf(r *incr.Reads, k key, row policyRow) (Status, bool) {
	return Status{}, false
}

// resolveBackend says what a backendRef of an object of the kind in the namespace comes to.
func (t *tables) resolveBackend(r *incr.Reads, kind source.Kind, namespace string, ref gatewayv1.BackendObjectReference) backend {
	return backend{}
}

// granted says whether a ReferenceGrant allows a reference. Same namespace: always.
func (t *tables) granted(r *incr.Reads, from source.Kind, fromNamespace, toGroup, toKind, toNamespace, toName string) bool {
	return false
}
