package manifest

import (
	"context"
	"embed"
	"fmt"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	sigsyaml "sigs.k8s.io/yaml"

	"signalbox.dev/source"
)

//go:generate ../../scripts/crds

//go:embed crds/*.yaml
var crdFiles embed.FS

// crds has the kinds that a CRD defines.
var crds = func() map[source.Kind]*crd {
	m := map[source.Kind]*crd{}
	for _, info := range source.Kinds {
		file := "crds/" + info.Resource + ".yaml"
		if _, err := crdFiles.Open(file); err == nil {
			m[info.Kind] = &crd{file: file, versions: map[string]*version{}}
		}
	}
	return m
}()

// serves reports whether objects of a kind may be written in a version.
func serves(info *source.KindInfo, name string) bool {
	if crd := crds[info.Kind]; crd != nil {
		return crd.version(name) != nil
	}
	return name == info.GVK.Version
}

// crd is one CustomResourceDefinition. Reading one and compiling its CEL rules
// costs tens of milliseconds, so both wait for the first object that needs them.
type crd struct {
	file     string
	mu       sync.Mutex
	loaded   *apiextensionsv1.CustomResourceDefinition
	versions map[string]*version
}

// version is what is made of one version's schema. All of it is safe for use by
// several goroutines.
type version struct {
	structural *structural.Structural
	schema     validation.SchemaValidator
	cel        *cel.Validator // nil if the schema has no rules
}

// version returns nil for a version that the CRD does not serve. It panics on a CRD
// that the libraries cannot read: the CRDs are part of the binary.
func (c *crd) version(name string) *version {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.versions[name]; ok {
		return v
	}
	if c.loaded == nil {
		text, err := crdFiles.ReadFile(c.file)
		must(err)
		c.loaded = &apiextensionsv1.CustomResourceDefinition{}
		must(sigsyaml.Unmarshal(text, c.loaded))
	}
	for _, v := range c.loaded.Spec.Versions {
		if v.Name == name && v.Served {
			c.versions[name] = newVersion(v.Schema)
			return c.versions[name]
		}
	}
	return nil
}

func newVersion(schema *apiextensionsv1.CustomResourceValidation) *version {
	var in apiextensions.CustomResourceValidation
	must(apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(schema, &in, nil))
	s, err := structural.NewStructural(in.OpenAPIV3Schema)
	must(err)
	s = s.DeepCopy()
	must(defaulting.PruneDefaults(s))
	validator, _, err := validation.NewSchemaValidator(in.OpenAPIV3Schema)
	must(err)
	return &version{structural: s, schema: validator, cel: cel.NewValidator(s, true, celconfig.PerCallLimit)}
}

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("embedded CRD: %v", err))
	}
}

// object does what an API server does when an object is created: drop the status,
// refuse unknown fields (kubectl's default), default, validate; then read the
// object in the version that signalbox uses. The CRDs' conversion is "None": only
// apiVersion changes, and the other version's defaults apply.
func (c *crd) object(value map[string]any, info source.KindInfo) (source.Object, field.ErrorList) {
	delete(value, "status")
	written := versionOf(text(value, "apiVersion"))
	if errs := c.version(written).admit(value); len(errs) > 0 {
		return nil, errs
	}
	if written != info.GVK.Version {
		value["apiVersion"] = info.GVK.GroupVersion().String()
		if errs := c.version(info.GVK.Version).admit(value); len(errs) > 0 {
			return nil, errs
		}
	}
	object := info.New()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(value, object); err != nil {
		return nil, field.ErrorList{fault("", "cannot be read: "+err.Error())}
	}
	return object, nil
}

func versionOf(apiVersion string) string {
	for i := len(apiVersion) - 1; i >= 0; i-- {
		if apiVersion[i] == '/' {
			return apiVersion[i+1:]
		}
	}
	return apiVersion
}

// admit defaults value in place and returns what is wrong with it. The order is the
// API server's (customresource_handler.go, strategy.go): CEL runs only on what
// fits the schema.
func (v *version) admit(value map[string]any) field.ErrorList {
	var errs field.ErrorList
	for _, path := range pruning.PruneWithOptions(value, v.structural, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}) {
		errs = append(errs, unknownField(path))
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(value, v.structural)
	defaulting.Default(value, v.structural)
	errs = append(errs, validation.ValidateCustomResource(nil, value, v.schema)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, v.structural, value)...)
	if len(errs) == 0 {
		found, _ := v.cel.Validate(context.Background(), nil, v.structural, value, nil, celconfig.RuntimeCELCostBudget)
		errs = append(errs, found...)
	}
	return errs
}

func unknownField(path string) *field.Error {
	return fault(path, "unknown field: check its spelling, its place and its indentation, or remove it")
}
