package xds

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
)

// Redacted stands where a private key stood.
const Redacted = "[redacted]"

// JSON returns the resource as Envoy's own JSON, as a tree of maps, slices and plain
// values. Private keys are replaced by Redacted. The type of everything inside must
// be linked into the program, which holds for all that the translator makes.
func (r *Resource) JSON() (map[string]any, error) {
	m, err := r.Any.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", r.Type.Short(), r.Name, err)
	}
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", r.Type.Short(), r.Name, err)
	}
	var tree map[string]any
	if err := json.Unmarshal(b, &tree); err != nil {
		return nil, fmt.Errorf("%s %q: %w", r.Type.Short(), r.Name, err)
	}
	redact(tree)
	return tree, nil
}

// redact replaces every private key in a tree, wherever it stands: a key in a place
// that nobody thought of must not be shown either.
func redact(tree any) {
	switch v := tree.(type) {
	case map[string]any:
		for k, x := range v {
			if k == "privateKey" || k == "password" {
				v[k] = Redacted
				continue
			}
			redact(x)
		}
	case []any:
		for _, x := range v {
			redact(x)
		}
	}
}
