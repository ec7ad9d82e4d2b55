package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/provision/infrastructure"
)

// resources are the kinds that Render makes, as the API server calls them.
var resources = map[string]schema.GroupVersionResource{
	"ServiceAccount":      corev1.SchemeGroupVersion.WithResource("serviceaccounts"),
	"Secret":              corev1.SchemeGroupVersion.WithResource("secrets"),
	"ConfigMap":           corev1.SchemeGroupVersion.WithResource("configmaps"),
	"Service":             corev1.SchemeGroupVersion.WithResource("services"),
	"Deployment":          appsv1.SchemeGroupVersion.WithResource("deployments"),
	"PodDisruptionBudget": policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"),
}

// observed is what there is of all that was made for Gateways: metadata only, followed
// by watches of the objects that carry our label.
type observed struct {
	kinds map[string][]cache.SharedIndexInformer // by kind, one a namespace that is watched
	wg    sync.WaitGroup

	mu      sync.Mutex
	applied map[object]trace // what we applied last
}

// object names an object of a Gateway.
type object struct{ kind, namespace, name string }

// trace is an object after we have applied it: what was applied, and how its metadata
// looked then.
type trace struct{ content, shape string }

const byGateway = "gateway"

var errEnded = errors.New("the term has ended")

// observe starts to follow what there is and returns when all of it is known. changed is
// called with each Gateway of which something was changed by others than us.
func (p *Provisioner) observe(ctx context.Context, changed func(types.NamespacedName)) (*observed, error) {
	namespaces := p.opt.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	there := &observed{kinds: map[string][]cache.SharedIndexInformer{}, applied: map[object]trace{}}
	var synced []cache.InformerSynced
	for kind, resource := range resources {
		for _, namespace := range namespaces {
			informer := cache.NewSharedIndexInformer(ours(p.metadata.Resource(resource).Namespace(namespace)), &metav1.PartialObjectMetadata{}, 0, cache.Indexers{byGateway: indexed})
			if err := informer.SetTransform(stripped); err != nil {
				return nil, fmt.Errorf("follow %s: %w", kind, err)
			}
			handler := cache.ResourceEventHandlerFuncs{
				AddFunc:    func(o any) { there.event(kind, o, false, changed) },
				UpdateFunc: func(_, o any) { there.event(kind, o, false, changed) },
				DeleteFunc: func(o any) { there.event(kind, o, true, changed) },
			}
			registration, err := informer.AddEventHandler(handler)
			if err != nil {
				return nil, fmt.Errorf("follow %s: %w", kind, err)
			}
			there.kinds[kind] = append(there.kinds[kind], informer)
			synced = append(synced, registration.HasSynced)
			there.wg.Go(func() { informer.RunWithContext(ctx) })
		}
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		there.wg.Wait()
		return nil, errEnded
	}
	return there, nil
}

// ours lists and watches the objects that carry our label.
func ours(client metadata.ResourceInterface) cache.ListerWatcher {
	const selector = infrastructure.LabelManagedBy + "=" + infrastructure.ManagedBy
	return listAndWatch{&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return client.Watch(ctx, o)
		},
	}}
}

// listAndWatch is followed by lists and watches, the verbs that every API server has and a
// Role grants, instead of lists that are streamed where the API server can.
type listAndWatch struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is how a reflector asks.
func (listAndWatch) IsWatchListSemanticsUnSupported() bool { return true }

// wait returns when nothing is followed any more.
func (o *observed) wait() { o.wg.Wait() }

// owner returns the Gateway that owns an object.
func owner(m metav1.Object) (types.NamespacedName, bool) {
	for _, ref := range m.GetOwnerReferences() {
		if ref.Kind == "Gateway" && strings.HasPrefix(ref.APIVersion, gatewayv1.GroupName+"/") {
			return types.NamespacedName{Namespace: m.GetNamespace(), Name: ref.Name}, true
		}
	}
	return types.NamespacedName{}, false
}

func indexed(o any) ([]string, error) {
	if m, ok := o.(metav1.Object); ok {
		if gateway, ok := owner(m); ok {
			return []string{gateway.String()}, nil
		}
	}
	return nil, nil
}

func stripped(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return o, nil
}

// event tells of a change that is not of our own doing.
func (o *observed) event(kind string, obj any, gone bool, changed func(types.NamespacedName)) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	m, ok := obj.(metav1.Object)
	if !ok {
		return
	}
	k := object{kind, m.GetNamespace(), m.GetName()}
	o.mu.Lock()
	known := !gone && o.applied[k].shape == shape(m)
	if gone {
		delete(o.applied, k)
	}
	o.mu.Unlock()
	if gateway, ok := owner(m); ok && !known {
		changed(gateway)
	}
}

// shape is what of an object's metadata changes when anything does that we care for: a
// status has its own pace.
func shape(m metav1.Object) string {
	version := m.GetResourceVersion()
	if g := m.GetGeneration(); g > 0 {
		version = fmt.Sprint(g, m.GetLabels(), m.GetAnnotations()) // fmt sorts maps
		for _, o := range m.GetOwnerReferences() {
			version += " " + string(o.UID)
		}
	}
	return string(m.GetUID()) + " " + version
}

// of returns the metadata of what there is for a Gateway.
func (o *observed) of(gateway types.NamespacedName) map[object]metav1.Object {
	out := map[object]metav1.Object{}
	for kind, informers := range o.kinds {
		for _, informer := range informers {
			found, err := informer.GetIndexer().ByIndex(byGateway, gateway.String())
			if err != nil {
				continue // the index is always there
			}
			for _, obj := range found {
				if m, ok := obj.(metav1.Object); ok {
					out[object{kind, m.GetNamespace(), m.GetName()}] = m
				}
			}
		}
	}
	return out
}

// settled says whether an object is as we applied it, and this is what we would apply.
func (o *observed) settled(k object, content string, m metav1.Object) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return m != nil && o.applied[k] == trace{content, shape(m)}
}

// note remembers what was applied.
func (o *observed) note(k object, content string, m metav1.Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.applied[k] = trace{content, shape(m)}
}
