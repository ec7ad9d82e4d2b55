package provision

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/bootstrap"
	"signalbox.dev/provision/infrastructure"
	"signalbox.dev/provision/pki"
)

// Object is what is made for a Gateway.
type Object interface {
	metav1.Object
	runtime.Object
}

// Settings are what the pods of all Gateways have in common.
type Settings struct {
	EnvoyImage string // unless a Gateway's parameters name another
	Image      string // signalbox's own, for the process beside Envoy
	// XDS is where pods find the control plane, HOST:PORT. ServerName is the name in its
	// certificate, whatever the host is.
	XDS, ServerName string
	// ListenAddress is what pods listen on for their health: "0.0.0.0" or "::".
	ListenAddress string
}

// Credentials are how a Gateway's Envoys show who they are.
type Credentials struct {
	pki.Pair
	CA []byte // PEM of the authorities that they trust
}

// Where things are in a pod.
const (
	configDir   = "/etc/signalbox/config"
	certDir     = "/etc/signalbox/certs"
	adminSocket = "unix:" + infrastructure.RunDir + "/admin.sock"
	drainedFile = infrastructure.RunDir + "/drained"

	// program is where images have the binary.
	program      = "/usr/local/bin/signalbox"
	envoyProgram = "/usr/local/bin/envoy"
)

// user runs both containers, and so may use the sockets of the other.
const user = 65532

// killAfter is what a pod has beyond its drain time, in seconds.
const killAfter = 30

// annotationConfig, on a pod, is a hash of what it was started with: a change replaces it.
const annotationConfig = "signalbox.dev/config"

// Render returns all that is made for a Gateway, in the order in which it is needed. It
// is pure.
func Render(g infrastructure.Gateway, s Settings, c Credentials) ([]Object, error) {
	config, err := envoyConfig(g, s)
	if err != nil {
		return nil, fmt.Errorf("bootstrap of Gateway %s/%s: %w", g.Namespace, g.Name, err)
	}
	return []Object{
		&corev1.ServiceAccount{TypeMeta: kind(corev1.SchemeGroupVersion.WithKind("ServiceAccount")), ObjectMeta: meta(g), AutomountServiceAccountToken: ptr.To(false)},
		&corev1.Secret{TypeMeta: kind(corev1.SchemeGroupVersion.WithKind("Secret")), ObjectMeta: meta(g), Type: corev1.SecretTypeOpaque,
			Data: map[string][]byte{pki.KeyCert: c.Cert, pki.KeyKey: c.Key, pki.KeyCA: c.CA}},
		&corev1.ConfigMap{TypeMeta: kind(corev1.SchemeGroupVersion.WithKind("ConfigMap")), ObjectMeta: meta(g), Data: config},
		service(g),
		deployment(g, s, config),
		&policyv1.PodDisruptionBudget{TypeMeta: kind(policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget")), ObjectMeta: meta(g),
			Spec: policyv1.PodDisruptionBudgetSpec{MaxUnavailable: ptr.To(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: selector(g)}}},
	}, nil
}

func kind(k interface{ ToAPIVersionAndKind() (string, string) }) metav1.TypeMeta {
	apiVersion, kind := k.ToAPIVersionAndKind()
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

// selector returns the labels by which a Gateway's pods are known.
func selector(g infrastructure.Gateway) map[string]string {
	return map[string]string{
		infrastructure.LabelManagedBy: infrastructure.ManagedBy,
		gatewayv1.GatewayNameLabelKey: infrastructure.LabelValue(g.Name),
	}
}

// labels returns the user's labels with ours, which the user's cannot replace.
func labels(g infrastructure.Gateway) map[string]string {
	out := map[string]string{}
	maps.Copy(out, g.Labels)
	maps.Copy(out, selector(g))
	out["app.kubernetes.io/name"] = "envoy"
	out["app.kubernetes.io/part-of"] = "signalbox"
	return out
}

func meta(g infrastructure.Gateway) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: g.Namespace, Name: infrastructure.ResourceName(g.Name), Labels: labels(g), Annotations: maps.Clone(g.Annotations),
		OwnerReferences: []metav1.OwnerReference{{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Name: g.Name, UID: g.UID, Controller: ptr.To(true)}},
	}
}

