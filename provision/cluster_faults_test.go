//go:build cluster

package provision

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"signalbox.dev/provision/pki"
	"signalbox.dev/translator"
)

// What is not signalbox's is never taken over, and the Gateway says so until it is gone.
func TestNotOurs(t *testing.T) {
	w := newWorld(t)
	mine := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "signalbox-gw", Namespace: "default"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}}}
	if _, err := w.core.CoreV1().Services("default").Create(t.Context(), mine, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.p.Lead(true)
	w.p.Provide(wanted(w.gateway("gw"), w.gateway("fine")))
	w.until("the report", func() bool {
		return strings.Contains(w.said("gw"), "Service default/signalbox-gw: it exists and is not signalbox's")
	})
	w.until("the other Gateway has all", w.there("fine", all))
	s, err := w.core.CoreV1().Services("default").Get(t.Context(), "signalbox-gw", metav1.GetOptions{})
	if err != nil || s.Spec.Ports[0].Port != 1 || len(s.OwnerReferences) > 0 {
		t.Errorf("somebody's Service is now %+v, %v", s, err)
	}
	if err := w.core.CoreV1().Services("default").Delete(t.Context(), "signalbox-gw", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("all is there", w.there("gw", all))
	w.until("the report is taken back", func() bool { return w.said("gw") == "" })
}

// What the API server refuses is reported in its words.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	w.p.Lead(true)
	gw := w.gateway("gw")
	gw.Parameters.Tolerations = []corev1.Toleration{{Key: "a", Operator: "Sometimes"}}
	w.p.Provide(wanted(gw))
	w.until("the report", func() bool { return strings.Contains(w.said("gw"), "Sometimes") })
	gw.Parameters.Tolerations = nil
	w.p.Provide(wanted(gw))
	w.until("all is there", w.there("gw", all))
	w.until("the report is taken back", func() bool { return w.said("gw") == "" })
}

// pair returns the client certificate that a Gateway's Envoys have.
func (w *world) pair(name string) (pki.Pair, []byte) {
	s, err := w.core.CoreV1().Secrets("default").Get(w.t.Context(), "signalbox-"+name, metav1.GetOptions{})
	if err != nil {
		return pki.Pair{}, nil
	}
	return pki.Pair{Cert: s.Data[pki.KeyCert], Key: s.Data[pki.KeyKey]}, s.Data[pki.KeyCA]
}

// A client certificate stays as long as it is good, is made anew long before it ends,
// and when the authority is another; nothing else of the Gateway changes by that.
func TestCertificates(t *testing.T) {
	w := newWorld(t)
	w.p.Lead(true)
	w.p.Provide(wanted(w.gateway("gw")))
	w.until("all is there", w.there("gw", all))
	first, _ := w.pair("gw")
	if !w.authority.Load().Current(first, "default", "gw", *w.now.Load()) {
		t.Fatal("the certificate is not the Gateway's")
	}
	deployment := w.uid("Deployment", "gw")

	w.until("its own changes have come back", func() bool { return w.settled("gw") })
	if again, _ := w.pair("gw"); string(again.Cert) != string(first.Cert) {
		t.Error("a good certificate has been replaced")
	}
	later := w.now.Load().Add(pki.ClientLife / 2)
	w.now.Store(&later)
	w.p.Again()
	w.until("the certificate is another", func() bool {
		now, _ := w.pair("gw")
		return string(now.Cert) != string(first.Cert) && w.authority.Load().Current(now, "default", "gw", later)
	})
	ca, err := pki.NewAuthority(later)
	if err != nil {
		t.Fatal(err)
	}
	w.authority.Store(ca)
	w.p.Again()
	w.until("the certificate is of the new authority, and that is trusted", func() bool {
		now, trusted := w.pair("gw")
		return ca.Current(now, "default", "gw", later) && string(trusted) == string(ca.Bundle())
	})
	d, err := w.core.AppsV1().Deployments("default").Get(t.Context(), "signalbox-gw", metav1.GetOptions{})
	if err != nil || d.UID != deployment || d.Generation != 1 {
		t.Errorf("the Deployment has changed with the certificates: generation %d, %v", d.Generation, err)
	}
}

// Only the leader writes; a new one takes up what there is, and what nobody wants any
// more goes, also if that has happened while there was no leader.
func TestLeaders(t *testing.T) {
	w := newWorld(t)
	gw, old := w.gateway("gw"), w.gateway("old")
	first, second := w.p, w.start()
	first.Provide(wanted(gw, old))
	second.Provide(wanted(gw, old))
	first.Lead(true)
	w.until("all is there", w.there("old", all))
	w.until("all is there", w.there("gw", all))
	first.Lead(false)
	first.Provide([]translator.Infrastructure{{Ref: ref("old")}})
	second.Provide([]translator.Infrastructure{{Ref: ref("old")}})
	if err := w.core.CoreV1().Services("default").Delete(t.Context(), "signalbox-gw", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.core.CoreV1().Services("default").Get(t.Context(), "signalbox-gw", metav1.GetOptions{}); err == nil {
		t.Error("what was removed is there again without a leader")
	}
	second.Lead(true)
	w.until("what nobody wants is gone", w.there("old", nil))
	w.until("what was missing is there", w.there("gw", all))
}

// A leader that does not know the world yet removes nothing.
func TestKnowsNothing(t *testing.T) {
	w := newWorld(t)
	gw := w.gateway("gw")
	w.p.Provide(wanted(gw))
	w.p.Lead(true)
	w.until("all is there", w.there("gw", all))
	w.p.Lead(false)
	uid := w.uid("Deployment", "gw")
	second := w.start()
	second.Lead(true)
	second.Provide(wanted(gw, w.gateway("new")))
	w.until("it works", w.there("new", all))
	if now := w.uid("Deployment", "gw"); now != uid {
		t.Errorf("the Deployment is %q, was %q: the new leader has removed what it did not know yet", now, uid)
	}
}
