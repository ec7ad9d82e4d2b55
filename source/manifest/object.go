package manifest

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"signalbox.dev/source"
)

// experimentalInference is the group in which InferencePool was before it became
// v1. Manifests and backendRefs of that time are still around, and without a word
// their pools would just be missing.
const experimentalInference = "inference.networking.x-k8s.io"

// item reads one object, or each object of a List.
func (p *parser) item(it item) {
	apiVersion, kind := text(it.value, "apiVersion"), text(it.value, "kind")
	if items, ok := it.value["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		p.list(it, items, apiVersion, strings.TrimSuffix(kind, "List"))
		return
	}
	info, err := kindOf(it.value, apiVersion, kind)
	switch {
	case err != nil:
		p.refuse(it, source.Ref{}, field.ErrorList{err})
		p.flush()
	case info == nil:
		p.ignore(it, apiVersion, kind)
	default:
		p.object(it, *info)
	}
}

// list reads the objects of a List; those of a typed one (HTTPRouteList) may leave
// out their kind.
func (p *parser) list(it item, items []any, apiVersion, kind string) {
	for i, v := range items {
		at := find(it.node, fmt.Sprintf("items[%d]", i))
		value, ok := v.(map[string]any)
		if !ok {
			p.refuse(it, source.Ref{}, field.ErrorList{fault(fmt.Sprintf("items[%d]", i), "must be an object")})
			p.flush()
			continue
		}
		if kind != "" && value["kind"] == nil && value["apiVersion"] == nil {
			value["apiVersion"], value["kind"] = apiVersion, kind
		}
		p.item(item{value, at, it.line})
	}
}

func (p *parser) ignore(it item, apiVersion, kind string) {
	metadata, _ := it.value["metadata"].(map[string]any)
	name := text(metadata, "name")
	if ns := text(metadata, "namespace"); ns != "" {
		name = ns + "/" + name
	}
	line, column := position(it.node, it.line)
	p.Ignored = append(p.Ignored, Ignored{p.where(line, column), apiVersion, kind, name})
}

// kindOf returns which of source.Kinds an object is, nil for one that signalbox
// does not read, and an error where it looks meant to be one of ours.
func kindOf(value map[string]any, apiVersion, kind string) (*source.KindInfo, *field.Error) {
	if kind == "" {
		if value["apiVersion"] == nil && value["kind"] == nil {
			return nil, nil // Helm values, kustomizations: normal in a GitOps folder
		}
		return nil, fault("kind", "name the kind of the object, for example HTTPRoute")
	}
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil, fault("apiVersion", err.Error()+": write GROUP/VERSION")
	}
	for i := range source.Kinds {
		info := &source.Kinds[i]
		if string(info.Kind) != kind {
			continue
		}
		right := info.GVK.GroupVersion().String()
		switch {
		case gv.Group == info.GVK.Group && serves(info, gv.Version):
			return info, nil
		case gv.Group == info.GVK.Group, gv.Group == "", gv.Group == experimentalInference:
			return nil, fault("apiVersion", fmt.Sprintf("%s of %q is not read: write apiVersion: %s", kind, apiVersion, right))
		}
	}
	return nil, nil
}

// object decodes, defaults and validates an object of one of our kinds.
func (p *parser) object(it item, info source.KindInfo) {
	errs := p.metadata(it, info)
	ref := refOf(it.value, info)
	if it.node != nil {
		duplicates(it.node, "", func(path string, first, second *yaml.Node) {
			line, column := position(first, it.line)
			p.problem(it, second, ref, path+": the field stands twice, first at "+p.where(line, column)+": keep one")
		})
	}
	var object source.Object
	if len(errs)+len(p.found) == 0 {
		if crd := crds[info.Kind]; crd != nil {
			object, errs = crd.object(it.value, info)
		} else {
			object, errs = coreObject(it.value, info)
		}
	}
	p.refuse(it, ref, errs)
	if len(p.found) > 0 {
		object = nil
	}
	p.flush()
	if ref.Name != "" {
		line, column := position(it.node, it.line)
		p.Objects = append(p.Objects, Located{Ref: ref, Object: object, Where: p.where(line, column)})
	}
}

// metadata checks metadata and puts what the API server would: a namespace, a
// generation. What only a server may set, and what kubectl get -o yaml prints of
// it, is dropped; creationTimestamp stays, because it decides ties between routes.
func (p *parser) metadata(it item, info source.KindInfo) field.ErrorList {
	path := field.NewPath("metadata")
	metadata, ok := it.value["metadata"].(map[string]any)
	if !ok {
		return field.ErrorList{fault("metadata", "an object needs metadata with a name")}
	}
	for _, name := range []string{"managedFields", "resourceVersion", "selfLink", "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName"} {
		delete(metadata, name)
	}
	metadata["generation"] = int64(1)
	var typed metav1.ObjectMeta
	if errs := strict(metadata, &typed, path); len(errs) > 0 {
		return errs
	}
	switch {
	case !info.Namespaced:
		delete(metadata, "namespace")
		typed.Namespace = ""
	case typed.Namespace == "":
		metadata["namespace"] = metav1.NamespaceDefault
		typed.Namespace = metav1.NamespaceDefault
	}
	nameFn := validation.NameIsDNSSubdomain
	if info.Kind == source.KindNamespace || info.Kind == source.KindService {
		nameFn = validation.NameIsDNSLabel
	}
	if typed.Name == "" {
		return field.ErrorList{fault("metadata.name", "give the object a name")}
	}
	return validation.ValidateObjectMeta(&typed, info.Namespaced, nameFn, path)
}

// refOf is the ref of an object as far as it can be told; its Name is empty if not.
func refOf(value map[string]any, info source.KindInfo) source.Ref {
	metadata, _ := value["metadata"].(map[string]any)
	ref := source.Ref{Kind: info.Kind, Name: text(metadata, "name")}
	if info.Namespaced {
		ref.Namespace = text(metadata, "namespace")
		if ref.Namespace == "" {
			ref.Namespace = metav1.NamespaceDefault
		}
	}
	return ref
}

func text(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}
