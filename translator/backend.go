package translator

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// oldPoolGroup is the group that InferencePool had before v1.0. Guides of that time are
// still around, so a reference to it is told where the pool went.
const oldPoolGroup = "inference.networking.x-k8s.io"

func (t *tables) service(_ *incr.Reads, _ key, o *corev1.Service) (serviceRow, bool) {
	row := serviceRow{Ref: source.RefOf(o), External: o.Spec.Type == corev1.ServiceTypeExternalName}
	for _, p := range o.Spec.Ports {
		row.Ports = append(row.Ports, servicePort{
			Name: p.Name, Port: p.Port, App: ptr.Deref(p.AppProtocol, ""),
			UDP: p.Protocol != "" && p.Protocol != corev1.ProtocolTCP,
		})
	}
	return row, true
}

// port returns the port of the number. A Service may have one number twice, for TCP and
// for UDP: TCP is meant.
func (s serviceRow) port(number int32) (port servicePort, ok bool) {
	for _, p := range s.Ports {
		if p.Port == number && (!ok || port.UDP) {
			port, ok = p, true
		}
	}
	return port, ok
}

// h2c says whether the port speaks HTTP/2 in the clear. Kubernetes has one word for it
// (KEP-3726); http2 and grpc are what charts wrote before.
func (p servicePort) h2c() bool {
	switch p.App {
	case "kubernetes.io/h2c", "http2", "grpc":
		return true
	}
	return false
}

// spoken says whether signalbox speaks the port's appProtocol.
func (p servicePort) spoken() bool { return p.App == "" || p.App == "http" || p.h2c() }

// resolveBackend says what a backendRef of an object of the kind in the namespace comes
// to: a Service's port, or an InferencePool.
func (t *tables) resolveBackend(r *incr.Reads, kind source.Kind, namespace string, ref gatewayv1.BackendObjectReference) backend {
	group, refKind := string(ptr.Deref(ref.Group, "")), string(ptr.Deref(ref.Kind, "Service"))
	namespaceOf := string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(namespace)))
	to := objectKey(namespaceOf, string(ref.Name))
	var warning string
	switch {
	case group == "" && refKind == "Service":
	case group == inferencev1.GroupName && refKind == "InferencePool":
	case (group == "" || group == "core") && refKind == "InferencePool":
		// The user's guides leave the group out, and the core group has no such kind, so
		// nothing else can be meant.
		group, warning = inferencev1.GroupName, fmt.Sprintf(msgWarnPoolGroup, to)
	case group == oldPoolGroup && refKind == "InferencePool":
		return refuse(backendInvalidKind.because(msgBackendOldGroup, to))
	default:
		return refuse(backendInvalidKind.because(msgBackendKind, to, refKind, group))
	}
	if !t.granted(r, kind, namespace, group, refKind, namespaceOf, string(ref.Name)) {
		return refuse(backendNotPermitted.because(msgBackendForbidden, to, namespaceOf, kind, namespace, refKind))
	}
	var b backend
	if refKind == "Service" {
		b = t.serviceBackendOf(r, to, ref.Port)
	} else {
		b = t.poolBackendOf(r, to)
	}
	b.Warning = warning
	return b
}

// serviceBackendOf resolves a reference to a Service.
func (t *tables) serviceBackendOf(r *incr.Reads, service key, number *gatewayv1.PortNumber) backend {
	row, ok := t.serviceRows.Get(r, service)
	switch {
	case !ok:
		return refuse(backendNotFound.because(msgBackendMissing, service, "Service"))
	case row.External:
		return refuse(backendInvalidKind.because(msgBackendExternal, service))
	case number == nil:
		return refuse(backendNotFound.because(msgBackendNoPort, service))
	}
	port, ok := row.port(*number)
	switch {
	case !ok:
		return refuse(backendNotFound.because(msgBackendNoSuchPort, service, *number))
	case port.UDP:
		return refuse(backendUnsupported.because(msgBackendNotTCP, service, port.Port))
	case !port.spoken():
		return refuse(backendUnsupported.because(msgBackendAppProtocol, service, port.Port, port.App))
	}
	k := serviceBackend(service, port.Port)
	return backend{Key: k, Cluster: string(k)}
}

// poolBackendOf resolves a reference to an InferencePool. The reference's port plays no
// part: a pool says its own (inference extension, backendRef.port).
func (t *tables) poolBackendOf(r *incr.Reads, pool key) backend {
	row, ok := t.poolRows.Get(r, pool)
	if !ok {
		return refuse(backendNotFound.because(msgBackendMissing, pool, "InferencePool"))
	}
	k := row.backend()
	return backend{Key: k, Cluster: string(k), Pool: pool, Picker: row.Picker}
}

func refuse(why metav1.Condition) backend { return backend{Failure: &why} }
