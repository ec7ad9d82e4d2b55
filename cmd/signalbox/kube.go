package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"signalbox.dev/controlplane"
	"signalbox.dev/provision"
)

// kubeFlags are the flags of --source kube.
type kubeFlags struct {
	kubeconfig, namespace string
	watch                 []string
	tls, health           string
	pods                  provision.Settings
}

// Images of pods that run Envoys, unless flags or a Gateway's parameters name others.
const (
	defaultEnvoyImage = "docker.io/envoyproxy/envoy:distroless-v1.40.0"
	imageRepository   = "docker.io/signalbox/signalbox"
)

func (k *kubeFlags) add(f *pflag.FlagSet) {
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "with --source kube: how to reach the cluster (default: $KUBECONFIG, else the pod's own account)")
	f.StringVar(&k.namespace, "namespace", "signalbox-system", "with --source kube: signalbox's own namespace")
	f.StringVar(&k.tls, "xds-tls", "0.0.0.0:18001", "with --source kube: where to serve xDS over mTLS to the Envoys that signalbox runs, HOST:PORT")
	f.StringVar(&k.pods.XDS, "xds-address", "", "with --source kube: where those Envoys find --xds-tls, HOST:PORT (default: the Service signalbox of --namespace)")
	f.StringVar(&k.pods.EnvoyImage, "envoy-image", defaultEnvoyImage, "with --source kube: the image of Envoy")
	f.StringVar(&k.pods.Image, "image", imageRepository+":"+buildVersion(), "with --source kube: signalbox's own image, for the process beside Envoy")
	f.StringVar(&k.health, "health", "", "with --source kube: where to serve /healthz, /readyz and /metrics to others than this machine, HOST:PORT (default: nowhere)")
	f.StringSliceVar(&k.watch, "watch-namespaces", nil, "with --source kube: read only these namespaces (default: all)")
}

// client returns how to reach the cluster.
func (k *kubeFlags) client() (*rest.Config, error) {
	if path := cmp.Or(k.kubeconfig, os.Getenv("KUBECONFIG")); path != "" {
		return clientcmd.BuildConfigFromFlags("", path)
	}
	return rest.InClusterConfig()
}

func (k *kubeFlags) serve(ctx context.Context, cfg controlplane.ServeConfig) error {
	client, err := k.client()
	if err != nil {
		return fmt.Errorf("no cluster: %w", err)
	}
	if k.pods.XDS == "" {
		_, port, err := net.SplitHostPort(k.tls)
		if err != nil {
			return usagef("--xds-tls %q: want HOST:PORT", k.tls)
		}
		k.pods.XDS = net.JoinHostPort("signalbox."+k.namespace+".svc", port)
	}
	k.pods.ListenAddress = cfg.Translation.BindAddress
	cfg.TLSAddress, cfg.Health = k.tls, k.health
	cfg.Translation.GuardAddresses = true // objects are those of the cluster's tenants
	return controlplane.ServeKube(ctx, controlplane.KubeConfig{ServeConfig: cfg, Client: client, Namespace: k.namespace, Watch: k.watch, Pods: k.pods})
}
