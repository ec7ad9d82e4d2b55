package standalone

import (
	"context"
	"slices"

	"signalbox.dev/source"
)

// observed is a source whose objects others see too.
type observed struct {
	source.Source
	see []func(objects []source.Object)
}

// observe returns src; every f is called with all its objects, sorted, after each
// batch from the first complete one on, before the batch goes on.
func observe(src source.Source, f ...func(objects []source.Object)) source.Source {
	return observed{src, f}
}

// Run implements source.Source.
func (o observed) Run(ctx context.Context, batches chan<- source.Batch) error {
	in := make(chan source.Batch)
	done := make(chan error, 1)
	go func() {
		defer close(in)
		done <- o.Source.Run(ctx, in)
	}()
	objects, synced := map[source.Ref]source.Object{}, false
	for b := range in {
		for _, c := range b.Changes {
			if c.Object == nil {
				delete(objects, c.Ref)
			} else {
				objects[c.Ref] = c.Object
			}
		}
		if synced = synced || b.Synced; synced {
			all := sorted(objects)
			for _, f := range o.see {
				f(all)
			}
		}
		select {
		case batches <- b:
		case <-ctx.Done():
		}
	}
	return <-done
}

func sorted(objects map[source.Ref]source.Object) []source.Object {
	out := make([]source.Object, 0, len(objects))
	for _, obj := range objects {
		out = append(out, obj)
	}
	slices.SortFunc(out, func(a, b source.Object) int { return source.RefOf(a).Compare(source.RefOf(b)) })
	return out
}
