package translator

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// policyTargets returns every Service that a policy targets.
func policyTargets(_ key, o *gatewayv1.BackendTLSPolicy) []key {
	var out []key
	for _, target := range serviceTargets(o) {
		out = append(out, target.Service)
	}
	return out
}

// serviceTargets returns the policy's targets that are Services; nothing else can be one
// in this version of the API.
func serviceTargets(o *gatewayv1.BackendTLSPolicy) []policyTarget {
	var out []policyTarget
	for _, ref := range o.Spec.TargetRefs {
		if ref.Group == "" && ref.Kind == "Service" {
			out = append(out, policyTarget{objectKey(o.Namespace, string(ref.Name)), string(ptr.Deref(ref.SectionName, ""))})
		}
	}
	return out
}

// policy resolves a BackendTLSPolicy. A policy that cannot be kept to the letter is
// Invalid: its Services are then not reached, since going there unprotected is what the
// policy's owner has ruled out (BackendTLSPolicyValidation: "connections MUST fail").
func (t *tables) policy(r *incr.Reads, _ key, o *gatewayv1.BackendTLSPolicy) (policyRow, bool) {
	v := o.Spec.Validation
	row := policyRow{
		Ref: source.RefOf(o), Generation: o.Generation, Created: o.CreationTimestamp.Time,
		Targets: serviceTargets(o), Hostname: string(v.Hostname),
	}
	accepted, resolved := policyAccepted.because(msgPolicyAccepted), policyResolved.because(msgPolicyResolved)
	var problems []metav1.Condition
	row.CA, problems = t.policyCA(r, o.Namespace, v.CACertificateRefs)
	for i, p := range problems {
		if i == 0 {
			resolved = p
		} else {
			resolved.Message += " " + p.Message
		}
	}
	wellKnown := ptr.Deref(v.WellKnownCACertificates, "")
	switch {
	case !validHostname(row.Hostname) || strings.HasPrefix(row.Hostname, "*"):
		accepted = policyInvalid.because(msgPolicyHostname, row.Hostname)
	case len(v.SubjectAltNames) > 0:
		accepted = policyInvalid.because(msgPolicySANs)
	case wellKnown == gatewayv1.WellKnownCACertificatesSystem:
		row.System = true
	case wellKnown != "":
		accepted = policyInvalid.because(msgPolicyWellKnown, wellKnown)
	case len(row.CA) == 0:
		accepted = policyNoCA.because(msgPolicyNoCA)
	}
	row.Invalid = accepted.Status != metav1.ConditionTrue
	row.Conditions = []metav1.Condition{accepted, resolved}
	return row, true
}

// policyCA returns the certificates of the ConfigMaps, as PEM and nothing else, and what
// is wrong with the rest.
func (t *tables) policyCA(r *incr.Reads, namespace string, refs []gatewayv1.LocalObjectReference) (bundle []byte, problems []metav1.Condition) {
	for i, ref := range refs {
		if ref.Group != "" || ref.Kind != "ConfigMap" {
			problems = append(problems, policyCAKind.because(msgPolicyCAKind, i, ref.Kind, ref.Group))
			continue
		}
		configMap, ok := t.configMaps.Get(r, objectKey(namespace, string(ref.Name)))
		if !ok {
			problems = append(problems, policyInvalidCA.because(msgPolicyCAMissing, i, ref.Name))
			continue
		}
		text, ok := configMap.Data["ca.crt"]
		if !ok {
			problems = append(problems, policyInvalidCA.because(msgPolicyCANoKey, i, ref.Name))
			continue
		}
		certificates, err := certificatesOf([]byte(text))
		if err != nil {
			problems = append(problems, policyInvalidCA.because(msgPolicyCABad, i, ref.Name, err))
			continue
		}
		bundle = append(bundle, certificates...)
	}
	return bundle, problems
}

// certificatesOf returns the certificates of a PEM bundle without what else is in it
// (comments and text fill the metadata of every picker stream), if every one can be
// parsed and there is at least one.
func certificatesOf(bundle []byte) ([]byte, error) {
	var out []byte
	for {
		var block *pem.Block
		block, bundle = pem.Decode(bundle)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a PEM block %q; only CERTIFICATE belongs there", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("holds a certificate that cannot be read: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	if len(out) == 0 {
		return nil, errors.New("holds no PEM certificate")
	}
	return out, nil
}

// policyFor returns the policy in force for a Service's port: one for the named port
// before one for the whole Service, then the oldest, then namespace/name.
func (t *tables) policyFor(r *incr.Reads, service key, port string) (best policyRow, ok bool) {
	bestNamed := false
	for _, k := range t.policiesByService.Keys(r, service) {
		row, _ := t.policyRows.Get(r, k)
		for _, target := range row.Targets {
			if target.Service != service || target.Section != "" && target.Section != port {
				continue
			}
			named := target.Section != ""
			if !ok || named && !bestNamed || named == bestNamed && row.before(best) {
				best, bestNamed, ok = row, named, true
			}
		}
	}
	return best, ok
}

// before says whether p takes precedence over o on the same target.
func (p policyRow) before(o policyRow) bool {
	return cmp.Or(p.Created.Compare(o.Created), p.Ref.Compare(o.Ref)) < 0
}

// rival returns a policy that takes precedence over row on one of its very targets.
func (t *tables) rival(r *incr.Reads, row policyRow) (rival policyRow, on policyTarget, found bool) {
	for _, target := range row.Targets {
		for _, k := range t.policiesByService.Keys(r, target.Service) {
			other, _ := t.policyRows.Get(r, k)
			for _, theirs := range other.Targets {
				if theirs == target && other.before(row) && (!found || other.before(rival)) {
					rival, on, found = other, target, true
				}
			}
		}
	}
	return rival, on, found
}
