package translator

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"signalbox.dev/extproc/contract"
	"signalbox.dev/source"
)

// modelsIn returns a ConfigMap of a base model and its adapters.
func modelsIn(name, label, base string, adapters ...string) string {
	return "kind: ConfigMap\nmetadata: {namespace: default, name: " + name + ", labels: {" + label + ": 'true'}}\ndata:\n  baseModel: " + base + "\n  adapters: \"[" + strings.Join(adapters, ", ") + "]\"\n"
}

// onModels returns a match of headers: exact on the model, and exact or by "~REGEX" on
// its base; "" for neither.
func onModels(model, base string) string {
	var headers []string
	if model != "" {
		headers = append(headers, "{name: X-Gateway-Model-Name, value: '"+model+"'}")
	}
	if re, ok := strings.CutPrefix(base, "~"); ok {
		headers = append(headers, "{name: x-gateway-BASE-model-name, type: RegularExpression, value: '"+re+"'}")
	} else if base != "" {
		headers = append(headers, "{name: X-Gateway-Base-Model-Name, value: '"+base+"'}")
	}
	return "matches: [{headers: [" + strings.Join(headers, ", ") + "]}], " + toA
}

// modelTable returns the models that the one host has lists for, each with the base
// model that its first route tells the backend: "model" or "model<base".
func modelTable(t *testing.T, documents ...string) []string {
	t.Helper()
	h := tablesOf(t, decode(t, append([]string{routeBase}, documents...)...))["http/80"].VirtualHosts[0]
	var out []string
	for _, model := range slices.Sorted(maps.Keys(h.Matcher.GetMatcherTree().GetExactMatchMap().GetMap())) {
		if base := baseTold(listOf(t, h, model)[0]); base != "" {
			model += "<" + base
		}
		out = append(out, model)
	}
	return out
}

func baseTold(r *routev3.Route) string {
	for _, h := range r.RequestHeadersToAdd {
		if h.Header.Key == contract.HeaderBaseModel {
			return h.Header.Value
		}
	}
	return ""
}

func TestBaseModels(t *testing.T) {
	lists := []string{
		modelsIn("one", modelLabels[0], "org/base", "lora-1", "org/lora-2", "org/base"),
		modelsIn("two", modelLabels[1], "org/base", "lora-3"),
		modelsIn("three", modelLabels[2], "other", "lora-4", "'not a model name'"),
		modelsIn("unlabelled", "x", "org/base", "lora-5"),
		strings.ReplaceAll(modelsIn("elsewhere", modelLabels[0], "org/base", "lora-6"), "default", "elsewhere"),
		strings.ReplaceAll(modelsIn("off", modelLabels[0], "org/base", "lora-7"), "'true'", "'false'"),
	}
	for _, c := range []struct{ model, base, want string }{
		{"", "org/base", "lora-1<org/base lora-3<org/base org/base<org/base org/lora-2<org/base"},
		{"", "other", "lora-4<other other<other"},
		{"", "unheard-of", "unheard-of<unheard-of"},
		{"", "~oth.*", "lora-4<other other<other"},
		{"", "~ther", ""},
		{"lora-1", "", "lora-1<org/base"},
		{"unheard-of", "", "unheard-of"},
		{"lora-1", "org/base", "lora-1<org/base"},
		{"lora-4", "org/base", ""},
		{"lora-4", "~o.*", "lora-4<other"},
		{"unheard-of", "unheard-of", "unheard-of<unheard-of"},
		{"unheard-of", "~.*", ""},
	} {
		got := modelTable(t, append(lists, routeOf("r", onModels(c.model, c.base)))...)
		if strings.Join(got, " ") != c.want {
			t.Errorf("model %q, base %q: %q, want %q", c.model, c.base, got, c.want)
		}
	}
}

func TestModelOfTwoBases(t *testing.T) {
	documents := []string{routeBase, modelsIn("a", modelLabels[0], "base-a", "shared", "mine"), modelsIn("b", modelLabels[0], "base-b", "shared"), routeOf("r", onModels("", "base-a"))}
	if got, want := modelTable(t, documents[1:]...), []string{"base-a<base-a", "mine<base-a"}; !slices.Equal(got, want) {
		t.Errorf("models %q, want %q", got, want)
	}
	row, _ := tablesFrom(t, documents...).routeRows.Get(nil, "default/r")
	if len(row.Warnings) != 1 || !strings.Contains(row.Warnings[0], `"shared" is claimed by 2 base models`) {
		t.Errorf("warnings %q", row.Warnings)
	}
}

// TestModelsRegex: an expression on the model's own header stays a match of a header, in
// every list.
func TestModelsRegex(t *testing.T) {
	h := tablesOf(t, decode(t, routeBase, routeOf("r", "matches: [{headers: [{name: X-Gateway-Model-Name, type: RegularExpression, value: 'lora-.*'}]}], "+toA, onModels("lora-1", ""))))["http/80"].VirtualHosts[0]
	for _, model := range []string{"", "lora-1"} {
		if m := listOf(t, h, model)[0].Match; len(m.Headers) != 1 {
			t.Errorf("list of %q begins with %v", model, m)
		}
	}
	if got := choose(tablesOf(t, decode(t, routeBase, routeOf("r", "matches: [{headers: [{name: X-Gateway-Model-Name, type: RegularExpression, value: 'lora-.*'}]}], "+toA)))["http/80"], request{host: "h", path: "/", model: "lora-9"}); got != "httproute/default/r/rule/0/match/0" {
		t.Errorf("lora-9 went to %q", got)
	}
}

// TestOwnBaseHeader: a rule that sets the base model's header itself is left alone.
func TestOwnBaseHeader(t *testing.T) {
	r := only(t, "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Gateway-Base-Model-Name, value: mine}]}}], "+onModels("lora", ""), modelsIn("m", modelLabels[0], "base", "lora"))
	if got := baseTold(r); got != "mine" || len(r.RequestHeadersToAdd) != 1 {
		t.Errorf("the backend is told %v", r.RequestHeadersToAdd)
	}
}

// TestManyAdapters: one rule serves 1,000 adapters, and one more costs its own model and
// the routes that use its base.
func TestManyAdapters(t *testing.T) {
	adapters := make([]string, 1000)
	for i := range adapters {
		adapters[i] = fmt.Sprintf("lora-%03d", i)
	}
	tr := New(Options{ExtProc: "127.0.0.1:9004"})
	tr.Apply(changesOf(decode(t, routeBase, routeOf("r", onModels("", "base")), routeOf("other", onModels("x", "")), modelsIn("m", modelLabels[0], "base", adapters...))), nil)
	row, _ := tr.t.routeRows.Get(nil, "default/r")
	if n := len(row.Entries["default/gw|http/80"][0].Models); n != 1001 {
		t.Fatalf("the rule is for %d models, want 1,000 adapters and the base", n)
	}
	more := decode(t, modelsIn("more", modelLabels[0], "base", "one-more"))[0]
	runs := tr.Runs()
	out := tr.Apply([]source.Change{{Ref: source.RefOf(more), Object: more}}, nil)
	if len(out.Resources) != 1 || out.Resources[0].Name != "http/80" {
		t.Errorf("changed %v", out.Resources)
	}
	// The ConfigMap, its two models, the route, its status, the Gateway's, the table.
	if n := tr.Runs() - runs; n > 7 {
		t.Errorf("%d functions ran", n)
	}
}
