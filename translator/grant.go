package translator

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// granted says whether an object of the kind from, in fromNamespace, may refer to an
// object in toNamespace. Within a namespace it always may; across, a ReferenceGrant in
// the target's namespace must name both sides (gateway-api, ReferenceGrant). A caller
// that is refused must not say whether the target exists.
func (t *tables) granted(r *incr.Reads, from source.Kind, fromNamespace, toGroup, toKind, toNamespace, toName string) bool {
	if fromNamespace == toNamespace {
		return true
	}
	for _, k := range t.grantsByNamespace.Keys(r, key(toNamespace)) {
		g, _ := t.grants.Get(r, k)
		if grantsFrom(g, from, fromNamespace) && grantsTo(g, toGroup, toKind, toName) {
			return true
		}
	}
	return false
}

func grantsFrom(g *gatewayv1.ReferenceGrant, kind source.Kind, namespace string) bool {
	for _, f := range g.Spec.From {
		if string(f.Group) == groupOf(kind) && string(f.Kind) == string(kind) && string(f.Namespace) == namespace {
			return true
		}
	}
	return false
}

func grantsTo(g *gatewayv1.ReferenceGrant, group, kind, name string) bool {
	for _, to := range g.Spec.To {
		anyName := to.Name == nil || *to.Name == ""
		if string(to.Group) == group && string(to.Kind) == kind && (anyName || string(*to.Name) == name) {
			return true
		}
	}
	return false
}

// groupOf returns the API group of a kind that signalbox reads.
func groupOf(kind source.Kind) string {
	for _, k := range source.Kinds {
		if k.Kind == kind {
			return k.GVK.Group
		}
	}
	return ""
}
