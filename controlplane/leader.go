package controlplane

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseName is the Lease that decides which replica writes.
const leaseName = "signalbox"

// replicaName returns a name of this process that no other replica has.
func replicaName() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name of this replica: %w", err)
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid()), nil
}

// lead takes part in the election of the one replica that writes to the API server,
// until ctx ends. It calls begin in a goroutine when this replica becomes the leader,
// with a context that ends when it ceases to be, and then end. Every replica serves
// Envoys, leader or not.
func lead(ctx context.Context, config *rest.Config, namespace, identity string, log *zap.Logger, begin func(context.Context), end func()) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("client for the leader election: %w", err)
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: leaseName}, Client: client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity}},
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		ReleaseOnCancel: true, // a rolling update hands the lease over at once
		Name:            leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				log.Info("this replica leads: it writes statuses and runs Envoys")
				begin(ctx)
			},
			OnStoppedLeading: func() {
				log.Info("this replica does not lead")
				end()
			},
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	for ctx.Err() == nil {
		elector.Run(ctx) // returns when the lease is lost
	}
	return nil
}
