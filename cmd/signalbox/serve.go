package main

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"signalbox.dev/controlplane"
	"signalbox.dev/source"
	"signalbox.dev/source/dir"
	"signalbox.dev/status"
	"signalbox.dev/translator"
)

func newServe() *cobra.Command {
	var (
		sources    []string
		cfg        controlplane.ServeConfig
		translated translationFlags
		kube       kubeFlags
		log        logFlags
	)
	cmd := &cobra.Command{
		Use:   "serve --source dir:PATH|kube",
		Short: "Run the control plane alone: Envoys connect over xDS",
		Long: `Runs the control plane alone, on directories of YAML or on a Kubernetes cluster. Envoys
connect with what 'signalbox bootstrap' prints.`,
		Example: `  signalbox serve --source dir:routes/ --xds 127.0.0.1:18000
  signalbox serve --source kube`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Logger, err = log.logger(); err != nil {
				return err
			}
			if cfg.Translation, err = translated.options(); err != nil {
				return err
			}
			if err := errors.Join(checkListen("xds", cfg.XDS), checkListen("admin", cfg.Admin)); err != nil {
				return err
			}
			cfg.Registry = newRegistry()
			cfg.Book = status.NewBook(cfg.Logger.Named("status"), time.Now)
			if slices.Equal(sources, []string{"kube"}) {
				return kube.serve(cmd.Context(), cfg)
			}
			var paths []string
			for _, s := range sources {
				path, ok := strings.CutPrefix(s, "dir:")
				if !ok || path == "" {
					return usagef("--source %q: want dir:PATH (repeatable), or kube alone", s)
				}
				paths = append(paths, path)
			}
			if len(paths) == 0 {
				return usagef("--source is needed, such as --source dir:routes/")
			}
			cfg.Sources = []source.Source{dir.New(paths, cfg.Logger.Named("source"))}
			cfg.Status = cfg.Book
			return controlplane.Serve(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&sources, "source", nil, "where objects come from: dir:PATH (repeatable), or kube")
	f.StringVar(&cfg.XDS, "xds", "127.0.0.1:18000", "where to serve xDS, HOST:PORT or unix:PATH; plaintext, so keep it on loopback or a socket")
	f.StringVar(&cfg.Admin, "admin", "127.0.0.1:18080", "where to serve health, metrics and /debug, HOST:PORT")
	f.BoolVar(&cfg.PProf, "pprof", false, "serve /debug/pprof on the admin address")
	translated.add(f)
	f.StringVar(&translated.extproc, "extproc", "127.0.0.1:9004", "where Envoys find 'signalbox extproc', IP:PORT or unix:PATH")
	kube.add(f)
	log.add(f)
	return cmd
}

// translationFlags are the flags that translation depends on.
type translationFlags struct {
	bind, extproc string
	ports         []string
}

func (t *translationFlags) add(f *pflag.FlagSet) {
	f.StringVar(&t.bind, "bind", "0.0.0.0", "address of the Gateways' listeners")
	f.StringArrayVar(&t.ports, "port", nil, "LISTENER=BOUND, such as 80=8080: bind another port than the listener's (repeatable)")
}

func (t *translationFlags) options() (translator.Options, error) {
	ports, err := parsePorts(t.ports)
	if err != nil {
		return translator.Options{}, err
	}
	if err := checkBind(t.bind); err != nil {
		return translator.Options{}, err
	}
	if err := translator.CheckExtProc(t.extproc); err != nil {
		return translator.Options{}, usagef("--extproc: %w", err)
	}
	return translator.Options{ExtProc: t.extproc, BindAddress: t.bind, Ports: ports}, nil
}

// newRegistry returns a registry with the process's own metrics.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "signalbox_build_info", Help: "1; the version is a label."}, []string{"version"})
	info.WithLabelValues(buildVersion()).Set(1)
	r.MustRegister(info)
	return r
}
