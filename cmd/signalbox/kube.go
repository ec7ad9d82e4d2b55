package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/client-go/tools/clientcmd"

	"signalbox.dev/controlplane"
)

// kubeFlags are the flags of --source kube.
type kubeFlags struct {
	kubeconfig, namespace string
	watch                 []string
}

func (k *kubeFlags) add(f *pflag.FlagSet) {
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "with --source kube: how to reach the cluster (default: $KUBECONFIG, else the pod's own account)")
	f.StringVar(&k.namespace, "namespace", "signalbox-system", "with --source kube: signalbox's own namespace")
	f.StringSliceVar(&k.watch, "watch-namespaces", nil, "with --source kube: read only these namespaces (default: all)")
}

func (k *kubeFlags) serve(ctx context.Context, cfg controlplane.ServeConfig) error {
	if k.kubeconfig == "" {
		k.kubeconfig = os.Getenv("KUBECONFIG")
	}
	client, err := clientcmd.BuildConfigFromFlags("", k.kubeconfig)
	if err != nil {
		return fmt.Errorf("no cluster: %w", err)
	}
	cfg.Translation.GuardAddresses = true // objects are those of the cluster's tenants
	return controlplane.ServeKube(ctx, controlplane.KubeConfig{ServeConfig: cfg, Client: client, Namespace: k.namespace, Watch: k.watch})
}
