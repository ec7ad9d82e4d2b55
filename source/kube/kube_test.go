//go:build cluster

package kube_test

import (
	"testing"

	"go.uber.org/zap"

	"signalbox.dev/source"
	"signalbox.dev/source/kube"
	"signalbox.dev/source/kube/kubetest"
	"signalbox.dev/source/sourcetest"
)

func TestSource(t *testing.T) {
	server := kubetest.Start(t)
	sourcetest.Run(t, func(t *testing.T) (source.Source, sourcetest.World) {
		server.Clear(t)
		return kube.New(kube.Options{Config: server.Config, Logger: zap.NewNop()}), world{server}
	})
}

// world is a server as sourcetest wants it.
type world struct{ server *kubetest.Server }

func (w world) Put(t *testing.T, manifest string)      { w.server.Put(t, manifest) }
func (w world) Delete(t *testing.T, object source.Ref) { w.server.Delete(t, object) }
