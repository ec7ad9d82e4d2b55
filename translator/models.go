package translator

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"

	"signalbox.dev/translator/incr"
)

// This file reads which adapter (LoRA) has which base model. The extractor knows only
// the model that a request names; a rule on the base model's header becomes one key of
// the route table for each model whose base it is (table.go). So one rule serves any
// number of adapters, and no client can forge the base.

// modelLabels are the labels, value "true", of the ConfigMaps that are read: those of
// the inference extension v1.3, of v1.4 and v1.5, and of llm-d.
var modelLabels = []string{
	"inference-gateway.k8s.io/managed",
	"inference.networking.k8s.io/bbr-managed",
	"inference.llm-d.ai/ipp-managed",
}

// modelListRow is one labelled ConfigMap: a base model and its adapters.
type modelListRow struct {
	Base     string
	Adapters []string // sorted, unique, without Base
	Problem  string   // what could not be read; for the routes that use Base
}

// modelRow is one model, base or adapter, of one namespace.
type modelRow struct {
	Base  string // "" on conflict
	Bases []string
	// ConfigMaps that name it. More than one base among them is a conflict: the model
	// is then neither's (adapter names must be unique over base models).
	ConfigMaps []key
	Problems   []string
}

// modelName is one model that an entry of a route table is for.
type modelName struct {
	Name string
	Base string // "" if unknown
}

// modelList reads a ConfigMap; one without a label or without baseModel is none of ours.
func (t *tables) modelList(_ *incr.Reads, k key, o *corev1.ConfigMap) (modelListRow, bool) {
	if !slices.ContainsFunc(modelLabels, func(l string) bool { return o.Labels[l] == "true" }) {
		return modelListRow{}, false
	}
	row := modelListRow{Base: strings.TrimSpace(o.Data["baseModel"])}
	if !isModelName(row.Base) {
		return modelListRow{}, false
	}
	var adapters []string
	if err := yaml.Unmarshal([]byte(o.Data["adapters"]), &adapters); err != nil {
		row.Problem = fmt.Sprintf("ConfigMap %s: data.adapters is not a YAML list of names; its adapters are not known", k)
		return row, true
	}
	for _, a := range adapters {
		if a = strings.TrimSpace(a); !isModelName(a) {
			row.Problem = fmt.Sprintf("ConfigMap %s: adapter %q is not a model name (1 to 256 printable ASCII characters without space, comma or quote)", k, a)
		} else if a != row.Base {
			row.Adapters = append(row.Adapters, a)
		}
	}
	slices.Sort(row.Adapters)
	row.Adapters = slices.Compact(row.Adapters)
	return row, true
}

// isModelName says whether the extractor would hand out s as a model: what is none can
// stand in no request and must stand in no header.
func isModelName(s string) bool {
	return s != "" && len(s) <= 256 && !strings.ContainsFunc(s, func(c rune) bool { return c < '!' || c > '~' || c == ',' || c == '"' })
}

// modelsOf returns the keys of the models that a ConfigMap names, its base included.
func modelsOf(k key, row modelListRow) []key {
	namespace, _ := splitKey(k)
	out := []key{objectKey(namespace, row.Base)}
	for _, a := range row.Adapters {
		out = append(out, objectKey(namespace, a))
	}
	return out
}

func (t *tables) model(r *incr.Reads, _ key, configMaps []key) (modelRow, bool) {
	row := modelRow{ConfigMaps: configMaps}
	for _, k := range configMaps {
		list, _ := t.modelLists.Get(r, k)
		row.Bases = append(row.Bases, list.Base)
		if list.Problem != "" {
			row.Problems = append(row.Problems, list.Problem)
		}
	}
	slices.Sort(row.Bases)
	if row.Bases = slices.Compact(row.Bases); len(row.Bases) == 1 {
		row.Base = row.Bases[0]
	}
	return row, true
}

// modelBases returns the keys of the base models that claim a model.
func modelBases(k key, row modelRow) []key {
	namespace, _ := splitKey(k)
	var out []key
	for _, b := range row.Bases {
		out = append(out, objectKey(namespace, b))
	}
	return out
}

// modelDemand is what the header matches of one HTTPRoute match demand of the model.
type modelDemand struct {
	Exact     string // "" unless the model's header must equal it
	Base      string // "" unless the base model's header must equal it
	BaseRegex string // "" unless the base model's header must match it, whole
}

// wants returns whether a base model, "" if it is not known, is as demanded.
func (d modelDemand) wants() func(base string) bool {
	re := regexp.MustCompile("^(?:" + d.BaseRegex + ")$")
	return func(base string) bool {
		return (d.Base == "" || base == d.Base) && (d.BaseRegex == "" || base != "" && re.MatchString(base))
	}
}

// modelNames returns the models that fulfil the demand, sorted by name, and what is wrong
// with the ConfigMaps it looked at.
func (t *tables) modelNames(r *incr.Reads, namespace string, d modelDemand) (names []modelName, warnings []string) {
	wanted := d.wants()
	switch {
	case d.Exact != "":
		base := ""
		if row, ok := t.models.Get(r, objectKey(namespace, d.Exact)); ok {
			base, warnings = row.Base, modelWarnings(d.Exact, row)
		}
		if base == "" && d.Base == d.Exact {
			base = d.Base // a base model is its own base, whether a ConfigMap says so or not
		}
		if !wanted(base) {
			return nil, append(warnings, fmt.Sprintf("no request can match both model %q and its base model as demanded: no ConfigMap of namespace %s says that it is", d.Exact, namespace))
		}
		return []modelName{{d.Exact, base}}, warnings
	case d.Base != "":
		names, warnings = t.modelsAmong(r, t.modelsByBase.Keys(r, objectKey(namespace, d.Base)), wanted)
		if !slices.Contains(names, modelName{d.Base, d.Base}) {
			if _, claimed := t.models.Get(r, objectKey(namespace, d.Base)); !claimed {
				names = append(names, modelName{d.Base, d.Base})
			}
		}
	default:
		names, warnings = t.modelsAmong(r, t.modelsByNamespace.Keys(r, key(namespace)), wanted)
	}
	slices.SortFunc(names, func(a, b modelName) int { return strings.Compare(a.Name, b.Name) })
	return names, warnings
}

// modelsAmong returns those of the models whose base is wanted. A conflicting model is
// left out, with a warning.
func (t *tables) modelsAmong(r *incr.Reads, models []key, wanted func(base string) bool) (names []modelName, warnings []string) {
	for _, k := range models {
		row, _ := t.models.Get(r, k)
		_, name := splitKey(k)
		warnings = append(warnings, modelWarnings(name, row)...)
		if row.Base != "" && wanted(row.Base) {
			names = append(names, modelName{name, row.Base})
		}
	}
	return names, warnings
}

func modelWarnings(name string, row modelRow) []string {
	if row.Base != "" {
		return row.Problems
	}
	return append(slices.Clone(row.Problems), fmt.Sprintf("model %q is claimed by %d base models (%s) in ConfigMaps %s; it belongs to none until only one claims it",
		name, len(row.Bases), strings.Join(row.Bases, ", "), joinKeys(row.ConfigMaps)))
}

func joinKeys(keys []key) string {
	s := make([]string, len(keys))
	for i, k := range keys {
		s[i] = string(k)
	}
	return strings.Join(s, ", ")
}
