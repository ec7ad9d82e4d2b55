package manifest

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func oneOf[T ~string](path *field.Path, value T, allowed ...T) field.ErrorList {
	switch {
	case slices.Contains(allowed, value):
		return nil
	case value == "":
		return field.ErrorList{field.Required(path, fmt.Sprintf("one of %v", allowed))}
	default:
		return field.ErrorList{field.NotSupported(path, value, allowed)}
	}
}

func checkPort(path *field.Path, port int64) field.ErrorList {
	if port < 1 || port > 65535 {
		return field.ErrorList{field.Invalid(path, port, validation.InclusiveRangeError(1, 65535))}
	}
	return nil
}

func checkProtocol(path *field.Path, protocol corev1.Protocol) field.ErrorList {
	return oneOf(path, protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
}

func checkTargetPort(path *field.Path, port intstr.IntOrString) field.ErrorList {
	if unset(port) {
		return nil
	}
	if port.Type == intstr.Int {
		return checkPort(path, int64(port.IntVal))
	}
	return invalid(path, port.StrVal, validation.IsValidPortName(port.StrVal))
}

func unset(port intstr.IntOrString) bool {
	return port == intstr.FromInt32(0) || port == intstr.FromString("")
}

// checkPortName takes the names seen so far and adds this one.
func checkPortName(path *field.Path, name string, seen map[string]bool) field.ErrorList {
	if seen[name] {
		return field.ErrorList{field.Duplicate(path, name)}
	}
	seen[name] = true
	if name == "" {
		return nil
	}
	return invalid(path, name, validation.IsDNS1123Label(name))
}

func checkAddress(path *field.Path, t discoveryv1.AddressType, address string) field.ErrorList {
	switch t {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
		errs := validation.IsValidIP(path, address)
		if len(errs) == 0 && isIPv6(address) != (t == discoveryv1.AddressTypeIPv6) {
			errs = append(errs, field.Invalid(path, address, fmt.Sprintf("must be of the slice's addressType, %s", t)))
		}
		return errs
	case discoveryv1.AddressTypeFQDN:
		return validation.IsFullyQualifiedDomainName(path, address)
	}
	return nil
}

func isIPv6(address string) bool { return slices.Contains([]byte(address), ':') }

func checkKey(path *field.Path, key string) field.ErrorList {
	return invalid(path, key, validation.IsConfigMapKey(key))
}

func checkSize(path *field.Path, size int) field.ErrorList {
	if size > corev1.MaxSecretSize {
		return field.ErrorList{field.TooLong(path, "", corev1.MaxSecretSize)}
	}
	return nil
}

func invalid(path *field.Path, value string, messages []string) (errs field.ErrorList) {
	for _, message := range messages {
		errs = append(errs, field.Invalid(path, value, message))
	}
	return errs
}
