package controlplane

import (
	"context"
	"fmt"
	"sync"
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
func serverName(namespace string) string { return serviceName + "." + namespace + ".svc" }

const (
	// ackGrace is longer than an Envoy takes to come back, to this replica or another.
	ackGrace = 30 * time.Second
	// hold is how long a new process says nothing in statuses: until the Envoys that it
	// does not know of yet have come back, a Gateway would look as if it had none.
	hold = 5 * time.Second
)

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
	identity, err := replicaName()
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
	among := &peers{replica: identity, authority: keeper, log: cfg.Logger.Named("replicas")}
	cfg.MoreTLS, cfg.AckGrace = among.register, ackGrace
	cfg.Provisioner, cfg.TLS, cfg.Translation.Provision = provisioner, keeper.server.TLS(), true
	cfg.Sources = []source.Source{sourcekube.New(sourcekube.Options{
		Config: cfg.Client, Namespaces: cfg.Watch, Logger: cfg.Logger.Named("source"), Observe: writer.Observe})}
	cfg.Status = status.Fan(cfg.Book, writer)

	office := &office{since: time.Now(), now: func(leads bool) {
		keeper.leads.Store(leads)
		provisioner.Lead(leads)
	}, later: writer.Lead}
	group, ctx := errgroup.WithContext(ctx)
	cfg.Started = func(c *ControlPlane) {
		cp, among.book = c, c.book
		group.Go(func() error { return among.run(ctx, core, cfg.Namespace) })
		group.Go(func() error { return writer.Run(ctx) })
		group.Go(func() error { return provisioner.Run(ctx) })
		group.Go(func() error { return keeper.run(ctx) })
		group.Go(func() error { return followBundle(ctx, crds, cfg.Logger.Named("crds"), c.Installed) })
		group.Go(func() error {
			return lead(ctx, cfg.Client, cfg.Namespace, identity, cfg.Logger.Named("leader"), office.begin, office.end)
		})
	}
	group.Go(func() error { return Serve(ctx, cfg.ServeConfig) })
	return group.Wait()
}

// office is what only the leader does.
type office struct {
	since      time.Time  // when this process began
	now, later func(bool) // called with true and false, in turn; later not before hold is over

	mu sync.Mutex
}

// begin is called in a goroutine, with a context that ends before end is called.
func (o *office) begin(ctx context.Context) {
	o.do(ctx, o.now)
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(o.since.Add(hold))):
	}
	o.do(ctx, o.later)
}

func (o *office) do(ctx context.Context, f func(bool)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ctx.Err() == nil {
		f(true)
	}
}

func (o *office) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now(false)
	o.later(false)
}
