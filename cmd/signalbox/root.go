package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/go-logr/zapr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// newRoot returns the whole command tree.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "signalbox",
		Short: "Points plain Envoy at LLM traffic",
		Long: `Signalbox turns Gateway API objects and InferencePools into Envoy configuration,
serves it over xDS, and runs beside Envoy to read the model from request bodies and
to ask endpoint pickers.

Every flag has an environment twin: --log-level is SIGNALBOX_LOG_LEVEL. A flag wins.
Exit status: 0 ok, 1 failed, 2 wrong usage.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags()) },
		Args:              usageArgs(cobra.NoArgs),
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newRun(), newServe(), newExtproc(), newTranslate(), newBootstrap(), newDemo(), newDrain(), newVersion())
	addCompletion(root)
	return root
}

// addCompletion adds cobra's completion command, whose own way with a shell that it does
// not know is to print help and to succeed.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, err := root.Find([]string{"completion"})
	if err != nil {
		panic(err) // it was added above
	}
	completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	for _, cmd := range append(completion.Commands(), completion) {
		cmd.Args = usageArgs(cobra.NoArgs)
	}
}

// usageArgs makes a mistake in the arguments a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// fromEnvironment sets each flag that was not given from its environment twin. A
// repeatable flag's twin holds its values separated by commas.
func fromEnvironment(flags *pflag.FlagSet) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "SIGNALBOX_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		v, ok := os.LookupEnv(name)
		if !ok || f.Changed || f.Name == "help" || err != nil {
			return
		}
		if e := flags.Set(f.Name, v); e != nil {
			err = usagef("environment variable %s: %w", name, e)
		}
	})
	return err
}

// logFlags are the flags of every long-running command.
type logFlags struct{ level, format string }

func (l *logFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&l.format, "log-format", "text", "text or json, on stderr")
}

// logger returns the logger that the flags ask for; klog, which libraries of
// Kubernetes use, is sent there too.
func (l *logFlags) logger() (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(l.level)
	if err != nil {
		return nil, usagef("--log-level %q: want debug, info, warn or error", l.level)
	}
	cfg := zap.NewProductionConfig()
	switch l.format {
	case "json":
	case "text":
		cfg = zap.NewDevelopmentConfig()
		cfg.Development = false
		cfg.EncoderConfig.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		cfg.DisableCaller = true
		cfg.DisableStacktrace = true
	default:
		return nil, usagef("--log-format %q: want text or json", l.format)
	}
	cfg.Level = zap.NewAtomicLevelAt(level)
	log, err := cfg.Build()
	if err != nil {
		return nil, fmt.Errorf("logger: %w", err)
	}
	klog.SetLogger(zapr.NewLogger(log.Named("klog")))
	return log, nil
}
