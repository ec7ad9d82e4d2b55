package server

import (
	"context"
	"maps"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	delta "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	sotw "github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"go.uber.org/zap"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"signalbox.dev/xds"
)

// All in this file is called by go-control-plane's loop, in its one goroutine, for each
// request first the request callback and then, unless the request is stale, the
// Create…Watch; for each response the response callback right before it is written.

var (
	_ cache.ConfigWatcher = (*stream)(nil)
	_ delta.Callbacks     = (*stream)(nil)
	_ sotw.Callbacks      = (*stream)(nil)
)

// OnStreamDeltaRequest takes who asks and what was answered.
func (st *stream) OnStreamDeltaRequest(_ int64, req *discoveryv3.DeltaDiscoveryRequest) error {
	return st.request(req.GetNode(), req.GetTypeUrl(), req.GetResponseNonce(), req.GetErrorDetail())
}

// OnStreamRequest takes who asks and what was answered.
func (st *stream) OnStreamRequest(_ int64, req *discoveryv3.DiscoveryRequest) error {
	return st.request(req.GetNode(), req.GetTypeUrl(), req.GetResponseNonce(), req.GetErrorDetail())
}

func (st *stream) request(node *corev3.Node, typeURL, nonce string, detail *statuspb.Status) error {
	first, err := st.noted(node, typeURL, nonce, detail)
	if first {
		st.server.joins(st) // takes server.mu, so not under mu
	}
	return err
}

func (st *stream) noted(node *corev3.Node, typeURL, nonce string, detail *statuspb.Status) (first bool, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if first, err = st.identify(node); err != nil {
		return first, err
	}
	k := st.plan.kinds[xds.Type(typeURL)]
	if k == nil {
		if !st.unknown[typeURL] {
			st.unknown[typeURL] = true
			st.log.Warn("Envoy asks for a resource type that is not served; it gets no answer", zap.String("type", typeURL))
		}
		return first, nil
	}
	words := ""
	if detail != nil {
		if words = detail.GetMessage(); words == "" {
			words = "refused without words"
		}
	}
	if nonce != "" && st.plan.answer(k, nonce, words, time.Now()) {
		st.server.metrics.answered(k.typ, words != "")
		st.nudge()
	}
	return first, nil
}

// CreateDeltaWatch takes what a delta request subscribes to.
func (st *stream) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, to chan cache.DeltaResponse) (func(), error) {
	return st.watch(xds.Type(req.GetTypeUrl()), func(k *kind) {
		st.toDelta = to
		star := func(name string) bool { return name == "*" }
		st.plan.subscribe(k, subscription{
			wildcard: sub.IsWildcard(), held: req.GetInitialResourceVersions(),
			add:    slices.DeleteFunc(slices.Clone(req.GetResourceNamesSubscribe()), star),
			remove: slices.DeleteFunc(slices.Clone(req.GetResourceNamesUnsubscribe()), star),
		}, time.Now())
	}), nil
}

// CreateWatch takes what a state-of-the-world request subscribes to.
func (st *stream) CreateWatch(req *cache.Request, sub cache.Subscription, to chan cache.Response) (func(), error) {
	return st.watch(xds.Type(req.GetTypeUrl()), func(k *kind) {
		st.toWorld = to
		reconnected := req.GetVersionInfo() != ""
		st.plan.subscribeAll(k, sub.IsWildcard(), sub.SubscribedResources(), reconnected, time.Now())
		if st.handed != nil && st.handed.kind == k {
			// The loop drops what waits of a type when a request for that type comes.
			st.pass()
		}
	}), nil
}

// watch opens a type for responses and returns what closes it.
func (st *stream) watch(t xds.Type, subscribe func(*kind)) func() {
	st.mu.Lock()
	defer st.mu.Unlock()
	k := st.plan.kinds[t]
	if k == nil {
		return nil
	}
	k.open = true
	subscribe(k)
	st.nudge()
	return func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		k.open = false
	}
}

// OnStreamDeltaResponse learns the nonce of the response that is about to be sent.
func (st *stream) OnStreamDeltaResponse(_ int64, _ *discoveryv3.DeltaDiscoveryRequest, resp *discoveryv3.DeltaDiscoveryResponse) {
	st.sending(resp.GetNonce())
}

// OnStreamResponse learns the nonce of the response that is about to be sent.
func (st *stream) OnStreamResponse(_ context.Context, _ int64, _ *discoveryv3.DiscoveryRequest, resp *discoveryv3.DiscoveryResponse) {
	st.sending(resp.GetNonce())
}

func (st *stream) sending(nonce string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.plan.took(st.handed, nonce, time.Now())
	st.server.metrics.pushes.WithLabelValues(st.handed.kind.typ.Short()).Inc()
	st.handed = nil
	st.nudge()
}

// OnStreamOpen does nothing: the stream is known before.
func (st *stream) OnStreamOpen(context.Context, int64, string) error { return nil }

// OnStreamClosed does nothing: serve sees the end.
func (st *stream) OnStreamClosed(int64, *corev3.Node) {}

// OnDeltaStreamOpen does nothing: the stream is known before.
func (st *stream) OnDeltaStreamOpen(context.Context, int64, string) error { return nil }

// OnDeltaStreamClosed does nothing: serve sees the end.
func (st *stream) OnDeltaStreamClosed(int64, *corev3.Node) {}

func keys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
