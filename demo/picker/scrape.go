package picker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// scrapeTimeout bounds one read of an endpoint's metrics, so that a pod that hangs
// delays the news of the others by that much at most.
const scrapeTimeout = 500 * time.Millisecond

// scrape reads the metrics of all endpoints at once, again and again until ctx ends.
// The picker is ready after the first round.
func (p *Picker) scrape(ctx context.Context) {
	transport := &http.Transport{DisableCompression: true} // no proxy: endpoints are pods
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: scrapeTimeout}
	tick := time.NewTicker(p.cfg.ScrapeInterval)
	defer tick.Stop()
	down := map[string]bool{}
	for {
		if endpoints, known := p.cfg.Endpoints.get(); known {
			loads := scrapeAll(ctx, client, endpoints)
			if ctx.Err() != nil {
				return
			}
			p.fleet.observe(loads)
			p.logDown(down, loads)
			p.setHealth(healthpb.HealthCheckResponse_SERVING)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.cfg.Endpoints.changed():
		case <-tick.C:
		}
	}
}

// logDown logs an endpoint once when it stops and once when it starts to answer.
func (p *Picker) logDown(down map[string]bool, loads map[string]load) {
	for e, l := range loads {
		if l.down != down[e] {
			p.cfg.Logger.Info("metrics of an endpoint", zap.String("picker", p.cfg.Name), zap.String("endpoint", e), zap.Bool("readable", !l.down))
		}
		down[e] = l.down
	}
	maps.DeleteFunc(down, func(e string, _ bool) bool { _, ok := loads[e]; return !ok })
}

func scrapeAll(ctx context.Context, client *http.Client, endpoints []string) map[string]load {
	loads := make([]load, len(endpoints))
	var wg sync.WaitGroup
	for i, e := range endpoints {
		wg.Go(func() { loads[i] = scrapeOne(ctx, client, e) })
	}
	wg.Wait()
	out := make(map[string]load, len(endpoints))
	for i, e := range endpoints {
		out[e] = loads[i]
	}
	return out
}

func scrapeOne(ctx context.Context, client *http.Client, endpoint string) load {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+endpoint+"/metrics", nil)
	if err != nil {
		return load{down: true}
	}
	resp, err := client.Do(req)
	if err != nil {
		return load{down: true}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return load{} // alive, but not vLLM: any queue is as good as another
	}
	l, err := parseMetrics(io.LimitReader(resp.Body, 4<<20))
	return load{down: err != nil, running: l.running, waiting: l.waiting, base: l.base, adapters: l.adapters}
}

// parseMetrics reads vLLM's metrics from Prometheus' text format. Of several series of
// vllm:lora_requests_info the one with the greatest value counts: the value is the time
// of the change, and vLLM leaves old series behind.
func parseMetrics(r io.Reader) (load, error) {
	var l load
	newest := -1.0
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, labels, value, ok := parseSample(lines.Text())
		if !ok {
			continue
		}
		switch name {
		case "vllm:num_requests_running":
			l.running += int(value)
			l.base = labels["model_name"]
		case "vllm:num_requests_waiting":
			l.waiting += int(value)
		case "vllm:lora_requests_info":
			if value <= newest {
				continue
			}
			newest, l.adapters = value, map[string]bool{}
			for _, a := range append(split(labels["running_lora_adapters"]), split(labels["waiting_lora_adapters"])...) {
				l.adapters[a] = true
			}
		}
	}
	if err := lines.Err(); err != nil {
		return l, fmt.Errorf("metrics: %w", err)
	}
	return l, nil
}

// parseSample reads one line: name{label="value",…} value. ok is false for comments and
// for what is none of vLLM's samples.
func parseSample(line string) (name string, labels map[string]string, value float64, ok bool) {
	if !strings.HasPrefix(line, "vllm:") {
		return "", nil, 0, false
	}
	end := strings.IndexAny(line, "{ ")
	if end < 0 {
		return "", nil, 0, false
	}
	name, rest, labels := line[:end], line[end:], map[string]string{}
	if rest, ok = strings.CutPrefix(rest, "{"); ok {
		for !strings.HasPrefix(rest, "}") {
			key, after, found := strings.Cut(rest, "=")
			quoted, err := strconv.QuotedPrefix(after)
			if !found || err != nil {
				return "", nil, 0, false
			}
			text, err := strconv.Unquote(quoted)
			if err != nil {
				return "", nil, 0, false
			}
			labels[strings.TrimSpace(key)] = text
			rest = strings.TrimLeft(after[len(quoted):], ", ")
		}
		rest = rest[1:]
	}
	fields := strings.Fields(rest) // the value, perhaps a time
	if len(fields) == 0 {
		return "", nil, 0, false
	}
	value, err := strconv.ParseFloat(fields[0], 64)
	return name, labels, value, err == nil
}
