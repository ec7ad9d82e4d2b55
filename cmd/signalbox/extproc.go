package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"signalbox.dev/extproc"
	"signalbox.dev/provision/drain"
)

func newExtproc() *cobra.Command {
	var (
		cfg     extproc.Config
		metrics string
		drained string
		log     logFlags
	)
	cmd := &cobra.Command{
		Use:   "extproc",
		Short: "Run what stands beside an Envoy: model extractor and picker hookup",
		Long: `Runs the process beside an Envoy: the extractor, which copies the model of a request's
body into a header, and the hookup to the pools' endpoint pickers. Envoy's side of it
comes from the control plane. It serves gRPC health checks on the same address.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Logger, err = log.logger(); err != nil {
				return err
			}
			if err := checkListen("listen", cfg.Listen); err != nil {
				return err
			}
			if metrics != "" {
				if err := checkListen("metrics", metrics); err != nil {
					return err
				}
			}
			registry := newRegistry()
			cfg.Registerer = registry
			more := map[string]http.HandlerFunc{"GET /readyz": reachable(cfg.Listen)}
			if drained != "" {
				_ = os.Remove(drained) // of a process that was here before
				more["GET /drained"] = drain.Handler(drained)
			}
			return serveMetrics(cmd.Context(), metrics, registry, more, cfg.Logger, func() error { return extproc.Run(cmd.Context(), cfg) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:9004", "where Envoy connects, HOST:PORT on loopback or unix:PATH")
	f.StringVar(&metrics, "metrics", "127.0.0.1:9005", "where to serve /metrics, HOST:PORT; empty: nowhere")
	f.StringVar(&drained, "drained", "", "the file that 'signalbox drain' makes: GET /drained answers once it is there")
	_ = f.MarkHidden("drained")
	log.add(f)
	return cmd
}

// reachable answers whether somebody listens on an address.
func reachable(address string) http.HandlerFunc {
	network := "tcp"
	if path, unix := strings.CutPrefix(address, "unix:"); unix {
		network, address = "unix", path
	}
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := new(net.Dialer).DialContext(r.Context(), network, address)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		c.Close()
		fmt.Fprintln(w, "ok")
	}
}
