package kubetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"

	"signalbox.dev/source"
)

// fieldManager is who applies a test's objects.
const fieldManager = "test"

// Read reads the objects of a manifest.
func Read(t testing.TB, manifest string) (out []*unstructured.Unstructured) {
	t.Helper()
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(manifest)), 4096)
	for {
		o := &unstructured.Unstructured{}
		switch err := documents.Decode(&o.Object); {
		case errors.Is(err, io.EOF):
			return out
		case err != nil:
			t.Fatal(err)
		case len(o.Object) > 0:
			out = append(out, o)
		}
	}
}

// Apply applies an object as kubectl apply --server-side does, its namespace being
// "default" if it has none, and then the status of a Pod. It returns the API server's
// refusal.
func (s *Server) Apply(t testing.TB, o *unstructured.Unstructured) error {
	t.Helper()
	client := s.Resource(t, o.GroupVersionKind(), o.GetNamespace())
	options := metav1.ApplyOptions{FieldManager: fieldManager, Force: true}
	if _, err := client.Apply(t.Context(), o.GetName(), o, options); err != nil {
		return err
	}
	if _, status := o.Object["status"]; status && o.GetKind() == string(source.KindPod) {
		_, err := client.ApplyStatus(t.Context(), o.GetName(), o, options)
		return err
	}
	return nil
}

// Put applies a manifest. What the API server refuses as invalid it does not have.
func (s *Server) Put(t testing.TB, manifest string) {
	t.Helper()
	for _, o := range Read(t, manifest) {
		if err := s.Apply(t, o); err != nil && !apierrors.IsInvalid(err) {
			t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// Delete deletes an object.
func (s *Server) Delete(t testing.TB, ref source.Ref) {
	t.Helper()
	for _, k := range source.Kinds {
		if k.Kind == ref.Kind {
			if err := s.Resource(t, k.GVK, ref.Namespace).Delete(t.Context(), ref.Name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		}
	}
}

// Clear deletes all objects of the kinds that signalbox reads, but Namespaces and what
// belongs to the API server itself.
func (s *Server) Clear(t testing.TB) {
	t.Helper()
	namespaces, err := s.Resource(t, schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}, "").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range source.Kinds {
		if k.Kind == source.KindNamespace {
			continue
		}
		in := []string{""}
		if k.Namespaced {
			in = nil
			for _, n := range namespaces.Items {
				in = append(in, n.GetName())
			}
		}
		for _, namespace := range in {
			// The API server's own Service has a label that no other object has.
			options := metav1.ListOptions{LabelSelector: "provider!=kubernetes,kubernetes.io/service-name!=kubernetes"}
			client := s.Resource(t, k.GVK, namespace)
			if err := client.DeleteCollection(t.Context(), metav1.DeleteOptions{}, options); err != nil && !apierrors.IsNotFound(err) {
				t.Fatalf("clearing %s: %v", k.Kind, err)
			}
		}
	}
}

// Resource is a client for the objects of a kind in a namespace, as an administrator.
func (s *Server) Resource(t testing.TB, gvk schema.GroupVersionKind, namespace string) dynamic.ResourceInterface {
	t.Helper()
	client, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	resource, _ := meta.UnsafeGuessKindToResource(gvk)
	for _, k := range source.Kinds {
		if k.GVK.GroupKind() != gvk.GroupKind() {
			continue
		}
		resource.Resource = k.Resource
		if !k.Namespaced {
			return client.Resource(resource)
		}
	}
	if gvk.Kind == "CustomResourceDefinition" || gvk.Group == "rbac.authorization.k8s.io" && namespace == "" {
		return client.Resource(resource)
	}
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return client.Resource(resource).Namespace(namespace)
}

// CRD returns the official CRD of a kind.
func CRD(t testing.TB, kind source.Kind) *unstructured.Unstructured {
	t.Helper()
	for _, o := range crds(t) {
		if name, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind"); name == string(kind) {
			return o
		}
	}
	t.Fatalf("there is no CRD of %s", kind)
	return nil
}

func crds(t testing.TB) (out []*unstructured.Unstructured) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root(t), "source/manifest/crds/*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no CRDs: %v", err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Read(t, string(b))...)
	}
	return out
}

// root is the folder of go.mod.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir = filepath.Dir(dir); dir == "/" {
			t.Fatal("this test does not run in signalbox's source")
		}
	}
}

// InstallCRD installs a CRD and waits until its kind is served.
func (s *Server) InstallCRD(t testing.TB, crd *unstructured.Unstructured) {
	t.Helper()
	client := s.Resource(t, crd.GroupVersionKind(), "")
	s.until(t, crd.GetName()+" is served", func(ctx context.Context) error {
		o, err := client.Apply(ctx, crd.GetName(), crd, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		if err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, c := range conditions {
			if c, ok := c.(map[string]any); ok && c["type"] == "Established" && c["status"] == "True" {
				return nil
			}
		}
		return errors.New("it is not established")
	})
}

// RemoveCRD removes a CRD, and with it all objects of its kind, and waits until it is gone.
func (s *Server) RemoveCRD(t testing.TB, crd *unstructured.Unstructured) {
	t.Helper()
	client := s.Resource(t, crd.GroupVersionKind(), "")
	if err := client.Delete(t.Context(), crd.GetName(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.until(t, crd.GetName()+" is gone", func(ctx context.Context) error {
		_, err := client.Get(ctx, crd.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is still there (%w)", err)
	})
}

// Request is a request that the API server has answered.
type Request struct {
	Verb                 string
	Group, Resource, Sub string
	Namespace, Name      string
	Code                 int
}

// Requests returns all requests of a user since the server was started first, from the
// audit log.
func (s *Server) Requests(t testing.TB, user string) (out []Request) {
	t.Helper()
	log, err := os.ReadFile(s.path("audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(log, []byte("\n"))
	for _, line := range lines[:len(lines)-1] { // the last may be written right now
		var e struct {
			Verb      string `json:"verb"`
			User      struct{ Username string }
			ObjectRef struct{ APIGroup, Resource, Subresource, Namespace, Name string }
			Status    struct{ Code int } `json:"responseStatus"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("audit log: %v", err)
		}
		if r := e.ObjectRef; e.User.Username == user && r.Resource != "" {
			out = append(out, Request{Verb: e.Verb, Group: r.APIGroup, Resource: r.Resource, Sub: r.Subresource, Namespace: r.Namespace, Name: r.Name, Code: e.Status.Code})
		}
	}
	return out
}
