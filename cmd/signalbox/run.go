package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"signalbox.dev/standalone"
)

func newRun() *cobra.Command {
	var (
		cfg        = standalone.Config{Stdout: os.Stdout, EnvoyOutput: os.Stderr}
		ports      []string
		log        logFlags
		permission = "Envoy must be allowed to bind the Gateways' ports: use --port 80=8080 where it may not bind 80."
	)
	cmd := &cobra.Command{
		Use:   "run DIR|FILE…",
		Short: "Run everything without Kubernetes: control plane, extractor and one Envoy for each Gateway",
		Long: `Runs everything on a directory of YAML, without Kubernetes: the control plane, the
process beside Envoy, one Envoy for each Gateway and, where the YAML says so
(annotation signalbox.dev/demo), simulated model servers and pickers. The directory
is watched. One line per ready listener is printed on stdout.

` + permission,
		Example: `  signalbox run testdata/guides --port 80=8080`,
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if cfg.Logger, err = log.logger(); err != nil {
				return err
			}
			if cfg.Ports, err = parsePorts(ports); err != nil {
				return err
			}
			if err := errors.Join(checkBind(cfg.Bind), checkListen("admin", cfg.Admin)); err != nil {
				return err
			}
			if cfg.Envoy, err = exec.LookPath(cfg.Envoy); err != nil {
				return usagef("--envoy: %w; install Envoy 1.38 or later, or name it with --envoy PATH", err)
			}
			cfg.Paths, cfg.Registry = args, newRegistry()
			return standalone.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Envoy, "envoy", "envoy", "the Envoy binary: a path, or a name to find on the PATH")
	f.StringVar(&cfg.Bind, "bind", "127.0.0.1", "address of the Gateways' listeners")
	f.StringArrayVar(&ports, "port", nil, "LISTENER=BOUND, such as 80=8080: bind another port than the listener's (repeatable)")
	f.StringVar(&cfg.Admin, "admin", "127.0.0.1:18080", "where to serve health, metrics and /debug, HOST:PORT")
	f.BoolVar(&cfg.PProf, "pprof", false, "serve /debug/pprof on the admin address")
	f.DurationVar(&cfg.DrainTimeout, "drain-timeout", 30*time.Second, "how long requests in flight may take at the end")
	log.add(f)
	return cmd
}

// parsePorts reads LISTENER=BOUND pairs; one string may hold several, separated by
// commas.
func parsePorts(pairs []string) (map[int32]int32, error) {
	out := map[int32]int32{}
	for _, list := range pairs {
		for pair := range strings.SplitSeq(list, ",") {
			from, to, _ := strings.Cut(pair, "=")
			a, err1 := strconv.ParseUint(from, 10, 16)
			b, err2 := strconv.ParseUint(to, 10, 16)
			if err1 != nil || err2 != nil || a == 0 || b == 0 {
				return nil, usagef("--port %q: want LISTENER=BOUND with two ports of 1 to 65535, such as 80=8080", pair)
			}
			out[int32(a)] = int32(b)
		}
	}
	return out, nil
}
