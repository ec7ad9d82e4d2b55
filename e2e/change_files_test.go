package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"signalbox.dev/source"
)

// TestChangeFiles: what people and tools do to a folder of files. What breaks stays as it
// was last good; what is moved about is the same as before.
func TestChangeFiles(t *testing.T) {
	x := newStanding(t)
	adapted := newTarget("adapted", "adapter-0", "").expect(x.b, "pick-b")
	linked := newTarget("linked", "linked", "").expect(x.a, "pick-a")
	x.files["adapters.yaml"] = yamlAdapters("adapter-0")
	x.files["base.yaml"] = yamlRoute("base", rule(toPool("b"), `{headers: [{name: X-Gateway-Base-Model-Name, value: "some/base"}]}`))
	c := runChanging(t, x.ledger, x.files, boxOptions{})
	c.begin(x.toA, x.toB, x.toS, adapted)
	c.load.hold(x.toA)
	c.load.hold(adapted)
	c.adapters(t)
	c.broken(t, x)

	// Another name for a file is no change; the new file is the one that counts.
	was, _ := c.wanted()
	c.rename("steady.yaml", "renamed.yaml")
	c.rename("pods-a.yaml", "sub/pods-a.yaml")
	c.change(func() {
		c.Write("sub/epp-a.yaml", x.files["epp-a.yaml"]) // twice the same
		c.Write("later.yaml", yamlRoute("later", rule(toPool("a"), onModel("later"))))
	})
	c.change(func() { c.Remove("later.yaml") })
	if now, _ := c.wanted(); now != was {
		t.Error("files that were renamed and copied have changed what the Envoy gets")
	}
	c.move(x.toA, x.b, []string{"pick-b"}, func() {
		c.Write("renamed.yaml", strings.Replace(x.files["steady.yaml"], "name: a}", "name: b}", 1))
	})
	c.move(x.toA, x.a, []string{"pick-a"}, func() { // in place, as some editors do
		if err := os.WriteFile(filepath.Join(c.Dir, "renamed.yaml"), []byte(x.files["steady.yaml"]), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	c.swapped(t, x, linked)
	c.end()
}

// yamlAdapters is the ConfigMap of base model some/base.
func yamlAdapters(adapters ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata: {name: adapters, namespace: default, labels: {inference.networking.k8s.io/bbr-managed: "true"}}
data:
  baseModel: some/base
  adapters: "[%s]"
`, strings.Join(adapters, ", "))
}

// adapters has adapters come and go.
func (c *changing) adapters(t *testing.T) {
	t.Helper()
	all := []string{"adapter-0"}
	for i := range 12 {
		all = append(all, fmt.Sprintf("adapter-%d", i+1))
		c.change(func() { c.Write("adapters.yaml", yamlAdapters(all...)) })
		waitFor(t, "the new adapter answers", func() bool { return c.ask(all[i+1]) == 200 })
		c.load.during(10)
	}
	for len(all) > 1 {
		last := all[len(all)-1]
		all = all[:len(all)-4]
		c.change(func() { c.Write("adapters.yaml", yamlAdapters(all...)) })
		waitFor(t, "the removed adapter is not known any more", func() bool { return c.ask(last) == 404 })
		c.load.during(10)
	}
}

// ask returns the status of a request for a model.
func (b *box) ask(model string) int {
	b.t.Helper()
	a := post(context.Background(), b.URL+"/v1/chat/completions", "application/json", chat(model))
	if a.Err != nil {
		b.t.Fatal(a.Err)
	}
	return a.Status
}

// broken breaks files and mends them.
func (c *changing) broken(t *testing.T, x *standing) {
	t.Helper()
	was, _ := c.wanted()
	for file, text := range map[string]string{
		"steady.yaml":   x.files["steady.yaml"] + "\n---\n\tthis: [is no YAML\n",
		"pods-a.yaml":   strings.Replace(x.files["pods-a.yaml"], "endpoints: [", "endpoints: [[", 1),
		"pool-b.yaml":   strings.Replace(x.files["pool-b.yaml"], "number: 8000", "number: eight thousand", 1),
		"adapters.yaml": "{{ not a ConfigMap",
	} {
		good, err := os.ReadFile(filepath.Join(c.Dir, file))
		if err != nil {
			t.Fatal(err)
		}
		c.Write(file, text)
		waitFor(t, file+" is reported as broken, with its line", func() bool {
			return slices.ContainsFunc(c.problems(), func(p source.Problem) bool { return strings.Contains(p.Where, file+":") })
		})
		c.load.during(30)
		if now, _ := c.wanted(); now != was {
			t.Errorf("%s is broken, and the Envoy gets something else than before", file)
		}
		c.Write(file, string(good))
		waitFor(t, file+" is mended", func() bool { return len(c.problems()) == 0 })
	}
}

// rename gives a file another name.
func (b *box) rename(from, to string) {
	b.t.Helper()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(b.Dir, to)), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(b.Dir, from), filepath.Join(b.Dir, to)); err != nil {
		b.t.Fatal(err)
	}
}

// swapped replaces a directory by another in one stroke, as kubelet does with ConfigMaps:
// the files are links through a link that is swapped.
func (c *changing) swapped(t *testing.T, x *standing, linked *loadTarget) {
	t.Helper()
	version := 0
	swap := func(pool string) {
		t.Helper()
		version++
		name := fmt.Sprintf("..version-%d", version)
		c.Write(filepath.Join("mounted", name, "linked.yaml"), yamlRoute("linked", rule(toPool(pool), onModel("linked"))))
		link := filepath.Join(c.Dir, "mounted", "..data")
		if err := os.Symlink(name, link+"_tmp"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+"_tmp", link); err != nil {
			t.Fatal(err)
		}
		if version > 1 {
			if err := os.RemoveAll(filepath.Join(c.Dir, "mounted", fmt.Sprintf("..version-%d", version-1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.change(func() {
		swap("a")
		if err := os.Symlink("..data/linked.yaml", filepath.Join(c.Dir, "mounted", "linked.yaml")); err != nil {
			t.Fatal(err)
		}
	})
	c.load.settle()
	c.load.add(linked)
	for range 3 {
		c.move(linked, x.b, []string{"pick-b"}, func() { swap("b") })
		c.move(linked, x.a, []string{"pick-a"}, func() { swap("a") })
	}
}
