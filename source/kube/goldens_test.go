//go:build cluster

package kube_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"signalbox.dev/source"
	"signalbox.dev/source/dir"
	"signalbox.dev/source/kube"
	"signalbox.dev/source/kube/kubetest"
	"signalbox.dev/source/sourcetest"
	statuskube "signalbox.dev/status/kube"
	"signalbox.dev/translator"
)

// A golden's objects, given to an API server and put into a directory, are refused by
// both or by none, and come to the same bytes and the same words. The API server takes
// the words, and gives them back as they were.
func testGoldens(t *testing.T, server *kubetest.Server) {
	paths, err := filepath.Glob("../../testdata/translate/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	namespaces := map[string]bool{"default": true} // those of all goldens so far
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			text, options := readGolden(t, path)
			objects := kubetest.Read(t, text)
			addNamespaces(objects, namespaces)
			text += bareNamespaces(objects, namespaces)

			fromDir, refusedByDir := readDirectory(t, text)
			fromKube, refusedByKube := readServer(t, server, kubetest.Read(t, text))
			if d := cmp.Diff(refusedByDir, refusedByKube); d != "" {
				t.Errorf("refused objects (-directory +API server):\n%s", d)
			}
			if len(fromDir) == len(namespaces) {
				t.Fatal("the golden has no objects")
			}
			sameAge(t, fromDir, fromKube)
			out := translation(fromKube, options)
			compare(t, translation(fromDir, options), out)
			if results := writeStatuses(t, server, out.Statuses); results["error"]+results["conflict"] > 0 {
				t.Errorf("the API server does not take the statuses: %v", results)
			}
			if results := writeStatuses(t, server, out.Statuses); results["same"] != len(out.Statuses) {
				t.Errorf("statuses that have been written would be written again: %v", results)
			}
		})
	}
}

// readGolden returns a golden's objects and the translator's options.
func readGolden(t *testing.T, path string) (text string, options translator.Options) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var inputs struct{ Inputs []string }
	options.ExtProc = "127.0.0.1:9004"
	for _, f := range archive.Files {
		switch f.Name {
		case "options.yaml":
			if err := yaml.Unmarshal(f.Data, &inputs); err != nil {
				t.Fatal(err)
			}
			if err := yaml.Unmarshal(f.Data, &options); err != nil {
				t.Fatal(err)
			}
		case "input.yaml":
			text += "\n---\n" + string(f.Data)
		}
	}
	for _, name := range inputs.Inputs {
		b, err := os.ReadFile(filepath.Join("../../testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		text += "\n---\n" + string(b)
	}
	return routable(text), options
}

// routable puts addresses into the text that an API server takes as endpoints: no
// loopback and no link-local ones. Both sides get it.
func routable(text string) string {
	for _, r := range []struct {
		local    *regexp.Regexp
		routable string
	}{
		{regexp.MustCompile(`\b127(\.\d+\.\d+\.\d+)\b`), "10$1"},
		{regexp.MustCompile(`\b169\.254(\.\d+\.\d+)\b`), "10.254$1"},
		{regexp.MustCompile(`([^0-9a-f:])::1\b`), "${1}2001:db8::1"},
		{regexp.MustCompile(`\bfe80::`), "2001:db8:1::"},
	} {
		text = r.local.ReplaceAllString(text, r.routable)
	}
	return text
}

func addNamespaces(objects []*unstructured.Unstructured, namespaces map[string]bool) {
	for _, o := range objects {
		if ns := o.GetNamespace(); ns != "" {
			namespaces[ns] = true
		}
		if o.GetKind() == "Namespace" {
			namespaces[o.GetName()] = true
		}
	}
}

// bareNamespaces returns those Namespaces that are not among the objects: in a cluster no
// object is without one.
func bareNamespaces(objects []*unstructured.Unstructured, namespaces map[string]bool) (text string) {
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		if !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" && o.GetName() == name }) {
			text += fmt.Sprintf("\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", name)
		}
	}
	return text
}

type objects map[source.Ref]source.Object

func readDirectory(t *testing.T, text string) (objects, []string) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "input.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := sourcetest.Read(t, dir.New([]string{path}, zap.NewNop()))
	r.Sync()
	var refused []string
	for _, p := range r.Problems {
		refused = append(refused, p.Object)
	}
	slices.Sort(refused)
	return r.Objects, slices.Compact(refused)
}

