package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"signalbox.dev/demo/load"
)

// loadPod is `signalbox demo load` in a pod.
type loadPod struct {
	name string
	logs *exec.Cmd // follows what it prints, which is its report, at its end
	out  bytes.Buffer
	ends time.Time // when it stops by itself; zero: when it is told to
}

const loadRate = 40 // requests a second

// startLoad sends requests for models of FailOpen and of FailClose pools from a pod, to
// the Gateway's Service or to an address, for so long; 0: until finish. It returns when
// the pod runs.
func startLoad(t *testing.T, duration time.Duration, url string) *loadPod {
	t.Helper()
	l := &loadPod{name: fmt.Sprintf("load-%d", time.Now().UnixNano())}
	overrides, err := json.Marshal(map[string]any{"spec": map[string]any{
		"automountServiceAccountToken": false,
		"securityContext":              map[string]any{"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": map[string]any{"type": "RuntimeDefault"}}}})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, "run", l.name, "--image", environment(t, "SIGNALBOX_IMAGE"), "--image-pull-policy", "IfNotPresent", "--restart", "Never",
		"--overrides", string(overrides), "--", "demo", "load", "--url", url, "--rate", fmt.Sprint(loadRate), "--workers", "16",
		"--models", "food-review-1,microsoft/Phi-4-mini-instruct,chatbot,recommender", "--duration", duration.String())
	t.Cleanup(func() { kubectl(t, "delete", "pod", l.name, "--ignore-not-found", "--wait=false") })
	kubectl(t, "wait", "pod/"+l.name, "--for=jsonpath={.status.phase}=Running", "--timeout", patience.String())
	if duration > 0 {
		l.ends = time.Now().Add(duration - 2*time.Second) // it may have begun a little before
		return l
	}
	l.logs = exec.Command("kubectl", "logs", "--follow", "pod/"+l.name)
	l.logs.Stdout, l.logs.Stderr = &l.out, &l.out
	if err := l.logs.Start(); err != nil {
		t.Fatal(err)
	}
	return l
}

// report ends the load and returns what it printed.
func (l *loadPod) report(t *testing.T) string {
	t.Helper()
	if l.ends.IsZero() {
		kubectl(t, "delete", "pod", l.name, "--wait=false", "--grace-period=60")
		if err := l.logs.Wait(); err != nil {
			t.Fatalf("kubectl logs: %v\n%s", err, l.out.String())
		}
		return l.out.String()
	}
	if left := time.Until(l.ends); left < 0 {
		t.Errorf("what was to happen under load took %s longer than the load", -left)
	}
	eventually(t, "the load ends", func() (bool, string) {
		phase, err := run(t, "", "kubectl", "get", "pod", l.name, "-o", "jsonpath={.status.phase}")
		return err == nil && (phase == "Succeeded" || phase == "Failed"), phase
	})
	return kubectl(t, "logs", l.name)
}

// finish ends the load: no request may have failed.
func (l *loadPod) finish(t *testing.T) {
	t.Helper()
	logs := l.report(t)
	var report load.Report
	if err := json.Unmarshal([]byte(strings.SplitN(logs[max(0, strings.Index(logs, "{")):], "\n", 2)[0]), &report); err != nil {
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
}

// under runs something under load through the Gateway's Service.
func under(t *testing.T, what func(*testing.T)) {
	t.Helper()
	l := startLoad(t, 0, "http://"+envoys+".default")
	what(t)
	l.finish(t)
}
