// Command propagation measures how long a new HTTPRoute takes to its first answer, on a
// cluster that runs a gateway: any that implements Gateway API.
//
// A round creates a route with a hostname of its own over the raw API, while requests
// for that hostname follow each other on one connection, and looks for the first of 15
// answers in a row with 200; then it deletes the route and looks for 15 times 404. The
// clock runs from before the POST, so that the API server's own share is in it. An
// answer that is neither 200 nor 404 is a fault: a gateway sent a request along a route
// whose backend it did not know yet, or no longer.
//
//	go run ./e2e/propagation --gateway default/inference-gateway --service gemma3-pods:8000 --path /v1/models --others 0,500
//
// Exit status 1 if there was a fault, or if a median is above --max-ratio times the first.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

type config struct {
	kubeconfig, gateway, address, service, path string
	rounds                                      int
	others                                      []int
	maxRatio                                    float64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "propagation:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use: "propagation --gateway NAMESPACE/NAME --service NAME:PORT", Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), cfg) },
	}
	f := cmd.Flags()
	f.StringVar(&cfg.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "how to reach the cluster (default: $KUBECONFIG)")
	f.StringVar(&cfg.gateway, "gateway", "", "namespace/name of the Gateway; routes are made in its namespace")
	f.StringVar(&cfg.address, "address", "", "HOST:PORT of the gateway (default: what the Gateway's status and first listener say)")
	f.StringVar(&cfg.service, "service", "", "NAME:PORT of a Service in that namespace that answers with 200, at once: its time is in every result")
	f.StringVar(&cfg.path, "path", "/", "what to ask it for")
	f.IntVar(&cfg.rounds, "rounds", 20, "rounds with each number of other routes")
	f.IntSliceVar(&cfg.others, "others", []int{0, 500}, "how many other routes there are")
	f.Float64Var(&cfg.maxRatio, "max-ratio", 0, "fail if a median is more than so many times the first; 0: never")
	return cmd
}

func run(ctx context.Context, cfg config) (err error) {
	c, err := connect(ctx, &cfg)
	if err != nil {
		return err
	}
	defer func() { // also when ctx has ended
		if e := c.deleteAll(context.WithoutCancel(ctx)); err == nil {
			err = e
		}
	}()
	var first time.Duration
	faults := 0
	fmt.Printf("%-7s %28s %28s %s\n", "others", "POST to 200, ms", "DELETE to 404, ms", "faults")
	for i, others := range cfg.others {
		if err := c.ensureOthers(ctx, others); err != nil {
			return err
		}
		created, deleted, bad, err := measure(ctx, c, cfg)
		if err != nil {
			return err
		}
		faults += len(bad)
		fmt.Printf("%-7d %28s %28s %d\n", others, created, deleted, len(bad))
		for _, b := range bad {
			fmt.Printf("        %s\n", b)
		}
		if i == 0 {
			first = created.median()
		} else if ratio := float64(created.median()) / float64(first); cfg.maxRatio > 0 && ratio > cfg.maxRatio {
			return fmt.Errorf("the median with %d other routes is %.2f times that with %d; at most %.2f is wanted", others, ratio, cfg.others[0], cfg.maxRatio)
		}
	}
	if faults > 0 {
		return fmt.Errorf("%d answers were neither 200 nor 404", faults)
	}
	return nil
}

// times are those of the rounds.
type times []time.Duration

func (t times) median() time.Duration {
	t = slices.Sorted(slices.Values(t))
	return t[len(t)/2]
}

func (t times) String() string {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.1f (%.1f – %.1f)", ms(t.median()), ms(slices.Min(t)), ms(slices.Max(t)))
}

// measure runs the rounds. bad tells of each answer that was neither 200 nor 404.
func measure(ctx context.Context, c *cluster, cfg config) (created, deleted times, bad []string, err error) {
	for round := range cfg.rounds {
		if err := c.settle(ctx); err != nil {
			return nil, nil, nil, err
		}
		name := fmt.Sprintf("propagation-round-%d", round)
		p := newProber("http://"+cfg.address+cfg.path, name+hostSuffix)
		took := func(status int, what string, change func() error) (time.Duration, error) {
			start := time.Now()
			if err := change(); err != nil {
				return 0, err
			}
			at, err := p.await(ctx, status)
			if err != nil {
				return 0, fmt.Errorf("round %d, %s: %w", round, what, err)
			}
			for _, f := range p.takeFaults() {
				bad = append(bad, fmt.Sprintf("round %d, %s: %s", round, what, f))
			}
			return at.Sub(start), nil
		}
		up, err := took(200, "create", func() error { return c.create(ctx, name) })
		if err == nil {
			created = append(created, up)
			var down time.Duration
			down, err = took(404, "delete", func() error { return c.delete(ctx, name) })
			deleted = append(deleted, down)
		}
		p.stop()
		if err != nil {
			return nil, nil, nil, err
		}
	}
	return created, deleted, bad, nil
}
