package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"signalbox.dev/demo/load"
)

// loadPod is `signalbox demo load` in a pod.
type loadPod struct {
	name string
	ends time.Time // when it stops sending by itself
}

const loadRate = 40 // requests a second

// startLoad sends requests for models of FailOpen and of FailClose pools from a pod, for
// so long, to the Gateway's Service, or to an address. It returns when the first have been
// answered.
func startLoad(t *testing.T, duration time.Duration, url string) loadPod {
	t.Helper()
	l := loadPod{name: fmt.Sprintf("load-%d", time.Now().UnixNano())}
	overrides, err := json.Marshal(map[string]any{"spec": map[string]any{
		"automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
		"securityContext": map[string]any{"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": map[string]any{"type": "RuntimeDefault"}}}})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, "run", l.name, "--image", environment(t, "SIGNALBOX_IMAGE"), "--image-pull-policy", "IfNotPresent", "--restart", "Never",
		"--overrides", string(overrides), "--", "demo", "load", "--url", url, "--rate", fmt.Sprint(loadRate), "--workers", "16",
		"--models", "food-review-1,microsoft/Phi-4-mini-instruct,chatbot,recommender", "--duration", duration.String())
	t.Cleanup(func() { kubectl(t, "delete", "pod", l.name, "--ignore-not-found", "--wait=false") })
	kubectl(t, "wait", "pod/"+l.name, "--for=jsonpath={.status.phase}=Running", "--timeout", patience.String())
	l.ends = time.Now().Add(duration - 2*time.Second) // it may have begun a little before
	return l
}

// finish waits for the end of the load. No request may have failed, and the load must have
// gone on after what was done meanwhile.
func (l loadPod) finish(t *testing.T) load.Report {
	t.Helper()
	if left := time.Until(l.ends); left < 0 {
		t.Errorf("what was to happen under load took %s longer than the load", -left)
	}
	var phase string
	eventually(t, "the load ends", func() (bool, string) {
		out, err := run(t, "", "kubectl", "get", "pod", l.name, "-o", "jsonpath={.status.phase}")
		phase = out
		return err == nil && (phase == "Succeeded" || phase == "Failed"), phase
	})
	logs := kubectl(t, "logs", l.name)
	line, _, _ := strings.Cut(logs[strings.Index(logs, "{"):], "\n")
	var report load.Report
	if err := json.Unmarshal([]byte(line), &report); err != nil {
		t.Fatalf("%v in %s", err, logs)
	}
	if report.Failed > 0 {
		t.Errorf("%d of %d requests failed:", report.Failed, report.Requests)
		for _, f := range report.Failures {
			t.Errorf("  %s %s: %s", f.At.Format("15:04:05.000"), f.Model, f.What)
		}
	}
	if report.Requests < loadRate { // a second's worth
		t.Errorf("only %d requests were sent", report.Requests)
	}
	t.Logf("%d requests, %d failed, median %.0f ms, longest %.0f ms", report.Requests, report.Failed, report.P50, report.Max)
	return report
}

// under runs something under load through the Gateway's Service. longest is how long it
// takes at most, and the load goes on for a while after it.
func under(t *testing.T, longest time.Duration, what func(*testing.T)) load.Report {
	t.Helper()
	l := startLoad(t, longest+10*time.Second, "http://"+envoys+"."+"default")
	what(t)
	return l.finish(t)
}
