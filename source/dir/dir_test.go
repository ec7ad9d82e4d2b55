package dir_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/source"
	"signalbox.dev/source/dir"
	"signalbox.dev/source/manifest"
	"signalbox.dev/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start watches with short times, and without the poll that would hide a lost event.
func start(paths ...string) source.Source {
	return dir.New(paths, zap.NewNop(), dir.Settle(5*time.Millisecond), dir.Grace(300*time.Millisecond), dir.Poll(time.Hour))
}

func hostOf(o source.Object) string {
	if r, ok := o.(*gatewayv1.HTTPRoute); ok && len(r.Spec.Hostnames) > 0 {
		return string(r.Spec.Hostnames[0])
	}
	return ""
}

// world keeps one file an object in a directory.
type world string

func (w world) path(ref source.Ref) string {
	return filepath.Join(string(w), strings.ReplaceAll(ref.String(), "/", "_")+".yaml")
}

func (w world) Put(t *testing.T, text string) {
	for _, document := range strings.Split(text, "---\n") {
		r := manifest.Parse("", []byte(document))
		path := filepath.Join(string(w), "other.yaml")
		if len(r.Objects) == 1 {
			path = w.path(r.Objects[0].Ref)
		}
		if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
			t.Error(err)
		}
	}
}

func (w world) Delete(t *testing.T, ref source.Ref) {
	if err := os.Remove(w.path(ref)); err != nil {
		t.Error(err)
	}
}

func TestSource(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) (source.Source, sourcetest.World) {
		path := t.TempDir()
		return start(path), world(path)
	})
}

func TestPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: piped}\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	path := fmt.Sprintf("/dev/fd/%d", r.Fd())
	if err := start(path).Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "cannot be watched") {
		t.Errorf("Run on a pipe: %v; want an error that says that it cannot be watched", err)
	}
	got, err := dir.Read([]string{path}, nil)
	if err != nil || len(got.Objects) != 1 || got.Objects[0].Ref.Name != "piped" {
		t.Errorf("Read of a pipe: %+v, %v; want one Namespace", got.Objects, err)
	}
}
