package translator

// Stand-ins until route.go, match.go, filter.go, table.go, models.go exist. Owner: route side. Delete this file.

import (
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/translator/incr"
	"signalbox.dev/xds"
)

// modelRow is one adapter and its base model, or a conflict.
type modelRow struct {
	Base     string // "" on conflict
	Conflict []key  // the ConfigMaps that disagree
}

// adaptersOf: objectKey-like keys (namespace/adapter) of a labelled ConfigMap; adapters may hold slashes.
func adaptersOf(k key, o *corev1.ConfigMap) []key { return nil }

func (t *tables) model(r *incr.Reads, x key, configMaps []key) (modelRow, bool) {
	return modelRow{}, false
}

// modelBase: the key namespace/base under which an adapter is listed.
func modelBase(k key, row modelRow) []key { return nil }

func (t *tables) route(r *incr.Reads, k key, o *gatewayv1.HTTPRoute) (routeRow, bool) {
	return routeRow{}, false
}

func equalRoutes(a, b routeRow) bool { return false }

func (t *tables) routeTable(r *incr.Reads, x key, gateways []key) (*xds.Resource, bool) {
	return nil, false
}

func (t *tables) routeStatusOf(r *incr.Reads, k key, row routeRow) (Status, bool) {
	return Status{}, false
}
