package server

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"signalbox.dev/xds"
)

// response is one message to an Envoy; exactly one of delta and sotw is set.
type response struct {
	kind   *kind
	flight *flight
	delta  *discoveryv3.DeltaDiscoveryResponse
	sotw   *discoveryv3.DiscoveryResponse
}

// respond makes the message. The bytes of a resource are shared by all messages.
func (p *plan) respond(k *kind, f *flight, items, removed []*item) *response {
	r := &response{kind: k, flight: f}
	if p.sotw {
		if k.wildcard {
			items = k.state()
		}
		r.sotw = worldResponse(k.typ, items)
		return r
	}
	r.delta = &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(k.typ)}
	for _, it := range items {
		r.delta.Resources = append(r.delta.Resources, &discoveryv3.Resource{Name: it.name, Version: it.sent.Version, Resource: it.sent.Any})
	}
	for _, it := range removed {
		r.delta.RemovedResources = append(r.delta.RemovedResources, it.name)
	}
	return r
}

// state lists what a state-of-the-world response must hold: all that the Envoy should
// have at this moment, also what is about to go; leaving out is removing.
func (k *kind) state() []*item {
	var items []*item
	for _, it := range k.items {
		if it.current() != nil {
			items = append(items, it)
		}
	}
	slices.SortFunc(items, func(a, b *item) int { return cmp.Compare(a.name, b.name) })
	return items
}

// current is what the Envoy should have of an item: what was sent last, unless that was
// refused; then what it took before. What was refused is not sent again.
func (it *item) current() *xds.Resource {
	if it.refused {
		return sendable(it.acked)
	}
	return sendable(it.sent)
}

// worldResponse makes a state-of-the-world message. Its version is a function of its
// content, so equal states have equal versions on every replica.
func worldResponse(t xds.Type, items []*item) *discoveryv3.DiscoveryResponse {
	sum := sha256.New()
	out := &discoveryv3.DiscoveryResponse{TypeUrl: string(t), Resources: make([]*anypb.Any, 0, len(items))}
	for _, it := range items {
		r := it.current()
		_, _ = io.WriteString(sum, r.Name+"\x00"+r.Version+"\x00")
		out.Resources = append(out.Resources, r.Any)
	}
	out.VersionInfo = hex.EncodeToString(sum.Sum(nil)[:12])
	return out
}

// took notes that a response is being sent.
func (p *plan) took(r *response, nonce string, now time.Time) {
	r.flight.nonce = nonce
	wait := p.step
	if r.kind.typ == xds.Cluster && r.flight.upsert {
		wait = p.cluster
	}
	r.flight.deadline = now.Add(wait)
}

// forDelta and forWorld wrap a message for the go-control-plane server. The map is what
// that server remembers of an Envoy between requests: the plan remembers it instead,
// but the server writes into it.
func (r *response) forDelta() cache.DeltaResponse {
	return &cache.DeltaPassthroughResponse{
		DeltaRequest:           &discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(r.kind.typ)},
		NextVersionMap:         map[string]string{},
		DeltaDiscoveryResponse: r.delta,
	}
}

func (r *response) forWorld() cache.Response {
	return &cache.PassthroughResponse{
		Request:           &discoveryv3.DiscoveryRequest{TypeUrl: string(r.kind.typ)},
		ReturnedResources: map[string]string{},
		DiscoveryResponse: r.sotw,
	}
}
