package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	sourcekube "signalbox.dev/source/kube"
)

const (
	label      = "signalbox.dev/propagation" // on every route that is made here
	hostSuffix = ".propagation.example"
	// quiet is how long nothing may change before a round starts: statuses of the round
	// before are written by then.
	quiet = 300 * time.Millisecond
)

// cluster makes and deletes routes over the raw API.
type cluster struct {
	client             *rest.RESTClient
	namespace, gateway string
	service            string
	port               int32
	others             int
}

// connect looks up the Gateway; it sets cfg.address if that is empty.
func connect(ctx context.Context, cfg *config) (*cluster, error) {
	c := &cluster{}
	var ok bool
	if c.namespace, c.gateway, ok = strings.Cut(cfg.gateway, "/"); !ok {
		return nil, fmt.Errorf("--gateway %q: want NAMESPACE/NAME", cfg.gateway)
	}
	name, port, err := net.SplitHostPort(cfg.service)
	if err != nil {
		return nil, fmt.Errorf("--service %q: want NAME:PORT", cfg.service)
	}
	n, err := strconv.ParseInt(port, 10, 32)
	if err != nil || cfg.rounds < 1 || len(cfg.others) == 0 {
		return nil, errors.New("the port of --service, --rounds and --others are numbers above 0")
	}
	c.service, c.port = name, int32(n)
	restConfig, err := clientcmd.BuildConfigFromFlags("", cfg.kubeconfig)
	if err != nil {
		return nil, err
	}
	restConfig.QPS, restConfig.Burst = 1000, 1000
	if c.client, err = sourcekube.RESTClient(restConfig, sourcekube.NewScheme(), gatewayv1.SchemeGroupVersion); err != nil {
		return nil, err
	}
	var gateway gatewayv1.Gateway
	if err := c.client.Get().Resource("gateways").Namespace(c.namespace).Name(c.gateway).Do(ctx).Into(&gateway); err != nil {
		return nil, err
	}
	if cfg.address == "" {
		if len(gateway.Status.Addresses) == 0 {
			return nil, fmt.Errorf("gateway %s has no address in its status; give --address", cfg.gateway)
		}
		cfg.address = net.JoinHostPort(gateway.Status.Addresses[0].Value, strconv.Itoa(int(gateway.Spec.Listeners[0].Port)))
	}
	return c, nil
}

func (c *cluster) route(name string) *gatewayv1.HTTPRoute {
	route := &gatewayv1.HTTPRoute{
		TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.SchemeGroupVersion.String(), Kind: "HTTPRoute"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.namespace, Labels: map[string]string{label: ""}},
	}
	backend := gatewayv1.HTTPBackendRef{}
	backend.Name, backend.Port = gatewayv1.ObjectName(c.service), ptr.To(c.port)
	route.Spec.ParentRefs = []gatewayv1.ParentReference{{Name: gatewayv1.ObjectName(c.gateway)}}
	route.Spec.Hostnames = []gatewayv1.Hostname{gatewayv1.Hostname(name + hostSuffix)}
	route.Spec.Rules = []gatewayv1.HTTPRouteRule{{BackendRefs: []gatewayv1.HTTPBackendRef{backend}}}
	return route
}

func (c *cluster) create(ctx context.Context, name string) error {
	return c.client.Post().Resource("httproutes").Namespace(c.namespace).Body(c.route(name)).Do(ctx).Error()
}

func (c *cluster) delete(ctx context.Context, name string) error {
	return c.client.Delete().Resource("httproutes").Namespace(c.namespace).Name(name).Do(ctx).Error()
}

// ensureOthers makes other routes until there are so many, and waits until the last one
// is accepted.
func (c *cluster) ensureOthers(ctx context.Context, number int) error {
	for ; c.others < number; c.others++ {
		if err := c.create(ctx, fmt.Sprintf("propagation-other-%d", c.others)); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	for i := range number {
		if err := c.awaitAccepted(ctx, fmt.Sprintf("propagation-other-%d", i)); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) awaitAccepted(ctx context.Context, name string) error {
	for end := time.Now().Add(2 * patience); ; {
		var route gatewayv1.HTTPRoute
		if err := c.client.Get().Resource("httproutes").Namespace(c.namespace).Name(name).Do(ctx).Into(&route); err != nil {
			return err
		}
		for _, p := range route.Status.Parents {
			for _, condition := range p.Conditions {
				if condition.Type == string(gatewayv1.RouteConditionAccepted) && condition.Status == metav1.ConditionTrue {
					return nil
				}
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("HTTPRoute %s/%s is not accepted after %s", c.namespace, name, 2*patience)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// settle waits until a round may start.
func (c *cluster) settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(quiet):
		return nil
	}
}

// deleteAll deletes every route that was made here.
func (c *cluster) deleteAll(ctx context.Context) error {
	return c.client.Delete().Resource("httproutes").Namespace(c.namespace).VersionedParams(&metav1.ListOptions{LabelSelector: label}, metav1.ParameterCodec).Do(ctx).Error()
}
