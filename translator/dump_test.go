package translator_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"signalbox.dev/translator"
	"signalbox.dev/xds"
)

// twoGateways is a golden whose pool two Gateways use.
func twoGateways(t *testing.T) *golden {
	t.Helper()
	g, err := readGolden("../testdata/translate/pool-two-gateways.txtar")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestDump(t *testing.T) {
	out := twoGateways(t).translate().output()
	all, err := out.Dump("")
	if err != nil {
		t.Fatal(err)
	}
	if len(all.Envoy) != 2 || len(all.Envoy["infra/second"]["routes"]) != 1 || len(all.Status) != len(out.Statuses) {
		t.Errorf("a dump of all has %d groups and %d statuses", len(all.Envoy), len(all.Status))
	}
	one, err := out.Dump("infra/second", "routes", "clusters")
	if err != nil {
		t.Fatal(err)
	}
	if len(one.Envoy) != 1 || len(one.Envoy["infra/second"]) != 2 || len(one.Status) != 0 {
		t.Errorf("a dump of the routes and clusters of one Gateway is %v", one)
	}
	out.Resources = []xds.Change{{Group: "a/b", Type: xds.Route, Name: "r", Resource: xds.NewRawResource("type.googleapis.com/nobody.knows", "r", nil)}}
	if _, err := out.Dump(""); err == nil {
		t.Error("a resource of a type that nobody knows is dumped")
	}
}

// A dump is for people: what no private key may be in.
func TestDumpRedacts(t *testing.T) {
	g, err := readGolden("../testdata/translate/gateway-https.txtar")
	if err != nil {
		t.Fatal(err)
	}
	dump, err := g.translate().output().Dump("")
	if err != nil {
		t.Fatal(err)
	}
	text := string(mustJSON(dump))
	if !strings.Contains(text, `"privateKey":"[redacted]"`) {
		t.Error("the dump shows no redacted key")
	}
	for _, secret := range dump.Envoy["default/gw"]["secrets"] {
		if key := secret.(map[string]any)["tlsCertificate"].(map[string]any)["privateKey"]; key != xds.Redacted {
			t.Errorf("a private key is shown: %v", key)
		}
	}
}

func TestCheckDumpSections(t *testing.T) {
	for _, section := range translator.DumpSectionNames() {
		if err := translator.CheckDumpSections([]string{section}); err != nil {
			t.Error(err)
		}
	}
	err := translator.CheckDumpSections([]string{"routes", "rotues"})
	if err == nil || !strings.Contains(err.Error(), `"rotues"`) || !strings.Contains(err.Error(), "listeners") {
		t.Errorf("%v does not name the section and those that there are", err)
	}
}

// TestWithTimes: every condition gets its time, and the status itself is not touched.
func TestWithTimes(t *testing.T) {
	then := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	for _, g := range goldens(t) {
		for ref, s := range g.translate().statuses {
			var asked, got []string
			timed := s.WithTimes(func(where, typ string, _ metav1.ConditionStatus) metav1.Time {
				asked = append(asked, where+"/"+typ)
				return then
			})
			timed.EachCondition(func(where string, c *metav1.Condition) {
				if c.LastTransitionTime.Equal(&then) {
					got = append(got, where+"/"+c.Type)
				}
			})
			if !slices.Equal(asked, got) {
				t.Errorf("%s: times of %v, asked for %v", ref, got, asked)
			}
			s.EachCondition(func(where string, c *metav1.Condition) {
				if !c.LastTransitionTime.IsZero() {
					t.Errorf("%s: %s/%s has a time", ref, where, c.Type)
				}
			})
		}
	}
}
