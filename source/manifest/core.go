package manifest

import (
	"encoding/base64"
	"maps"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"signalbox.dev/source"
)

// coreObject decodes strictly an object of a kind without a CRD, applies the
// defaults that a reader of the object can see, and checks what a proxy's
// configuration would break on. Everything else of these kinds is not our business.
func coreObject(value map[string]any, info source.KindInfo) (source.Object, field.ErrorList) {
	if info.Kind != source.KindPod { // a pod's status has its address and readiness
		delete(value, "status")
	}
	object := info.New()
	if errs := strict(value, object, nil); len(errs) > 0 {
		return nil, errs
	}
	return object, admitCore(object)
}

func admitCore(object source.Object) field.ErrorList {
	switch o := object.(type) {
	case *corev1.Service:
		return admitService(o)
	case *discoveryv1.EndpointSlice:
		return admitEndpointSlice(o)
	case *corev1.Pod:
		return admitPod(o)
	case *corev1.Secret:
		return admitSecret(o)
	case *corev1.ConfigMap:
		return admitConfigMap(o)
	case *corev1.Namespace:
		labels := map[string]string{corev1.LabelMetadataName: o.Name}
		maps.Copy(labels, o.Labels)
		labels[corev1.LabelMetadataName] = o.Name
		o.Labels = labels
	}
	return nil
}

func admitService(s *corev1.Service) (errs field.ErrorList) {
	if s.Spec.Type == "" {
		s.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if s.Spec.SessionAffinity == "" {
		s.Spec.SessionAffinity = corev1.ServiceAffinityNone
	}
	spec := field.NewPath("spec")
	errs = append(errs, oneOf(spec.Child("type"), s.Spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)...)
	if s.Spec.Type == corev1.ServiceTypeExternalName && s.Spec.ExternalName == "" {
		errs = append(errs, field.Required(spec.Child("externalName"), "a Service of type ExternalName needs it"))
	}
	if len(s.Spec.Ports) == 0 && s.Spec.Type != corev1.ServiceTypeExternalName && s.Spec.ClusterIP != corev1.ClusterIPNone {
		errs = append(errs, field.Required(spec.Child("ports"), "a Service needs at least one port, unless it is headless (clusterIP: None)"))
	}
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	names, numbers := map[string]bool{}, map[key]bool{}
	for i := range s.Spec.Ports {
		port, path := &s.Spec.Ports[i], spec.Child("ports").Index(i)
		errs = append(errs, checkPort(path.Child("port"), int64(port.Port))...)
		errs = append(errs, checkTargetPort(path.Child("targetPort"), port.TargetPort)...)
		defaultServicePort(port)
		errs = append(errs, checkProtocol(path.Child("protocol"), port.Protocol)...)
		if port.Name == "" && len(s.Spec.Ports) > 1 {
			errs = append(errs, field.Required(path.Child("name"), "a port of a Service with several needs a name"))
		}
		errs = append(errs, checkPortName(path.Child("name"), port.Name, names)...)
		if k := (key{port.Protocol, port.Port}); numbers[k] {
			errs = append(errs, field.Duplicate(path.Child("port"), port.Port))
		} else {
			numbers[k] = true
		}
	}
	return errs
}

func defaultServicePort(port *corev1.ServicePort) {
	if port.Protocol == "" {
		port.Protocol = corev1.ProtocolTCP
	}
	if unset(port.TargetPort) {
		port.TargetPort = intstr.FromInt32(port.Port)
	}
}

func admitEndpointSlice(s *discoveryv1.EndpointSlice) (errs field.ErrorList) {
	errs = append(errs, oneOf(field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)...)
	names := map[string]bool{}
	for i := range s.Ports {
		port, path := &s.Ports[i], field.NewPath("ports").Index(i)
		if port.Name == nil {
			port.Name = new("")
		}
		if port.Protocol == nil {
			port.Protocol = new(corev1.ProtocolTCP)
		}
		if port.Port != nil {
			errs = append(errs, checkPort(path.Child("port"), int64(*port.Port))...)
		}
		errs = append(errs, checkProtocol(path.Child("protocol"), *port.Protocol)...)
		errs = append(errs, checkPortName(path.Child("name"), *port.Name, names)...)
	}
	for i, endpoint := range s.Endpoints {
		path := field.NewPath("endpoints").Index(i).Child("addresses")
		if len(endpoint.Addresses) == 0 {
			errs = append(errs, field.Required(path, "an endpoint needs an address"))
		}
		for j, address := range endpoint.Addresses {
			errs = append(errs, checkAddress(path.Index(j), s.AddressType, address)...)
		}
	}
	return errs
}

func admitPod(p *corev1.Pod) (errs field.ErrorList) {
	for i := range p.Spec.Containers {
		for j := range p.Spec.Containers[i].Ports {
			port, path := &p.Spec.Containers[i].Ports[j], field.NewPath("spec", "containers").Index(i).Child("ports").Index(j)
			if port.Protocol == "" {
				port.Protocol = corev1.ProtocolTCP
			}
			errs = append(errs, checkPort(path.Child("containerPort"), int64(port.ContainerPort))...)
		}
	}
	if p.Status.PodIP != "" {
		errs = append(errs, validation.IsValidIP(field.NewPath("status", "podIP"), p.Status.PodIP)...)
	}
	for i, ip := range p.Status.PodIPs {
		errs = append(errs, validation.IsValidIP(field.NewPath("status", "podIPs").Index(i).Child("ip"), ip.IP)...)
	}
	return errs
}

func admitSecret(s *corev1.Secret) (errs field.ErrorList) {
	if s.Type == "" {
		s.Type = corev1.SecretTypeOpaque
	}
	if len(s.StringData) > 0 && s.Data == nil {
		s.Data = map[string][]byte{}
	}
	for key, value := range s.StringData {
		s.Data[key] = []byte(value)
	}
	s.StringData = nil
	size := 0
	for key, value := range s.Data {
		errs = append(errs, checkKey(field.NewPath("data").Key(key), key)...)
		size += len(value)
	}
	errs = append(errs, checkSize(field.NewPath("data"), size)...)
	if s.Type == corev1.SecretTypeTLS {
		for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
			if _, ok := s.Data[key]; !ok {
				errs = append(errs, field.Required(field.NewPath("data").Key(key), "a Secret of type kubernetes.io/tls needs it"))
			}
		}
	}
	return errs
}

func admitConfigMap(c *corev1.ConfigMap) (errs field.ErrorList) {
	size := 0
	for key, value := range c.Data {
		errs = append(errs, checkKey(field.NewPath("data").Key(key), key)...)
		size += len(value)
		if _, twice := c.BinaryData[key]; twice {
			errs = append(errs, field.Forbidden(field.NewPath("binaryData").Key(key), "the key stands under data too: keep one"))
		}
	}
	for key, value := range c.BinaryData {
		errs = append(errs, checkKey(field.NewPath("binaryData").Key(key), key)...)
		size += base64.StdEncoding.EncodedLen(len(value))
	}
	return append(errs, checkSize(field.NewPath("data"), size)...)
}
