package main

import (
	"time"

	"github.com/spf13/cobra"

	"signalbox.dev/provision/drain"
)

// newDrain is what the kubelet runs when a pod of an Envoy ends.
func newDrain() *cobra.Command {
	var (
		o   drain.Options
		log logFlags
	)
	cmd := &cobra.Command{
		Use:    "drain",
		Short:  "Let an Envoy's requests end, before it does",
		Hidden: true,
		Args:   usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Logger, err = log.logger(); err != nil {
				return err
			}
			return drain.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Admin, "envoy-admin", "127.0.0.1:19000", "Envoy's admin interface, HOST:PORT or unix:PATH")
	f.DurationVar(&o.Timeout, "timeout", 5*time.Minute, "how long all of it may take")
	f.StringVar(&o.Done, "done", "", "a file to make at the end")
	log.add(f)
	return cmd
}
