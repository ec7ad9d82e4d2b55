package main

import (
	"os"

	"github.com/spf13/cobra"

	"signalbox.dev/bootstrap"
)

func newBootstrap() *cobra.Command {
	var o bootstrap.Options
	cmd := &cobra.Command{
		Use:   "bootstrap --gateway NAMESPACE/NAME",
		Short: "Print the bootstrap with which a bare Envoy connects",
		Long: `Prints a bootstrap with which an Envoy of your own connects to 'signalbox serve' and
gets its Gateway's configuration. It must run on a machine where 'signalbox extproc'
runs beside it.`,
		Example: `  signalbox bootstrap --gateway default/inference-gateway > envoy.yaml
  envoy -c envoy.yaml --drain-time-s 600`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.ID == "" {
				host, err := os.Hostname()
				if err != nil {
					return usagef("--id is needed: this machine has no host name: %w", err)
				}
				o.ID = host
			}
			b, err := bootstrap.Render(o)
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	cmd.Flags().StringVar(&o.Group, "gateway", "", "namespace/name of the Gateway that the Envoy serves")
	cmd.Flags().StringVar(&o.XDS, "xds", "127.0.0.1:18000", "where the control plane serves xDS, IP:PORT or unix:PATH")
	cmd.Flags().StringVar(&o.ID, "id", "", "node id, unique among the Gateway's Envoys (default: the host name)")
	cmd.Flags().StringVar(&o.Admin, "envoy-admin", "127.0.0.1:19000", "where Envoy's own admin interface listens, IP:PORT or unix:PATH")
	cmd.Flags().BoolVar(&o.StateOfTheWorld, "state-of-the-world", false, "use the state-of-the-world variant of xDS instead of delta")
	return cmd
}
