package controlplane

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"signalbox.dev/source"
	sourcekube "signalbox.dev/source/kube"
	"signalbox.dev/status"
	statuskube "signalbox.dev/status/kube"
)

// KubeConfig is a control plane on a Kubernetes cluster.
type KubeConfig struct {
	ServeConfig              // Sources and Status are set by ServeKube
	Client      *rest.Config // how to reach the API server
	Namespace   string       // signalbox's own: where its Lease is
	// Watch limits the namespaces whose objects are read; empty: all.
	Watch []string
}

// ServeKube runs a control plane on a cluster until ctx ends: objects come from the API
// server, and statuses go there while this replica is the leader.
func ServeKube(ctx context.Context, cfg KubeConfig) error {
	// Statuses and leases are written while a thousand objects change at once; the
	// API server's own priority and fairness is the limit, not this client.
	cfg.Client.QPS, cfg.Client.Burst = 200, 400
	writer, err := statuskube.New(statuskube.Options{Config: cfg.Client, Logger: cfg.Logger.Named("status"), Registerer: cfg.Registry})
	if err != nil {
		return err
	}
	cfg.Sources = []source.Source{sourcekube.New(sourcekube.Options{
		Config: cfg.Client, Namespaces: cfg.Watch, Logger: cfg.Logger.Named("source"), Observe: writer.Observe})}
	cfg.Status = status.Fan(cfg.Book, writer)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return Serve(ctx, cfg.ServeConfig) })
	group.Go(func() error { return writer.Run(ctx) })
	group.Go(func() error {
		if err := lead(ctx, cfg.Client, cfg.Namespace, cfg.Logger.Named("leader"), writer.Lead); err != nil {
			return fmt.Errorf("leader election: %w", err)
		}
		return nil
	})
	return group.Wait()
}
