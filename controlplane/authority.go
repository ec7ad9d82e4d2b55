package controlplane

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"signalbox.dev/provision/pki"
)

// authority keeps the certificate authority that all replicas share: each reads it
// again and again, the leader replaces it when it is old.
type authority struct {
	store   pki.Store
	server  *pki.Server
	changed func() // the Envoys' certificates are of another authority than they should be
	log     *zap.Logger
	leads   atomic.Bool
	current atomic.Pointer[pki.Authority]

	serverName string
}

func newAuthority(secrets typedcorev1.SecretInterface, namespace string, log *zap.Logger) *authority {
	name := serverName(namespace)
	return &authority{store: pki.Store{Secrets: secrets}, log: log, server: pki.NewServer([]string{name}, time.Now), serverName: name}
}

// authorityPeriod is how often the authority is read: it changes every few years, or
// when somebody has deleted it.
const (
	authorityPeriod = time.Minute
	authorityRetry  = time.Second
)

// run keeps the authority until ctx ends. An API server that does not answer is no
// reason to end: what is known goes on working.
func (a *authority) run(ctx context.Context) error {
	for {
		period := authorityPeriod
		if err := a.look(ctx, time.Now()); err != nil && ctx.Err() == nil {
			a.log.Warn("certificate authority", zap.Error(err))
			if a.current.Load() == nil {
				period = authorityRetry
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(period):
		}
	}
}

func (a *authority) look(ctx context.Context, now time.Time) error {
	read, err := a.store.Load(ctx, now)
	if err != nil {
		return err
	}
	if a.leads.Load() {
		changed, err := a.store.Rotate(ctx, now)
		if err != nil {
			return err
		}
		if changed {
			if read, err = a.store.Load(ctx, now); err != nil {
				return err
			}
		}
	}
	if read.Equal(a.current.Load()) {
		return nil
	}
	if err := a.server.Use(read); err != nil {
		return err
	}
	a.current.Store(read)
	a.log.Info("certificate authority", zap.Time("until", read.NotAfter()))
	a.changed()
	return nil
}