// heapShare is how much of its memory limit Envoy may use before it refuses requests, in
// tenths.
const heapShare = 8

func envoyConfig(g infrastructure.Gateway, s Settings) (map[string]string, error) {
	var heap uint64
	if limit, ok := g.Parameters.EnvoyResources.Limits[corev1.ResourceMemory]; ok {
		heap = uint64(max(limit.Value(), 0)) / 10 * heapShare
	}
	b, err := bootstrap.Render(bootstrap.Options{
		Group: g.Namespace + "/" + g.Name, XDS: s.XDS, Admin: adminSocket, MaxHeapBytes: heap,
		ReadyPort: infrastructure.ReadyPort, ReadyAddress: s.ListenAddress,
		TLS: &bootstrap.TLS{ServerName: s.ServerName, Config: configDir},
	})
	if err != nil {
		return nil, err
	}
	out := bootstrap.SDS(certDir)
	out["envoy.yaml"] = string(b)
	return out, nil
}

func service(g infrastructure.Gateway) *corev1.Service {
	out := &corev1.Service{
		TypeMeta: kind(corev1.SchemeGroupVersion.WithKind("Service")), ObjectMeta: meta(g),
		Spec: corev1.ServiceSpec{Type: g.Parameters.ServiceType, Selector: selector(g)},
	}
	if g.Parameters.ServiceType == corev1.ServiceTypeLoadBalancer {
		// Deprecated, and the only field that most load balancers know.
		out.Spec.LoadBalancerIP = g.Address
	}
	for _, p := range g.Ports {
		out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{
			Name: "port-" + strconv.Itoa(int(p.Service)), Port: p.Service, TargetPort: intstr.FromInt32(p.Pod), Protocol: corev1.ProtocolTCP})
	}
	return out
}

func deployment(g infrastructure.Gateway, s Settings, config map[string]string) *appsv1.Deployment {
	template := pod(g, s)
	template.Annotations = maps.Clone(g.Annotations)
	if template.Annotations == nil {
		template.Annotations = map[string]string{}
	}
	sum := sha256.Sum256([]byte(config["envoy.yaml"]))
	template.Annotations[annotationConfig] = hex.EncodeToString(sum[:8])
	return &appsv1.Deployment{
		TypeMeta: kind(appsv1.SchemeGroupVersion.WithKind("Deployment")), ObjectMeta: meta(g),
		Spec: appsv1.DeploymentSpec{
			Replicas: g.Parameters.Replicas,
			Selector: &metav1.LabelSelector{MatchLabels: selector(g)},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
				MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromString("25%"))}},
			Template: template,
		},
	}
}

func pod(g infrastructure.Gateway, s Settings) corev1.PodTemplateSpec {
	p := g.Parameters
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels(g)},
		Spec: corev1.PodSpec{
			ServiceAccountName:            infrastructure.ResourceName(g.Name),
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			TerminationGracePeriodSeconds: ptr.To(int64(p.DrainSeconds) + killAfter),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: ptr.To(true), RunAsUser: ptr.To[int64](user), RunAsGroup: ptr.To[int64](user), FSGroup: ptr.To[int64](user),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			ImagePullSecrets: p.ImagePullSecrets, NodeSelector: p.NodeSelector, Tolerations: p.Tolerations, Affinity: p.Affinity,
			TopologySpreadConstraints: spread(g),
			// An init container that is always restarted starts before Envoy and ends
			// after it: requests that drain still need it.
			InitContainers: []corev1.Container{beside(p, s)},
			Containers:     []corev1.Container{envoy(p, s)},
			Volumes: []corev1.Volume{
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: infrastructure.ResourceName(g.Name)}}}},
				{Name: "certs", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: infrastructure.ResourceName(g.Name), DefaultMode: ptr.To[int32](0o440)}}},
				{Name: "run", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			},
		},
	}
}