func readServer(t *testing.T, server *kubetest.Server, wanted []*unstructured.Unstructured) (objects, []string) {
	server.Clear(t)
	slices.SortStableFunc(wanted, func(a, b *unstructured.Unstructured) int { // Namespaces first
		return strings.Compare(strings.Replace(a.GetKind(), "Namespace", "", 1), strings.Replace(b.GetKind(), "Namespace", "", 1))
	})
	var refused []string
	for _, o := range wanted {
		completePod(t, o)
		if err := server.Apply(t, o); apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
			t.Logf("refused: %v", err)
			refused = append(refused, refOf(o).String())
		} else if err != nil {
			t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
	slices.Sort(refused)
	r := sourcetest.Read(t, kube.New(kube.Options{Config: server.Config, Logger: zap.NewNop()}))
	r.Sync()
	maps.DeleteFunc(r.Objects, func(ref source.Ref, _ source.Object) bool { return isSystems(ref) })
	return r.Objects, refused
}

// isSystems says whether an object is the API server's own.
func isSystems(ref source.Ref) bool {
	return strings.HasPrefix(ref.Name, "kube-") && ref.Kind == source.KindNamespace || ref.Name == "kubernetes" || strings.HasPrefix(ref.Namespace, "kube-")
}

func refOf(o *unstructured.Unstructured) source.Ref {
	ref := source.Ref{Kind: source.Kind(o.GetKind()), Namespace: o.GetNamespace(), Name: o.GetName()}
	for _, k := range source.Kinds {
		if k.Kind == ref.Kind && k.Namespaced && ref.Namespace == "" {
			ref.Namespace = "default"
		}
	}
	return ref
}

// completePod gives a Pod the container without which an API server takes none: in a
// directory only its address counts.
func completePod(t *testing.T, o *unstructured.Unstructured) {
	if _, has, _ := unstructured.NestedSlice(o.Object, "spec", "containers"); o.GetKind() == "Pod" && !has {
		if err := unstructured.SetNestedSlice(o.Object, []any{map[string]any{"name": "c", "image": "c"}}, "spec", "containers"); err != nil {
			t.Fatal(err)
		}
	}
}

// sameAge gives the objects of the API server the age that those in the directory say,
// which is the only thing that it decides itself and that matters to translation.
func sameAge(t *testing.T, fromDir, fromKube objects) {
	for ref, o := range fromKube {
		if d := fromDir[ref]; d != nil {
			o = o.DeepCopyObject().(source.Object)
			o.SetCreationTimestamp(d.GetCreationTimestamp())
			fromKube[ref] = o
		} else {
			t.Errorf("%s is in the API server only", ref)
		}
	}
	for ref, o := range fromDir {
		if s, ok := o.(*corev1.Secret); ok && s.Type != corev1.SecretTypeTLS {
			continue // never read from a cluster
		}
		if fromKube[ref] == nil {
			t.Errorf("%s is in the directory only", ref)
		}
	}
}

func translation(o objects, options translator.Options) translator.Output {
	return translator.Translate(slices.Collect(maps.Values(o)), options)
}

// writeStatuses writes statuses as a new leader does, and returns what came of it.
func writeStatuses(t *testing.T, server *kubetest.Server, statuses []translator.Status) map[string]int {
	t.Helper()
	registry := prometheus.NewRegistry()
	w, err := statuskube.New(statuskube.Options{Config: server.Config, Logger: zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)), Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	w.Write(statuses)
	w.Lead(true)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		results, sum := map[string]int{}, 0
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				n := int(m.GetCounter().GetValue())
				for _, l := range m.GetLabel() {
					if l.GetName() == "result" {
						results[l.GetValue()] += n
					}
				}
				sum += n
			}
		}
		if sum >= len(statuses) {
			return results
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("statuses were not written")
		}
	}
}

func compare(t *testing.T, fromDir, fromKube translator.Output) {
	t.Helper()
	if d := cmp.Diff(fromDir.Statuses, fromKube.Statuses); d != "" {
		t.Errorf("statuses (-directory +API server):\n%s", d)
	}
	bytes := func(out translator.Output) map[string]string {
		m := map[string]string{}
		for _, c := range out.Resources {
			m[fmt.Sprintf("%s %s %s", c.Group, c.Type.Short(), c.Name)] = string(c.Resource.Any.Value)
		}
		return m
	}
	if len(fromDir.Resources)+len(fromDir.Statuses) == 0 {
		t.Error("the objects come to nothing")
	}
	if d := cmp.Diff(bytes(fromDir), bytes(fromKube)); d != "" {
		t.Errorf("resources (-directory +API server):\n%s", d)
	}
}
