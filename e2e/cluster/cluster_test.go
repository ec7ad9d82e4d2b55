// Package cluster holds the tests of signalbox on a real cluster, the one of KUBECONFIG:
// what deploy/ installs, the commands of both guides as they stand there, and load from a
// pod while everything is stopped and replaced. `make cluster-test` builds the images and
// runs them; they install signalbox and remove it again.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const (
	checkout  = "../.."
	namespace = "signalbox-system"
	// patience is how long a test waits for what should happen within seconds; images may
	// have to be fetched.
	patience = 3 * time.Minute
)

// TestCluster runs in the order of an operator's day: later parts stand on earlier ones.
func TestCluster(t *testing.T) {
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"install", install},
		{"guides", guides},
		{"statuses", statuses},
		{"unique model names", uniqueModelNames},
		{"faults", faults},
		{"remove", remove},
	} {
		if !t.Run(step.name, step.run) {
			t.FailNow() // what follows would fail for the same reason
		}
	}
}

// run runs a command in the checkout and returns its output.
func run(t testing.TB, stdin, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = checkout
	cmd.Stdin = strings.NewReader(stdin)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return out.String(), errors.Join(err, errors.New(strings.TrimSpace(words.String())))
	}
	return out.String(), nil
}

// kubectl runs kubectl, which must succeed.
func kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return apply(t, "", args...)
}

// apply is kubectl with something on its stdin.
func apply(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := run(t, stdin, "kubectl", args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// get decodes what `kubectl get -o json` says.
func get(t testing.TB, into any, args ...string) {
	t.Helper()
	if err := json.Unmarshal([]byte(kubectl(t, append([]string{"get", "-o", "json"}, args...)...)), into); err != nil {
		t.Fatal(err)
	}
}

// eventually asks until the answer is true; what it last said is in the failure.
func eventually(t testing.TB, what string, ask func() (bool, string)) {
	t.Helper()
	var said string
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		var ok bool
		if ok, said = ask(); ok {
			return
		}
	}
	t.Fatalf("%s: not within %s; last: %s", what, patience, said)
}

// environment returns a variable that `make cluster-test` sets.
func environment(t testing.TB, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run these tests with `make cluster-test`", name)
	}
	return v
}
