// Package infrastructure says what a Gateway asks for so that Envoys run for it: names
// of objects, ports, and the parameters of the ConfigMap that
// spec.infrastructure.parametersRef names.
//
// It is what the translator, which derives it, and package provision, which makes it
// true, have in common. It is pure.
package infrastructure

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// AnnotationUnmanaged on a Gateway, with the value "true", says that its Envoys are brought along:
// nothing is provisioned for it.
const AnnotationUnmanaged = "signalbox.dev/unmanaged"

// LabelManagedBy is ManagedBy on every object that is made for a Gateway, and so tells
// it from what others have made.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ManagedBy      = "signalbox"
)

// Gateway is what one Gateway asks for.
type Gateway struct {
	Namespace, Name string
	UID             types.UID // of the Gateway, which owns all that is made
	Ports           []Port    // sorted, without repetitions
	// Labels and Annotations are spec.infrastructure's.
	Labels, Annotations map[string]string
	// Address is the IP address that spec.addresses asks for; "" takes any.
	Address    string
	Parameters Parameters
}

// Port is a port of the Service and the one of the pod behind it.
type Port struct{ Service, Pod int32 }

// Ports of a pod that are not listeners'.
const (
	ReadyPort  = 19001 // Envoy: /ready and /stats/prometheus
	BesidePort = 19002 // the process beside Envoy: health, metrics
)

// RunDir is the folder of a pod in which its two containers share sockets.
const RunDir = "/run/signalbox"

// ExtProcSocket is where Envoy finds the process beside it.
const ExtProcSocket = "unix:" + RunDir + "/extproc.sock"

// offset leads from a privileged port to the one that is bound for it: the pod's
// containers run without privileges.
const offset = 10000

// PodPort returns the port that Envoy binds in its pod for a listener's.
func PodPort(listener int32) int32 {
	if listener < 1024 {
		return listener + offset
	}
	return listener
}

// Reserved says whether the pod needs a port of its own for something else.
func Reserved(podPort int32) bool { return podPort == ReadyPort || podPort == BesidePort }

// ResourceName returns the name of every object that is made for a Gateway: also
// of its Service, which is why it is a DNS label of at most 63 characters, without the
// dots that a Gateway's name may hold. Names that had to be changed end in a hash.
func ResourceName(gateway string) string { return label("signalbox-", gateway) }

// LabelValue returns the value of the label gateway.networking.k8s.io/gateway-name for a
// Gateway: its name, as long as that can be one (GEP-1762).
func LabelValue(gateway string) string {
	if len(gateway) <= maxLabel {
		return gateway
	}
	return label("", gateway)
}

const maxLabel = 63

func label(prefix, name string) string {
	clean := prefix + strings.ReplaceAll(name, ".", "-")
	if len(clean) <= maxLabel && !strings.Contains(name, ".") {
		return clean
	}
	sum := sha256.Sum256([]byte(name))
	hash := "-" + hex.EncodeToString(sum[:4])
	return strings.TrimRight(clean[:min(len(clean), maxLabel-len(hash))], "-") + hash
}
