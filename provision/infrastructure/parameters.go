package infrastructure

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// Parameters are what the ConfigMap of a Gateway's parametersRef says. The zero value of
// a field leaves it to the default; docs/kubernetes.md has the schema for users.
type Parameters struct {
	// Replicas of Envoy. nil: one at first, and then whatever an autoscaler or a person
	// has set.
	Replicas                      *int32
	EnvoyImage, SignalboxImage    string
	EnvoyResources, SideResources corev1.ResourceRequirements
	ServiceType                   corev1.ServiceType
	NodeSelector                  map[string]string
	Tolerations                   []corev1.Toleration
	Affinity                      *corev1.Affinity
	TopologySpreadConstraints     []corev1.TopologySpreadConstraint
	ImagePullSecrets              []corev1.LocalObjectReference
	LogLevel                      string // debug, info, warn or error
	DrainSeconds                  int32  // how long requests in flight may take when a pod ends
}

// Defaults and bounds of Parameters.
const (
	DefaultLogLevel     = "warn"
	DefaultDrainSeconds = 300
	MinDrainSeconds     = 10
	MaxDrainSeconds     = 86400
	maxReplicas         = 1000
)

// Default returns the parameters of a Gateway without parametersRef.
func Default() Parameters {
	return Parameters{ServiceType: corev1.ServiceTypeLoadBalancer, LogLevel: DefaultLogLevel, DrainSeconds: DefaultDrainSeconds}
}

// fields lists what the ConfigMap may hold, by key of its data.
var fields = map[string]func(*Parameters, string) error{
	"replicas": func(p *Parameters, s string) error {
		return number(s, 0, maxReplicas, func(n int32) { p.Replicas = &n })
	},
	"envoyImage":     func(p *Parameters, s string) error { return image(s, &p.EnvoyImage) },
	"signalboxImage": func(p *Parameters, s string) error { return image(s, &p.SignalboxImage) },
	"resources": func(p *Parameters, s string) error {
		var both struct {
			Envoy   corev1.ResourceRequirements `json:"envoy"`
			Extproc corev1.ResourceRequirements `json:"extproc"`
		}
		err := structured(s, &both)
		p.EnvoyResources, p.SideResources = both.Envoy, both.Extproc
		return err
	},
	"serviceType": func(p *Parameters, s string) error {
		return oneOf(s, &p.ServiceType, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort, corev1.ServiceTypeClusterIP)
	},
	"nodeSelector":              func(p *Parameters, s string) error { return structured(s, &p.NodeSelector) },
	"tolerations":               func(p *Parameters, s string) error { return structured(s, &p.Tolerations) },
	"affinity":                  func(p *Parameters, s string) error { return structured(s, &p.Affinity) },
	"topologySpreadConstraints": func(p *Parameters, s string) error { return structured(s, &p.TopologySpreadConstraints) },
	"imagePullSecrets":          func(p *Parameters, s string) error { return structured(s, &p.ImagePullSecrets) },
	"logLevel":                  func(p *Parameters, s string) error { return oneOf(s, &p.LogLevel, "debug", "info", "warn", "error") },
	"drainSeconds": func(p *Parameters, s string) error {
		return number(s, MinDrainSeconds, MaxDrainSeconds, func(n int32) { p.DrainSeconds = n })
	},
}

// Parse reads a ConfigMap's data. The error names the key, and what it may hold; of
// several the first by name.
func Parse(data map[string]string) (Parameters, error) {
	p := Default()
	for _, key := range slices.Sorted(maps.Keys(data)) {
		set, ok := fields[key]
		if !ok {
			return Parameters{}, fmt.Errorf("data.%s is unknown; known are %s", key, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		}
		if err := set(&p, strings.TrimSpace(data[key])); err != nil {
			return Parameters{}, fmt.Errorf("data.%s: %w", key, err)
		}
	}
	return p, nil
}

func number(s string, least, most int32, set func(int32)) error {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < int64(least) || n > int64(most) {
		return fmt.Errorf("%q is not a number from %d to %d", s, least, most)
	}
	set(int32(n))
	return nil
}

var errNoImage = errors.New("an image is one word such as docker.io/envoyproxy/envoy:distroless-v1.40.0")

func image(s string, to *string) error {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errNoImage
	}
	*to = s
	return nil
}

func oneOf[T ~string](s string, to *T, allowed ...T) error {
	if !slices.Contains(allowed, T(s)) {
		return fmt.Errorf("%q is not one of %v", s, allowed)
	}
	*to = T(s)
	return nil
}

// structured reads YAML, strictly: a misspelt field is an error, not a default.
func structured(s string, to any) error {
	if err := yaml.UnmarshalStrict([]byte(s), to); err != nil {
		words := err.Error()
		for _, inside := range []string{"error unmarshaling JSON: ", "while decoding JSON: ", "json: "} { // how yaml works inside is nobody's business
			words = strings.TrimPrefix(words, inside)
		}
		return errors.New(words)
	}
	return nil
}
