package translator

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"signalbox.dev/extproc/contract"
	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// Annotations of an InferencePool. A value that cannot be read is reported as a warning
// on the pool and counts as absent.
const (
	// annotationPickerTLS says how the pool's endpoint picker is dialled: "insecure" is
	// TLS without verifying the certificate, "plaintext" HTTP/2 in the clear. Without it:
	// plaintext if the port of the picker's Service has appProtocol kubernetes.io/h2c,
	// else insecure, since pickers ship with a self-signed certificate (appProtocol
	// http2, which their charts set, included). A BackendTLSPolicy on the picker's
	// Service goes before the annotation: TLS, verified.
	annotationPickerTLS = "signalbox.dev/picker-tls"
	// annotationPickerResponse says how much of the responses the picker sees: "Full"
	// (default), "Headers", or "None". With Headers it takes a request for done when the
	// response begins, with None when it has picked, and neither sees tokens; it then
	// cannot put back a model name that it rewrote, either.
	annotationPickerResponse = "signalbox.dev/picker-response"
	// annotationPickTimeout bounds how long the picker may take to pick, as a Go duration
	// ("30s"); past it the pool's failureMode decides. Absent or "0s": no bound, as
	// pickers may queue requests; one that is dead is noticed all the same.
	annotationPickTimeout = "signalbox.dev/pick-timeout"
)

// pool resolves an InferencePool. What its picker's endpoints are belongs to it; the
// pool's own endpoints do not (endpoints.go), since they change all the time.
func (t *tables) pool(r *incr.Reads, k key, o *inferencev1.InferencePool) (poolRow, bool) {
	row := poolRow{
		Ref: source.RefOf(o), Generation: o.Generation,
		H2C: o.Spec.AppProtocol == inferencev1.AppProtocolH2C,
	}
	ref := o.Spec.EndpointPickerRef
	if ref == nil {
		row.ResolvedRefs = poolResolved.because(msgPoolBalanced)
		return row, true
	}
	row.PickerService = objectKey(o.Namespace, string(ref.Name))
	picker, broken := t.picker(r, row.PickerService, ref, o.Annotations, &row.Warnings)
	if broken != nil {
		row.Broken, row.ResolvedRefs = true, *broken
		return row, true
	}
	picker.Pool = string(k)
	row.Picker, row.ResolvedRefs = picker, poolResolved.because(msgPoolResolved)
	return row, true
}

// backend returns the key, and the cluster's name, of the pool.
func (p poolRow) backend() key {
	k := objectKey(p.Ref.Namespace, p.Ref.Name)
	if p.Picker == nil && !p.Broken {
		return balancedBackend(k)
	}
	return poolBackend(k)
}

// picker follows an endpointPickerRef; broken says why it cannot. A picker without
// ready endpoints is not broken: it is known to be gone, and the failure mode decides.
func (t *tables) picker(r *incr.Reads, service key, ref *inferencev1.EndpointPickerRef, annotations map[string]string, warnings *[]string) (p *contract.Picker, broken *metav1.Condition) {
	port, broken := t.pickerPort(r, service, ref)
	if broken != nil {
		return nil, broken
	}
	p = &contract.Picker{FailOpen: ref.FailureMode == inferencev1.EndpointPickerFailOpen}
	if broken = t.pickerTLS(r, p, service, port, annotations, warnings); broken != nil {
		return nil, broken
	}
	p.Response, p.PickTimeout = pickerOptions(annotations, warnings)
	endpoints, more := t.serviceEndpoints(r, service, port)
	for _, e := range endpoints {
		p.Endpoints = append(p.Endpoints, e.String())
	}
	*warnings = append(*warnings, more...)
	return p, nil
}

// pickerPort returns the port of the Service that an endpointPickerRef names.
func (t *tables) pickerPort(r *incr.Reads, service key, ref *inferencev1.EndpointPickerRef) (servicePort, *metav1.Condition) {
	fail := func(message string, args ...any) (servicePort, *metav1.Condition) {
		c := poolUnresolved.because(message, args...)
		return servicePort{}, &c
	}
	group := ptr.Deref(ref.Group, "")
	if group != "" || ref.Kind != "" && ref.Kind != "Service" {
		return fail(msgPickerKind, ref.Kind, group)
	}
	row, ok := t.serviceRows.Get(r, service)
	switch {
	case !ok:
		return fail(msgPickerMissing, service)
	case row.External:
		return fail(msgPickerExternal, service)
	case ref.Port == nil:
		return fail(msgPickerNoPort, service)
	}
	port, ok := row.port(int32(ref.Port.Number))
	if !ok || port.UDP {
		return fail(msgPickerNoSuchPort, service, ref.Port.Number)
	}
	return port, nil
}

// pickerTLS says how the picker is dialled; broken if a policy forbids to.
func (t *tables) pickerTLS(r *incr.Reads, p *contract.Picker, service key, port servicePort, annotations map[string]string, warnings *[]string) (broken *metav1.Condition) {
	p.TLS = contract.TLSInsecure
	if port.App == "kubernetes.io/h2c" {
		p.TLS = contract.TLSPlaintext
	}
	asked, set := annotations[annotationPickerTLS]
	if set {
		switch m := contract.TLSMode(asked); m {
		case contract.TLSInsecure, contract.TLSPlaintext:
			p.TLS = m
		default:
			*warnings = append(*warnings, fmt.Sprintf(msgWarnPickerTLS, annotationPickerTLS, asked, service))
			set = false
		}
	}
	policy, ok := t.policyFor(r, service, port.Name)
	if !ok {
		return nil
	}
	name := objectKey(policy.Ref.Namespace, policy.Ref.Name)
	if policy.Invalid {
		c := poolUnresolved.because(msgPickerPolicy, name, service)
		return &c
	}
	if set {
		*warnings = append(*warnings, fmt.Sprintf(msgWarnPickerPolicy, annotationPickerTLS, name, service))
	}
	p.TLS, p.ServerName, p.CA = contract.TLSVerify, policy.Hostname, policy.CA
	return nil
}

// pickerOptions reads the annotations that say how the picker is asked.
func pickerOptions(annotations map[string]string, warnings *[]string) (contract.ResponseMode, time.Duration) {
	response := contract.ResponseFull
	switch v, set := annotations[annotationPickerResponse]; {
	case !set, v == "Full":
	case v == "Headers":
		response = contract.ResponseHeaders
	case v == "None":
		response = contract.ResponseNone
	default:
		*warnings = append(*warnings, fmt.Sprintf(msgWarnPickerResponse, annotationPickerResponse, v))
	}
	v, set := annotations[annotationPickTimeout]
	if !set {
		return response, 0
	}
	timeout, err := time.ParseDuration(v)
	if err != nil || timeout < 0 {
		*warnings = append(*warnings, fmt.Sprintf(msgWarnPickTimeout, annotationPickTimeout, v))
		return response, 0
	}
	return response, timeout
}
