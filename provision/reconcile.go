package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/provision/infrastructure"
	"signalbox.dev/provision/pki"
)

// fieldManager owns what is applied.
const fieldManager = "signalbox"

// reconcile makes true what a Gateway asks for. It stops at the first object that is
// refused: those that follow need it.
func (p *Provisioner) reconcile(ctx context.Context, there *observed, g infrastructure.Gateway) error {
	credentials, err := p.credentials(ctx, g)
	if err != nil {
		return err
	}
	wanted, err := Render(g, p.opt.Settings, credentials)
	if err != nil {
		return err
	}
	have := there.of(types.NamespacedName{Namespace: g.Namespace, Name: g.Name})
	for _, o := range wanted {
		kind := o.GetObjectKind().GroupVersionKind().Kind
		k := object{kind, o.GetNamespace(), o.GetName()}
		err := p.apply(ctx, there, k, o, have[k])
		if err != nil {
			p.writes.WithLabelValues(kind, "error").Inc()
			return fmt.Errorf("%s %s/%s: %w", kind, k.namespace, k.name, err)
		}
	}
	return nil
}

var errNotOurs = errors.New("it exists and is not signalbox's; rename or remove it, or rename the Gateway")

// apply makes one object as it should be, unless it is.
func (p *Provisioner) apply(ctx context.Context, there *observed, k object, o Object, have metav1.Object) error {
	u, content, err := applied(o)
	if err != nil || there.settled(k, content, have) {
		return err
	}
	resource := resources[k.kind]
	if have == nil { // perhaps another's: applying would take it over
		found, err := p.metadata.Resource(resource).Namespace(k.namespace).Get(ctx, k.name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err == nil && found.Labels[infrastructure.LabelManagedBy] != infrastructure.ManagedBy {
			return errNotOurs
		}
	}
	after, err := p.objects.Resource(resource).Namespace(k.namespace).Apply(ctx, k.name, u, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return err
	}
	p.writes.WithLabelValues(k.kind, "applied").Inc()
	there.note(k, content, after)
	return nil
}

// applied returns an object as it is sent: what it says and nothing else.
func applied(o Object) (*unstructured.Unstructured, string, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, "", err
	}
	delete(fields, "status")
	for _, path := range [][]string{{"metadata", "creationTimestamp"}, {"spec", "template", "metadata", "creationTimestamp"}} {
		unstructured.RemoveNestedField(fields, path...)
	}
	content, err := json.Marshal(fields)
	return &unstructured.Unstructured{Object: fields}, string(content), err
}

// credentials returns the client certificate of a Gateway's Envoys: the one that its
// Secret holds, or a new one if that will not do any more.
func (p *Provisioner) credentials(ctx context.Context, g infrastructure.Gateway) (Credentials, error) {
	authority := p.opt.Authority()
	if authority == nil {
		return Credentials{}, errors.New("the certificate authority is not known yet")
	}
	out := Credentials{CA: authority.Bundle()}
	name := infrastructure.ResourceName(g.Name)
	secret, err := p.core.CoreV1().Secrets(g.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return out, fmt.Errorf("Secret %s/%s: %w", g.Namespace, name, err)
	}
	now := p.opt.Now()
	if err == nil {
		out.Pair = pki.Pair{Cert: secret.Data[pki.KeyCert], Key: secret.Data[pki.KeyKey]}
		if authority.Current(out.Pair, g.Namespace, g.Name, now) {
			return out, nil
		}
	}
	out.Pair, err = authority.Client(g.Namespace, g.Name, now)
	if err == nil {
		p.log.Info("client certificate issued", zap.String("gateway", g.Namespace+"/"+g.Name), zap.Time("until", now.Add(pki.ClientLife)))
	}
	return out, err
}

// gateways is how the API server calls Gateways.
var gateways = gatewayv1.SchemeGroupVersion.WithResource("gateways")

// remove takes away what there is for a Gateway that is not ours any more, or brings its
// own Envoys now. If the Gateway itself has gone, the API server does it.
func (p *Provisioner) remove(ctx context.Context, there *observed, gateway types.NamespacedName) error {
	have := there.of(gateway)
	if len(have) == 0 {
		return nil
	}
	owner, err := p.metadata.Resource(gateways).Namespace(gateway.Namespace).Get(ctx, gateway.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("Gateway %s: %w", gateway, err)
	}
	for k, m := range have {
		if !owned(m, owner.UID) {
			continue
		}
		uid := m.GetUID()
		err := p.metadata.Resource(resources[k.kind]).Namespace(k.namespace).Delete(ctx, k.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			p.writes.WithLabelValues(k.kind, "error").Inc()
			return fmt.Errorf("%s %s/%s: %w", k.kind, k.namespace, k.name, err)
		}
		p.writes.WithLabelValues(k.kind, "removed").Inc()
	}
	p.log.Info("the Gateway's Envoys are removed", zap.Stringer("gateway", gateway))
	return nil
}

func owned(m metav1.Object, uid types.UID) bool {
	for _, ref := range m.GetOwnerReferences() {
		if ref.UID == uid {
			return true
		}
	}
	return false
}
