package translator

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/provision/infrastructure"
	"signalbox.dev/source"
	"signalbox.dev/translator/incr"
)

// Infrastructure is what one Gateway needs in the cluster so that Envoys run for it.
type Infrastructure struct {
	Ref source.Ref // of the Gateway
	// Wanted is nil if nothing is wanted: what there is goes, unless it is Kept.
	Wanted *infrastructure.Gateway
	// Kept says that the Gateway is refused as it is now. What runs for it stays as it
	// is: a typing mistake must not take Envoys away.
	Kept bool
}

// Report is what came of providing for a Gateway.
type Report struct {
	Gateway source.Ref
	Words   string // of whoever refused; "" if all is there
}

// managed says whether Envoys are run for a Gateway.
func (t *tables) managed(o *gatewayv1.Gateway) bool {
	return t.opt.Provision && o.Annotations[infrastructure.AnnotationUnmanaged] != "true"
}

// bound returns the port that Envoy binds for a listener's.
func (t *tables) bound(o *gatewayv1.Gateway, port int32) int32 {
	if t.managed(o) {
		return infrastructure.PodPort(port)
	}
	if bound, ok := t.opt.Ports[port]; ok {
		return bound
	}
	return port
}

// reported puts reports into the input table.
func (t *tables) reported(reports []Report) {
	for _, r := range reports {
		if k := objectKey(r.Gateway.Namespace, r.Gateway.Name); r.Words == "" {
			t.reports.Delete(k)
		} else {
			t.reports.Set(k, r)
		}
	}
}

// parameters reads what a Gateway's parametersRef names, and returns its Accepted=False
// condition if that cannot be kept.
func (t *tables) parameters(r *incr.Reads, o *gatewayv1.Gateway) (infrastructure.Parameters, *metav1.Condition) {
	refuse := func(format string, args ...any) (infrastructure.Parameters, *metav1.Condition) {
		c := gatewayInvalidParameters.because(format, args...)
		return infrastructure.Parameters{}, &c
	}
	if o.Spec.Infrastructure == nil || o.Spec.Infrastructure.ParametersRef == nil {
		return infrastructure.Default(), nil
	}
	ref := o.Spec.Infrastructure.ParametersRef
	if (ref.Group != "" && ref.Group != "core") || ref.Kind != gatewayv1.Kind(source.KindConfigMap) {
		return refuse(msgParametersKind, ref.Kind, ref.Group)
	}
	m, ok := t.configMaps.Get(r, objectKey(o.Namespace, ref.Name))
	if !ok {
		return refuse(msgParametersMissing, o.Namespace, ref.Name)
	}
	if len(m.BinaryData) > 0 {
		return refuse(msgParametersInvalid, o.Namespace, ref.Name, "it has binaryData")
	}
	p, err := infrastructure.Parse(m.Data)
	if err != nil {
		return refuse(msgParametersInvalid, o.Namespace, ref.Name, quoteEnvoy(err.Error()))
	}
	return p, nil
}

// unmanagedWarnings says what a user may not expect of a Gateway whose Envoys are
// brought along.
func (t *tables) unmanagedWarnings(o *gatewayv1.Gateway) []string {
	var out []string
	if v, ok := o.Annotations[infrastructure.AnnotationUnmanaged]; ok && v != "true" && v != "false" {
		out = append(out, fmt.Sprintf(msgWarnUnmanaged, infrastructure.AnnotationUnmanaged, v))
	}
	if i := o.Spec.Infrastructure; i != nil && i.ParametersRef != nil && !t.managed(o) {
		out = append(out, msgWarnParameters)
	}
	return out
}

// wanted returns what an accepted Gateway needs in the cluster.
func wanted(o *gatewayv1.Gateway, row gatewayRow, p infrastructure.Parameters, address string) *infrastructure.Gateway {
	g := &infrastructure.Gateway{Namespace: o.Namespace, Name: o.Name, UID: o.UID, Address: address, Parameters: p}
	if i := o.Spec.Infrastructure; i != nil {
		g.Labels, g.Annotations = map[string]string{}, map[string]string{}
		for k, v := range i.Labels {
			g.Labels[string(k)] = string(v)
		}
		for k, v := range i.Annotations {
			g.Annotations[string(k)] = string(v)
		}
	}
	for _, l := range row.Listeners {
		if l.Valid {
			g.Ports = append(g.Ports, infrastructure.Port{Service: l.Port, Pod: l.Bound})
		}
	}
	slices.SortFunc(g.Ports, func(a, b infrastructure.Port) int { return int(a.Service - b.Service) })
	g.Ports = slices.Compact(g.Ports)
	return g
}

// infrastructureOf returns what is to be provided for a Gateway.
func (t *tables) infrastructureOf(_ *incr.Reads, _ key, row gatewayRow) (Infrastructure, bool) {
	return Infrastructure{Ref: row.Ref, Wanted: row.Wanted, Kept: row.Wanted == nil}, row.Managed
}

// changedInfrastructure lists, in a stable order, what is to be provided otherwise than
// before.
func (t *tables) changedInfrastructure() []Infrastructure {
	var out []Infrastructure
	for _, k := range t.infrastructure.Changed() {
		ns, name := splitKey(k)
		i, _ := t.infrastructure.Get(nil, k)
		i.Ref = source.Ref{Kind: source.KindGateway, Namespace: ns, Name: name}
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b Infrastructure) int { return a.Ref.Compare(b.Ref) })
	return out
}

// provided returns the addresses of what runs for a Gateway, and a Programmed=False
// condition if clients cannot reach it.
func (t *tables) provided(r *incr.Reads, k key, row gatewayRow) ([]gatewayv1.GatewayStatusAddress, *metav1.Condition) {
	because := func(v verdict, format string, args ...any) *metav1.Condition {
		c := v.because(format, args...)
		return &c
	}
	if report, ok := t.reports.Get(r, k); ok {
		return nil, because(gatewayNoResources, msgNotProvided, quoteEnvoy(report.Words))
	}
	name := infrastructure.ResourceName(row.Ref.Name)
	service, ok := t.services.Get(r, objectKey(row.Ref.Namespace, name))
	if !ok || service.Labels[infrastructure.LabelManagedBy] != infrastructure.ManagedBy {
		return nil, because(gatewayAddressNotAssigned, msgServiceMissing, name)
	}
	addresses := serviceAddresses(service)
	switch asked := row.Wanted.Address; {
	case len(addresses) == 0:
		return nil, because(gatewayAddressNotAssigned, msgServicePending, name)
	case asked != "" && !slices.ContainsFunc(addresses, func(a gatewayv1.GatewayStatusAddress) bool { return a.Value == asked }):
		return addresses, because(gatewayAddressNotUsable, msgAddressOther, asked, name, addresses[0].Value)
	}
	return addresses, nil
}

// supportedMinor is the minor version of Gateway API's CRDs that signalbox is tested with.
const supportedMinor = "v1.7"

// supportedVersion returns the SupportedVersion condition for CRDs of a bundle.
func supportedVersion(bundle string) metav1.Condition {
	parts := strings.SplitN(bundle, ".", 3)
	if len(parts) == 3 && parts[0]+"."+parts[1] == supportedMinor {
		return classSupportedVersion.because(msgVersionSupported, bundle)
	}
	if bundle == "" {
		bundle = "a version that they do not say"
	}
	return classUnsupportedVersion.because(msgVersionUnsupported, quoteEnvoy(bundle), supportedMinor)
}
