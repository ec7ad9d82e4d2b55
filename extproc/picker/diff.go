package picker

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"signalbox.dev/extproc/contract"
)

// fields are the header fields of one message, values in order; keys are lower case.
type fields map[string][]string

func fieldsOf(m *corev3.HeaderMap) fields {
	f := make(fields, len(m.GetHeaders()))
	for _, h := range m.GetHeaders() {
		k := strings.ToLower(h.GetKey())
		f[k] = append(f[k], headerValue(h))
	}
	return f
}

// headerValue reads either of the two places where the API allows a value.
func headerValue(h *corev3.HeaderValue) string {
	if len(h.GetRawValue()) > 0 {
		return string(h.GetRawValue())
	}
	return h.GetValue()
}

func (f fields) first(key string) string {
	if v := f[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// notAPickers are fields that a picker never changes: those that frame the message or
// belong to one hop, and those that chose the route (a picker picks within its pool).
var notAPickers = map[string]bool{
	"host": true, "content-length": true, "transfer-encoding": true, "connection": true, "keep-alive": true,
	"proxy-connection": true, "te": true, "trailer": true, "upgrade": true, "expect": true,
	contract.HeaderModel: true, contract.HeaderBaseModel: true, contract.HeaderModelError: true,
	contract.KeyDestination: true, contract.KeySubset: true, contract.KeyServed: true,
}

func mayChange(key string) bool {
	return !notAPickers[key] && !strings.HasPrefix(key, ":") && !strings.HasPrefix(key, "x-envoy-")
}

// diff returns what m really changes in f: pickers set every header again from a map, which
// holds only one of several values (facts of the pickers that ship: two cookies become
// one). So a header that ends with one value that it already had, alone or among others,
// is left alone. An error means that Envoy would refuse m.
func diff(f fields, m *extprocv3.HeaderMutation) (*extprocv3.HeaderMutation, error) {
	after, order, err := apply(f, m)
	if err != nil {
		return nil, err
	}
	var out *extprocv3.HeaderMutation
	for _, key := range order {
		before, now := f[key], after[key]
		if !mayChange(key) || slices.Equal(before, now) || len(now) == 1 && collapsed(before, now[0]) {
			continue
		}
		if out == nil {
			out = &extprocv3.HeaderMutation{}
		}
		if len(now) == 0 {
			out.RemoveHeaders = append(out.RemoveHeaders, key)
		}
		for i, v := range now {
			o := overwrite(key, v)
			if i > 0 { // ext_proc takes the zero value of append_action for "unset", and then reads append
				o.AppendAction, o.Append = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD, wrapperspb.Bool(true) //nolint:staticcheck // deprecated, and needed
			}
			out.SetHeaders = append(out.SetHeaders, o)
		}
	}
	return out, nil
}

// withoutLength also removes content-length, for a body whose length is not known: Envoy
// then frames it itself.
func withoutLength(f fields, m *extprocv3.HeaderMutation) *extprocv3.HeaderMutation {
	if f["content-length"] == nil {
		return m
	}
	if m == nil {
		m = &extprocv3.HeaderMutation{}
	}
	m.RemoveHeaders = append(m.RemoveHeaders, "content-length")
	return m
}

// apply computes the values of the headers that m names, as Envoy would: removals first.
func apply(f fields, m *extprocv3.HeaderMutation) (after fields, order []string, err error) {
	after = fields{}
	touch := func(key string) string {
		key = strings.ToLower(key)
		if _, ok := after[key]; !ok {
			after[key] = f[key]
			order = append(order, key)
		}
		return key
	}
	for _, key := range m.GetRemoveHeaders() {
		if !validName(key) {
			return nil, nil, fmt.Errorf("removes an illegal header name")
		}
		after[touch(key)] = nil
	}
	for _, o := range m.GetSetHeaders() {
		h := o.GetHeader()
		if !validName(h.GetKey()) || !httpguts.ValidHeaderFieldValue(headerValue(h)) {
			return nil, nil, fmt.Errorf("sets an illegal header name or value")
		}
		if h.GetValue() != "" && len(h.GetRawValue()) > 0 {
			return nil, nil, fmt.Errorf("sets value and raw_value of one header")
		}
		set(after, touch(h.GetKey()), headerValue(h), o)
	}
	return after, order, nil
}

// set applies one option. Without an append_action, ext_proc overwrites (its zero value
// is named APPEND_IF_EXISTS_OR_ADD, but Envoy then reads the older field append).
func set(after fields, key, value string, o *corev3.HeaderValueOption) {
	have := after[key]
	switch o.GetAppendAction() {
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		if len(have) > 0 {
			return
		}
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		if len(have) == 0 {
			return
		}
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		if o.GetAppend().GetValue() { //nolint:staticcheck // pickers still set the deprecated field
			after[key] = append(slices.Clip(have), value)
			return
		}
	}
	after[key] = []string{value}
}

func validName(key string) bool {
	return httpguts.ValidHeaderFieldName(strings.TrimPrefix(key, ":"))
}

// collapsed reports whether value says nothing new about a header that had these values.
func collapsed(before []string, value string) bool {
	if len(before) == 0 {
		return false
	}
	return slices.Contains(before, value) || value == strings.Join(before, ",") ||
		value == strings.Join(before, ", ") || value == strings.Join(before, "; ")
}

// pickOf returns the endpoints that a message of the request phase picked: the header, or
// the dynamic metadata, or both if they agree (proposal 004 leaves a difference undefined;
// to us it is a picker that cannot be trusted). "" means that it picked nothing.
func pickOf(m *extprocv3.HeaderMutation, dynamic *structpb.Struct) (string, error) {
	var header string
	for _, o := range m.GetSetHeaders() {
		if strings.EqualFold(o.GetHeader().GetKey(), contract.KeyDestination) {
			header = normal(headerValue(o.GetHeader()))
		}
	}
	meta := normal(text(dynamic.GetFields()[contract.MetadataLB].GetStructValue().GetFields()[contract.KeyDestination]))
	switch {
	case header == "":
		header = meta
	case meta != "" && meta != header:
		return "", fmt.Errorf("header and metadata pick different endpoints")
	}
	if !httpguts.ValidHeaderFieldValue(header) {
		return "", fmt.Errorf("picks an endpoint that is no header value")
	}
	return header, nil
}

// text reads a string or a list of strings.
func text(v *structpb.Value) string {
	list := v.GetListValue().GetValues()
	if list == nil {
		return v.GetStringValue()
	}
	parts := make([]string, len(list))
	for i, e := range list {
		parts[i] = e.GetStringValue()
	}
	return strings.Join(parts, ",")
}

// normal spells an ordered list of endpoints in one way, without spaces and empty items.
func normal(list string) string {
	parts := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
	return strings.Join(parts, ",")
}

// withPick returns the dynamic metadata that Envoy gets: what the picker sent, with the
// pick in its place. The served endpoint is Envoy's to write.
func withPick(dynamic *structpb.Struct, pick string) *structpb.Struct {
	if dynamic == nil && pick == "" {
		return nil
	}
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	if dynamic != nil {
		out = proto.Clone(dynamic).(*structpb.Struct)
	}
	lb := out.GetFields()[contract.MetadataLB].GetStructValue()
	if lb == nil {
		lb = &structpb.Struct{}
	}
	if lb.Fields == nil {
		lb.Fields = map[string]*structpb.Value{}
	}
	delete(lb.Fields, contract.KeyServed)
	delete(lb.Fields, contract.KeyDestination)
	if pick != "" {
		lb.Fields[contract.KeyDestination] = structpb.NewStringValue(pick)
	}
	if out.Fields == nil {
		out.Fields = map[string]*structpb.Value{}
	}
	out.Fields[contract.MetadataLB] = structpb.NewStructValue(lb)
	return out
}
