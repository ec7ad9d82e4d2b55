package translator

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"signalbox.dev/extproc/contract"
	"signalbox.dev/source"
)

// authority returns a certificate, as PEM.
func authority(t *testing.T) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// policyOf writes a BackendTLSPolicy; rest goes into its validation.
func policyOf(name, created, target, rest string) string {
	return fmt.Sprintf("kind: BackendTLSPolicy\nmetadata: {name: %s, generation: 2, creationTimestamp: %q}\nspec: {targetRefs: [%s], validation: {hostname: epp.example, %s}}", name, created, target, rest)
}

const (
	theEPP = "{group: '', kind: Service, name: epp}"
	system = "wellKnownCACertificates: System"
	older  = "2026-01-01T00:00:00Z"
	newer  = "2026-01-02T00:00:00Z"
)

// policyWorld has a pool p, reached from the Gateway infra/one, whose picker's Service is
// default/epp, and the ConfigMaps ca, two, junk and empty.
func policyWorld(t *testing.T, ca string, documents ...string) *tables {
	t.Helper()
	w := world(t, Options{}, append([]string{eppService, poolOf("{name: epp, port: {number: 9002}, failureMode: FailOpen}", "{}")}, documents...)...)
	for name, data := range map[string]map[string]string{
		"ca":    {"ca.crt": "# ours\n" + ca + "\ntrailing text"},
		"two":   {"ca.crt": ca + ca},
		"junk":  {"ca.crt": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
		"words": {"ca.crt": "not PEM"},
		"keys":  {"ca.crt": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
		"empty": {"tls.crt": ca},
	} {
		o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: data}
		w.set(source.Change{Ref: source.RefOf(o), Object: o})
	}
	w.g.Update(nil)
	attach(w, "r", "infra/one", true, thePool)
	return w
}

func refs(names ...string) string {
	var out []string
	for _, name := range names {
		out = append(out, "{group: '', kind: ConfigMap, name: "+name+"}")
	}
	return "caCertificateRefs: [" + strings.Join(out, ", ") + "]"
}

func TestPolicy(t *testing.T) {
	ca := authority(t)
	for _, c := range []struct {
		name, validation   string
		ca                 string // that the picker is verified against
		broken             bool
		accepted, resolved string // reasons
		message            string // a part of what is wrong
	}{
		{"system roots", system, "", false, "Accepted", "ResolvedRefs", ""},
		{"a ConfigMap", refs("ca"), ca, false, "Accepted", "ResolvedRefs", ""},
		{"several certificates", refs("two", "ca"), ca + ca + ca, false, "Accepted", "ResolvedRefs", ""},
		{"one of two missing", refs("ca", "gone"), ca, false, "Accepted", "InvalidCACertificateRef", "caCertificateRefs[1]: the ConfigMap gone does not exist"},
		{"missing", refs("gone"), "", true, "NoValidCACertificate", "InvalidCACertificateRef", "gone does not exist"},
		{"no ca.crt", refs("empty"), "", true, "NoValidCACertificate", "InvalidCACertificateRef", "no key ca.crt"},
		{"no certificate", refs("junk"), "", true, "NoValidCACertificate", "InvalidCACertificateRef", "cannot be read"},
		{"no PEM", refs("words"), "", true, "NoValidCACertificate", "InvalidCACertificateRef", "no PEM certificate"},
		{"a key", refs("keys"), "", true, "NoValidCACertificate", "InvalidCACertificateRef", "PRIVATE KEY"},
		{"all of them named", refs("gone", "empty"), "", true, "NoValidCACertificate", "InvalidCACertificateRef", "caCertificateRefs[1]: the ConfigMap empty"},
		{"a Secret", "caCertificateRefs: [{group: '', kind: Secret, name: ca}]", "", true, "NoValidCACertificate", "InvalidKind", "kind Secret"},
		{"unknown roots", "wellKnownCACertificates: example.com/ours", "", true, "Invalid", "ResolvedRefs", `"example.com/ours"`},
		{"subjectAltNames", system + ", subjectAltNames: [{type: Hostname, hostname: x.example}]", "", true, "Invalid", "ResolvedRefs", "subjectAltNames"},
		{"neither", "subjectAltNames: []", "", true, "NoValidCACertificate", "ResolvedRefs", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := policyWorld(t, ca, policyOf("b", newer, theEPP, c.validation))
			row, _ := w.poolRows.Get(nil, "default/p")
			switch {
			case row.Broken != c.broken:
				t.Errorf("broken: %v; %s", row.Broken, row.ResolvedRefs.Message)
			case row.Broken:
				expectCondition(t, row.ResolvedRefs, "ResolvedRefs", "False", "InvalidExtensionRef", "BackendTLSPolicy default/b")
			case row.Picker.TLS != contract.TLSVerify || row.Picker.ServerName != "epp.example" || string(row.Picker.CA) != c.ca:
				t.Errorf("picker %+v", row.Picker)
			default:
				expectParsedBack(t, *row.Picker)
			}
			status, _ := w.policyStatus.Get(nil, "default/b")
			if len(status.Policy.Ancestors) != 1 {
				t.Fatalf("ancestors %+v", status.Policy.Ancestors)
			}
			a := status.Policy.Ancestors[0]
			if string(a.ControllerName) != ControllerName || a.AncestorRef.Name != "one" || *a.AncestorRef.Namespace != "infra" || *a.AncestorRef.Kind != "Gateway" {
				t.Errorf("ancestor %+v", a)
			}
			truth := func(ok bool) string { return map[bool]string{true: "True", false: "False"}[ok] }
			expectCondition(t, a.Conditions[0], "Accepted", truth(c.accepted == "Accepted"), c.accepted, "")
			expectCondition(t, a.Conditions[1], "ResolvedRefs", truth(c.resolved == "ResolvedRefs"), c.resolved, "")
			if said := a.Conditions[0].Message + a.Conditions[1].Message; !strings.Contains(said, c.message) {
				t.Errorf("messages %q, want %q in them", said, c.message)
			}
			for _, condition := range a.Conditions {
				if condition.ObservedGeneration != 2 {
					t.Errorf("condition %+v", condition)
				}
			}
		})
	}
}

