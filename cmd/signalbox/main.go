// Command signalbox points plain Envoy at LLM traffic: it turns Gateway API objects
// and InferencePools into Envoy configuration and serves it over xDS, and it runs
// beside Envoy to copy the model of a request's body into a header and to ask the
// pool's endpoint picker. One file a subcommand; each only turns flags into a config.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes, documented in docs/configuration.md.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() { os.Exit(run()) }

// run returns the exit status.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "signalbox:", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(os.Stderr, "Run 'signalbox --help' for usage.")
		return exitUsage
	}
	return exitFailed
}
