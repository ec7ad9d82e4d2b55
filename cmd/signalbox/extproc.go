package main

import (
	"github.com/spf13/cobra"

	"signalbox.dev/extproc"
)

func newExtproc() *cobra.Command {
	var (
		cfg     extproc.Config
		metrics string
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
			return serveMetrics(cmd.Context(), metrics, registry, cfg.Logger, func() error { return extproc.Run(cmd.Context(), cfg) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:9004", "where Envoy connects, HOST:PORT on loopback or unix:PATH")
	f.StringVar(&metrics, "metrics", "127.0.0.1:9005", "where to serve /metrics, HOST:PORT; empty: nowhere")
	log.add(f)
	return cmd
}