// Of several policies on one target the oldest is kept, then the first by name; the
// others say so. One for a named port goes before one for the Service and is no rival.
func TestPolicyPrecedence(t *testing.T) {
	hostname := func(name, created, target string) string {
		return strings.Replace(policyOf(name, created, target, system), "epp.example", name+".example", 1)
	}
	const grpc = "{group: '', kind: Service, name: epp, sectionName: grpc}"
	for _, c := range []struct {
		name       string
		policies   []string
		server     string
		conflicted []string
	}{
		{"one", []string{hostname("a", older, theEPP)}, "a.example", nil},
		{"older first", []string{hostname("a", newer, theEPP), hostname("b", older, theEPP)}, "b.example", []string{"a"}},
		{"then by name", []string{hostname("b", older, theEPP), hostname("a", older, theEPP), hostname("c", older, theEPP)}, "a.example", []string{"b", "c"}},
		{"named port", []string{hostname("a", older, theEPP), hostname("b", newer, grpc)}, "b.example", nil},
		{"named port, older first", []string{hostname("a", newer, grpc), hostname("b", older, grpc), hostname("c", older, theEPP)}, "b.example", []string{"a"}},
		{"another port", []string{hostname("a", older, strings.Replace(grpc, "grpc", "plain", 1))}, "", nil},
		{"another Service", []string{hostname("a", older, strings.Replace(theEPP, "epp", "other", 1))}, "", nil},
		{"not a Service", []string{hostname("a", older, "{group: x.example, kind: Service, name: epp}")}, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := policyWorld(t, authority(t), c.policies...)
			row, _ := w.poolRows.Get(nil, "default/p")
			if row.Picker == nil || row.Picker.ServerName != c.server || (row.Picker.TLS == contract.TLSVerify) != (c.server != "") {
				t.Errorf("picker %+v, want server name %q", row.Picker, c.server)
			}
			var conflicted []string
			for _, name := range []string{"a", "b", "c"} {
				status, ok := w.policyStatus.Get(nil, key("default/"+name))
				if !ok {
					continue
				}
				for _, a := range status.Policy.Ancestors {
					if a.Conditions[0].Reason == "Conflicted" {
						expectCondition(t, a.Conditions[0], "Accepted", "False", "Conflicted", "default/"+strings.TrimSuffix(c.server, ".example"))
						conflicted = append(conflicted, name)
					}
				}
			}
			if !slices.Equal(conflicted, c.conflicted) {
				t.Errorf("conflicted: %v, want %v", conflicted, c.conflicted)
			}
		})
	}
}

func TestPolicyWithoutPicker(t *testing.T) {
	w := policyWorld(t, authority(t), policyOf("a", older, strings.Replace(theEPP, "epp", "web", 1), system))
	status, _ := w.policyStatus.Get(nil, "default/a")
	if len(status.Policy.Ancestors) != 0 {
		t.Errorf("ancestors %+v", status.Policy.Ancestors)
	}
	expectWarnings(t, status.Warnings, "Service default/web is not the endpoint picker")
}

func TestPolicyBeatsAnnotation(t *testing.T) {
	w := policyWorld(t, authority(t), policyOf("a", older, theEPP, system),
		poolOf("{name: epp, port: {number: 9002}}", "{signalbox.dev/picker-tls: plaintext}"))
	row, _ := w.poolRows.Get(nil, "default/p")
	if row.Picker == nil || row.Picker.TLS != contract.TLSVerify {
		t.Errorf("picker %+v", row.Picker)
	}
	expectWarnings(t, row.Warnings, "picker-tls is ignored")
}

// A picker's certificate authority changes with its ConfigMap.
func TestPolicyFollowsItsConfigMap(t *testing.T) {
	w := policyWorld(t, authority(t), policyOf("a", older, theEPP, refs("late")))
	if row, _ := w.poolRows.Get(nil, "default/p"); !row.Broken {
		t.Error("the pool works without the ConfigMap of its policy")
	}
	ca := authority(t)
	o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "late"}, Data: map[string]string{"ca.crt": ca}}
	w.set(source.Change{Ref: source.RefOf(o), Object: o})
	w.g.Update(nil)
	if row, _ := w.poolRows.Get(nil, "default/p"); row.Broken || string(row.Picker.CA) != ca {
		t.Errorf("after it came: %+v", row)
	}
}
