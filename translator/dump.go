package translator

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"signalbox.dev/source"
	"signalbox.dev/xds"
)

// Dump is an Output in the form in which people read it: `signalbox translate`, the
// goldens and the admin endpoints print it. Map keys are sorted by every encoder.
type Dump struct {
	Envoy  map[string]map[string][]any `json:"envoy,omitempty"` // group → "listeners", "routes", … → resources in Envoy's JSON
	Status []ObjectStatus              `json:"status,omitempty"`
}

// ObjectStatus is what signalbox says of one object.
type ObjectStatus struct {
	Kind      source.Kind `json:"kind"`
	Namespace string      `json:"namespace,omitempty"`
	Name      string      `json:"name"`
	Status    any         `json:"status,omitempty"`
	Warnings  []string    `json:"warnings,omitempty"`
}

// DumpStatus is the section of statuses; the others are named by xds.Type.Short.
const DumpStatus = "status"

// Dump returns o for reading. only selects sections ("listeners", "routes",
// "clusters", "endpoints", "secrets", "status"); none selects all. gateway
// ("namespace/name") selects one Gateway's; empty selects all. Private keys are redacted.
func (o Output) Dump(gateway string, only ...string) (Dump, error) {
	d := Dump{Envoy: map[string]map[string][]any{}}
	wanted := func(section string) bool { return len(only) == 0 || slices.Contains(only, section) }
	for _, c := range o.Resources {
		if c.Resource == nil || !wanted(c.Type.Short()) || gateway != "" && string(c.Group) != gateway {
			continue
		}
		tree, err := c.Resource.JSON()
		if err != nil {
			return d, err
		}
		g := string(c.Group)
		if d.Envoy[g] == nil {
			d.Envoy[g] = map[string][]any{}
		}
		d.Envoy[g][c.Type.Short()] = append(d.Envoy[g][c.Type.Short()], tree)
	}
	if wanted(DumpStatus) {
		for _, s := range o.Statuses {
			x, err := s.Dump()
			if err != nil {
				return d, err
			}
			d.Status = append(d.Status, x)
		}
	}
	return d, nil
}

// Dump returns s for reading, without the times that the translator does not know.
func (s Status) Dump() (ObjectStatus, error) {
	out := ObjectStatus{Kind: s.Ref.Kind, Namespace: s.Ref.Namespace, Name: s.Ref.Name, Warnings: s.Warnings}
	status := s.content()
	if status == nil {
		return out, nil
	}
	b, err := json.Marshal(status)
	if err != nil {
		return out, fmt.Errorf("status of %s: %w", s.Ref, err)
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		return out, fmt.Errorf("status of %s: %w", s.Ref, err)
	}
	out.Status = withoutNulls(tree)
	return out, nil
}

// content returns the status field that is set, or nil.
func (s Status) content() any {
	switch {
	case s.GatewayClass != nil:
		return s.GatewayClass
	case s.Gateway != nil:
		return s.Gateway
	case s.HTTPRoute != nil:
		return s.HTTPRoute
	case s.Pool != nil:
		return s.Pool
	case s.Policy != nil:
		return s.Policy
	}
	return nil
}

func withoutNulls(tree any) any {
	switch v := tree.(type) {
	case map[string]any:
		for k, x := range v {
			if x == nil {
				delete(v, k)
			} else {
				v[k] = withoutNulls(x)
			}
		}
	case []any:
		for i, x := range v {
			v[i] = withoutNulls(x)
		}
	}
	return tree
}

// DumpSectionNames returns every section that Dump knows, for error messages.
func DumpSectionNames() []string {
	var out []string
	for _, t := range xds.Types {
		out = append(out, t.Short())
	}
	return append(out, DumpStatus)
}

// CheckDumpSections returns an error that names the first section that does not exist.
func CheckDumpSections(only []string) error {
	for _, s := range only {
		if !slices.Contains(DumpSectionNames(), s) {
			return fmt.Errorf("no section %q; the sections are %s", s, strings.Join(DumpSectionNames(), ", "))
		}
	}
	return nil
}
