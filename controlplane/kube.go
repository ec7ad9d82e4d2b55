package controlplane

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"signalbox.dev/provision"
	"signalbox.dev/source"
	sourcekube "signalbox.dev/source/kube"
	"signalbox.dev/status"
	statuskube "signalbox.dev/status/kube"
	"signalbox.dev/translator"
)

// KubeConfig is a control plane on a Kubernetes cluster.
type KubeConfig struct {
	ServeConfig              // Sources, Status, TLS and Provisioner are set by ServeKube
	Client      *rest.Config // how to reach the API server
	Namespace   string       // signalbox's own: where its Lease and its authority are
	// Watch limits the namespaces whose objects are read; empty: all.
	Watch []string
	// Pods is what the pods that run Envoys have in common; ServerName is set by ServeKube.
	Pods provision.Settings
}

// serverName is the name in the certificate of the xDS server, whatever address Envoys
// reach it under.
func serverName(namespace string) string { return "signalbox." + namespace + ".svc" }

// ServeKube runs a control plane on a cluster until ctx ends: objects come from the API
// server; statuses go there, and Envoys are run there, while this replica is the leader.
func ServeKube(ctx context.Context, cfg KubeConfig) error {
	// Statuses and leases are written while a thousand objects change at once; the
	// API server's own priority and fairness is the limit, not this client.
	cfg.Client.QPS, cfg.Client.Burst = 200, 400
	writer, err := statuskube.New(statuskube.Options{Config: cfg.Client, Logger: cfg.Logger.Named("status"), Registerer: cfg.Registry})
	if err != nil {
		return err
	}
	core, err := kubernetes.NewForConfig(cfg.Client)
	if err != nil {
		return fmt.Errorf("client of the certificate authority: %w", err)
	}
	crds, err := metadata.NewForConfig(cfg.Client)
	if err != nil {
		return fmt.Errorf("client of the CRDs: %w", err)
	}
	var cp *ControlPlane // set before anything can report
	keeper := newAuthority(core.CoreV1().Secrets(cfg.Namespace), cfg.Namespace, cfg.Logger.Named("authority"))
	cfg.Pods.ServerName = serverName(cfg.Namespace)
	provisioner, err := provision.New(provision.Options{Config: cfg.Client, Namespaces: cfg.Watch, Settings: cfg.Pods, Authority: keeper.current.Load,
		Report: func(r translator.Report) { cp.Reported(r) }, Now: time.Now, Logger: cfg.Logger.Named("provision"), Registerer: cfg.Registry})
	if err != nil {
		return err
	}
	keeper.changed = provisioner.Again
	cfg.Provisioner, cfg.TLS, cfg.Translation.Provision = provisioner, keeper.server.TLS(), true
	cfg.Sources = []source.Source{sourcekube.New(sourcekube.Options{
		Config: cfg.Client, Namespaces: cfg.Watch, Logger: cfg.Logger.Named("source"), Observe: writer.Observe})}
	cfg.Status = status.Fan(cfg.Book, writer)

	group, ctx := errgroup.WithContext(ctx)
	cfg.Started = func(c *ControlPlane) {
		cp = c
		group.Go(func() error { return writer.Run(ctx) })
		group.Go(func() error { return provisioner.Run(ctx) })
		group.Go(func() error { return keeper.run(ctx) })
		group.Go(func() error { return followBundle(ctx, crds, cfg.Logger.Named("crds"), c.Installed) })
		group.Go(func() error {
			return lead(ctx, cfg.Client, cfg.Namespace, cfg.Logger.Named("leader"), func(leads bool) {
				keeper.leads.Store(leads)
				writer.Lead(leads)
				provisioner.Lead(leads)
			})
		})
	}
	group.Go(func() error { return Serve(ctx, cfg.ServeConfig) })
	return group.Wait()
}
