package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"signalbox.dev/demo/load"
	"signalbox.dev/demo/modelserver"
	"signalbox.dev/demo/picker"
)

func newDemo() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the demo parts alone: a simulated model server, an endpoint picker, a client",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newModelServer(), newPicker(), newLoad())
	return cmd
}

func newModelServer() *cobra.Command {
	var (
		cfg modelserver.Config
		log logFlags
	)
	cmd := &cobra.Command{
		Use:   "model-server",
		Short: "Run a simulated vLLM server: OpenAI's API, vLLM's metrics, no model",
		Example: `  signalbox demo model-server --listen 127.0.0.1:8000 --models meta-llama/Llama-3.1-8B-Instruct,food-review-1
  curl 127.0.0.1:8000/v1/models`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Logger, err = log.logger(); err != nil {
				return err
			}
			if len(cfg.Models) == 0 {
				return usagef("--models is needed: the base model, then its adapters")
			}
			return modelserver.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&cfg.Listen, "listen", []string{"127.0.0.1:8000"}, "where to listen, HOST:PORT; several are data-parallel ranks")
	f.StringVar(&cfg.Pod, "pod", "model-server", "name that every answer carries in x-demo-pod")
	f.StringSliceVar(&cfg.Models, "models", nil, "what it serves: the base model, then its adapters")
	f.IntVar(&cfg.MaxRunning, "max-running", 256, "requests that run at once; more wait")
	f.DurationVar(&cfg.FirstToken, "first-token", 20*time.Millisecond, "time until the first token")
	f.DurationVar(&cfg.PerToken, "per-token", 2*time.Millisecond, "time between two tokens")
	log.add(f)
	return cmd
}

func newPicker() *cobra.Command {
	var (
		cfg       picker.Config
		endpoints []string
		log       logFlags
	)
	cmd := &cobra.Command{
		Use:   "picker",
		Short: "Run a small endpoint picker (EPP): least queue, adapter affinity",
		Long: `Runs an endpoint picker that speaks the Endpoint Picker Protocol: it picks the endpoint
with the shortest queue by the servers' vLLM metrics, prefers one that runs the
adapter, honours subset hints, and names as many endpoints as --max-endpoints.`,
		Example: `  signalbox demo picker --listen 127.0.0.1:9002 --endpoints 127.0.0.1:8000,127.0.0.1:8001`,
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Logger, err = log.logger(); err != nil {
				return err
			}
			switch {
			case len(endpoints) > 0:
				cfg.Endpoints, err = picker.NewEndpoints(endpoints...)
			case cfg.EndpointsFile != "", cfg.EndpointsDNS != "":
				cfg.Endpoints = &picker.Endpoints{} // nothing is known before it is read
			default:
				return usagef("--endpoints, --endpoints-file or --endpoints-dns is needed")
			}
			if err != nil {
				return usagef("--endpoints: %w", err)
			}
			return picker.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:9002", "where to serve ext_proc and gRPC health, HOST:PORT")
	f.StringVar(&cfg.HealthListen, "health-listen", "", "where to serve gRPC health in plaintext, HOST:PORT; empty: nowhere")
	f.StringVar(&cfg.MetricsListen, "metrics-listen", "", "where to serve /metrics, HOST:PORT; empty: nowhere")
	f.StringVar(&cfg.Name, "name", "picker", "what answers carry in x-demo-picker")
	f.StringSliceVar(&endpoints, "endpoints", nil, "endpoints to pick from, IP:PORT")
	f.StringVar(&cfg.EndpointsFile, "endpoints-file", "", "file of endpoints, read again when it changes")
	f.StringVar(&cfg.EndpointsDNS, "endpoints-dns", "", "NAME:PORT whose addresses are the endpoints, such as a headless Service; asked every second")
	f.IntVar(&cfg.MaxEndpoints, "max-endpoints", 1, "how many endpoints a pick names, best first")
	f.IntVar(&cfg.QueueLimit, "queue-limit", 5, "queue at which an endpoint counts as saturated")
	f.StringVar(&cfg.CertDir, "cert-dir", "", "directory with tls.crt and tls.key; empty: a self-signed certificate")
	f.BoolVar(&cfg.Plaintext, "plaintext", false, "serve without TLS")
	log.add(f)
	return cmd
}

func newLoad() *cobra.Command {
	var cfg load.Config
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Send requests at a steady rate and report every answer that was not right",
		Long: `Sends chat completions for the models in turn, every fourth as a stream, and prints a
report as one line of JSON. Half of the workers keep their connections. On SIGTERM it
finishes what is under way and reports. Exit status 1 if a request failed.`,
		Example: `  signalbox demo load --url http://127.0.0.1:8080 --models chatbot,recommender --rate 100 --duration 30s`,
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := load.Run(cmd.Context(), cfg)
			if err != nil {
				return usageError{err}
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(report); err != nil {
				return err
			}
			if report.Failed > 0 {
				return fmt.Errorf("%d of %d requests failed", report.Failed, report.Requests)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.URL, "url", "http://127.0.0.1:8080", "the gateway's")
	f.StringVar(&cfg.Host, "host", "", "Host header (default: the URL's)")
	f.StringSliceVar(&cfg.Models, "models", nil, "models to ask for")
	f.IntVar(&cfg.Rate, "rate", 50, "requests a second")
	f.IntVar(&cfg.Workers, "workers", 16, "requests at a time")
	f.DurationVar(&cfg.Duration, "duration", 0, "how long; 0: until SIGTERM")
	f.DurationVar(&cfg.Timeout, "timeout", time.Minute, "of one request")
	return cmd
}
