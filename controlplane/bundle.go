package controlplane

import (
	"context"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"sigs.k8s.io/gateway-api/pkg/consts"
)

var crds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// bundlePeriod is how often the version of the installed CRDs is read.
const bundlePeriod = time.Minute

// followBundle tells, until ctx ends, the bundle version of Gateway API's CRDs, and when
// it changes. While it cannot be read nothing is told.
func followBundle(ctx context.Context, client metadata.Interface, log *zap.Logger, tell func(string)) error {
	told := false
	var last string
	for {
		crd, err := client.Resource(crds).Get(ctx, "gateways.gateway.networking.k8s.io", metav1.GetOptions{})
		switch {
		case err != nil && ctx.Err() == nil:
			log.Debug("version of Gateway API's CRDs", zap.Error(err)) // the source says that they are absent
		case err == nil:
			if v := crd.Annotations[consts.BundleVersionAnnotation]; !told || v != last {
				told, last = true, v
				tell(v)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(bundlePeriod):
		}
	}
}