// spread returns how pods are spread: over nodes where that is possible, unless the
// parameters say otherwise. A constraint without a selector is on the Gateway's pods.
func spread(g infrastructure.Gateway) []corev1.TopologySpreadConstraint {
	given := g.Parameters.TopologySpreadConstraints
	if given == nil {
		given = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway}}
	}
	out := make([]corev1.TopologySpreadConstraint, len(given))
	for i, c := range given {
		if c.LabelSelector == nil {
			c.LabelSelector = &metav1.LabelSelector{MatchLabels: selector(g)}
		}
		out[i] = c
	}
	return out
}

func hardened() *corev1.SecurityContext {
	return &corev1.SecurityContext{AllowPrivilegeEscalation: ptr.To(false), ReadOnlyRootFilesystem: ptr.To(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
}

// ready asks every second: a Gateway is of use when its first pod is ready.
func ready(path string, port int32) *corev1.Probe {
	return &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 3, TimeoutSeconds: 2,
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(port)}}}
}

// envoy returns Envoy's container. Before it is told to end, the kubelet asks the one
// beside it whether it has drained, and waits for the answer.
func envoy(p infrastructure.Parameters, s Settings) corev1.Container {
	level := p.LogLevel
	if level == "warn" {
		level = "warning"
	}
	args := []string{"-c", configDir + "/envoy.yaml", "--service-node", "$(POD_NAME)", "--disable-hot-restart", "--log-level", level, "--drain-time-s", "600"}
	if cpu, ok := p.EnvoyResources.Limits[corev1.ResourceCPU]; ok { // else one a processor of the node
		args = append(args, "--concurrency", strconv.FormatInt(max(1, cpu.Value()), 10))
	}
	return corev1.Container{
		Name: "envoy", Image: cmp.Or(p.EnvoyImage, s.EnvoyImage), Command: []string{envoyProgram}, Args: args,
		Env:             []corev1.EnvVar{{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}},
		Ports:           []corev1.ContainerPort{{Name: "ready", ContainerPort: infrastructure.ReadyPort}},
		Resources:       requests(p.EnvoyResources, "10m", "64Mi"),
		SecurityContext: hardened(),
		ReadinessProbe:  ready("/ready", infrastructure.ReadyPort),
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/drained", Port: intstr.FromInt32(infrastructure.BesidePort)}}},
		VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: configDir, ReadOnly: true}, {Name: "certs", MountPath: certDir, ReadOnly: true}, {Name: "run", MountPath: infrastructure.RunDir}},
	}
}

// beside returns the container of the process beside Envoy. It has no liveness probe: its
// preStop hook, which drains Envoy, must not run but at the pod's end. The kubelet runs
// the hooks of all containers at once, and ends this one after Envoy.
func beside(p infrastructure.Parameters, s Settings) corev1.Container {
	return corev1.Container{
		Name: "extproc", Image: cmp.Or(p.SignalboxImage, s.Image), RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways), Command: []string{program},
		Args: []string{"extproc", "--listen", infrastructure.ExtProcSocket, "--metrics", net.JoinHostPort(s.ListenAddress, strconv.Itoa(infrastructure.BesidePort)),
			"--drained", drainedFile, "--log-level", p.LogLevel, "--log-format", "json"},
		Ports:           []corev1.ContainerPort{{Name: "metrics", ContainerPort: infrastructure.BesidePort}},
		Resources:       requests(p.SideResources, "10m", "32Mi"),
		SecurityContext: hardened(),
		ReadinessProbe:  ready("/readyz", infrastructure.BesidePort),
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{program, "drain",
			"--envoy-admin", adminSocket, "--timeout", fmt.Sprintf("%ds", p.DrainSeconds), "--done", drainedFile}}}},
		VolumeMounts: []corev1.VolumeMount{{Name: "run", MountPath: infrastructure.RunDir}},
	}
}

// requests returns the resources with small requests where the user gives neither
// requests nor limits: a scheduler that knows nothing puts everything on one node.
func requests(r corev1.ResourceRequirements, cpu, memory string) corev1.ResourceRequirements {
	if len(r.Requests) > 0 || len(r.Limits) > 0 {
		return r
	}
	r.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	return r
}
