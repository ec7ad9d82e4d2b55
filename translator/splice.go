package translator

import (
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"signalbox.dev/extproc/contract"
)

// This file writes a RouteConfiguration from routes that are marshalled already. Putting
// 10,000 routes together costs a tenth of marshalling them (facts: performance §2), and
// the bytes are the very same, as a test holds.

// backward writes protobuf from the end to the beginning: the length of a message,
// which stands before it, is known once its content is written, at any depth, and
// nothing is copied twice. So everything is written in the reverse of its order.
type backward struct {
	buf []byte
	at  int // buf[at:] is written
}

// room makes room for n more bytes.
func (w *backward) room(n int) []byte {
	if w.at < n {
		grown := make([]byte, 2*len(w.buf)+n)
		at := len(grown) - (len(w.buf) - w.at)
		copy(grown[at:], w.buf[w.at:])
		w.buf, w.at = grown, at
	}
	w.at -= n
	return w.buf[w.at:]
}

func (w *backward) raw(b []byte) { copy(w.room(len(b)), b) }

func (w *backward) varint(v uint64) {
	var b [10]byte
	w.raw(protowire.AppendVarint(b[:0], v))
}

func (w *backward) text(field protowire.Number, s string) {
	copy(w.room(len(s)), s)
	w.head(field, len(s))
}

func (w *backward) head(field protowire.Number, size int) {
	w.varint(uint64(size))
	w.varint(protowire.EncodeTag(field, protowire.BytesType))
}

// message writes a field whose content write writes.
func (w *backward) message(field protowire.Number, write func()) {
	before := len(w.buf) - w.at
	write()
	w.head(field, len(w.buf)-w.at-before)
}

// Numbers of the fields that are written here, by message.
const (
	rcName, rcHosts, rcRemove, rcIgnorePort                         = 1, 2, 8, 14 // RouteConfiguration
	hostName, hostDomains, hostRoutes, hostFilters, hostMatcher     = 1, 2, 3, 15, 21
	mapKey, mapValue                                                = 1, 2
	matcherTree, matcherNoMatch, treeInput, treeExact, exactMap     = 2, 3, 1, 2, 1 // xds.type.matcher.v3.Matcher
	onMatchAction, extensionName, extensionConfig, anyURL, anyValue = 2, 1, 2, 1, 2
	listRoutes                                                      = 1 // RouteList
)

const routeListURL = "type.googleapis.com/envoy.config.route.v3.RouteList"

var (
	extractConfig = plain(packed(extractHere()))
	modelInput    = plain(packed(&typematcherv3.HttpRequestHeaderMatchInput{HeaderName: contract.HeaderModel}))
)

// plain is the deterministic marshalling of a message of ours.
func plain(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("translator: " + err.Error())
	}
	return string(b)
}

// marshal returns the bytes of the RouteConfiguration.
func (t *hostTable) marshal() []byte {
	w := &tableWriter{bases: map[string][]byte{}}
	w.varint(1)
	w.varint(protowire.EncodeTag(rcIgnorePort, protowire.VarintType)) // Gateway API: the port in Host does not count
	w.text(rcRemove, contract.HeaderModelError)                       // not for backends
	for _, h := range slices.Backward(t.hosts()) {
		w.message(rcHosts, func() { w.host(h) })
	}
	w.text(rcName, t.name)
	return w.buf[w.at:]
}

// tableWriter writes one table.
type tableWriter struct {
	backward
	bases map[string][]byte // base model → marshalled header
}

func (w *tableWriter) host(h virtualHost) {
	if len(h.models) > 0 {
		w.message(hostMatcher, func() { w.matcher(h) })
	}
	if h.extract {
		w.message(hostFilters, func() {
			w.text(mapValue, extractConfig)
			w.text(mapKey, extractorFilter)
		})
	}
	if len(h.models) == 0 {
		w.routes(hostRoutes, h.plain)
	}
	w.text(hostDomains, h.domain)
	w.text(hostName, h.name)
}

// matcher writes the map from models to their lists.
func (w *tableWriter) matcher(h virtualHost) {
	// Members of a oneof come last, as in Go's marshalling.
	w.message(matcherTree, func() {
		w.message(treeExact, func() {
			for _, model := range slices.Backward(slices.Sorted(maps.Keys(h.models))) {
				w.message(exactMap, func() {
					w.message(mapValue, func() { w.list(h.models[model]) })
					w.text(mapKey, model)
				})
			}
		})
		w.message(treeInput, func() {
			w.text(extensionConfig, modelInput)
			w.text(extensionName, contract.HeaderModel)
		})
	})
	w.message(matcherNoMatch, func() { w.list(h.plain) })
}

// list writes a list of routes as what a matcher leads to.
func (w *tableWriter) list(routes []listed) {
	w.message(onMatchAction, func() {
		w.message(extensionConfig, func() {
			w.message(anyValue, func() { w.routes(listRoutes, routes) })
			w.text(anyURL, routeListURL)
		})
		w.text(extensionName, "routes")
	})
}

func (w *tableWriter) routes(field protowire.Number, routes []listed) {
	for _, r := range slices.Backward(routes) {
		w.message(field, func() {
			w.raw(r.Bytes[r.Cut:])
			if r.base != "" {
				w.raw(w.base(r.base))
			}
			w.raw(r.Bytes[:r.Cut])
		})
	}
}

// base returns the field of a Route that adds the header of a base model.
func (w *tableWriter) base(model string) []byte {
	b, ok := w.bases[model]
	if !ok {
		h := headerValue(contract.HeaderBaseModel, model, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
		raw := protowire.AppendTag(nil, fieldRequestHeadersToAdd, protowire.BytesType)
		b = protowire.AppendString(raw, plain(h))
		w.bases[model] = b
	}
	return b
}
