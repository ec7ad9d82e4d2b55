// Package load is a client of the demo: it sends OpenAI requests for several models at a
// steady rate and says of every answer that was not as it should be. It stands in for
// users while parts of a gateway are stopped and replaced, from a pod of the cluster or
// from any machine.
//
// An answer is right if it is a 200, names the model that was asked for, and is whole:
// of its length, or a stream that ends with [DONE].
package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config is one load.
type Config struct {
	URL      string        // of the gateway, such as http://10.0.0.1
	Host     string        // the Host header; empty: the URL's
	Models   []string      // asked for in turn
	Rate     int           // requests a second, all workers together
	Workers  int           // requests at a time; every second worker dials anew for each request
	Duration time.Duration // 0: until the context ends
	Timeout  time.Duration // of one request
}

// Report is what came of a load.
type Report struct {
	Requests int       `json:"requests"`
	Failed   int       `json:"failed"`
	Failures []Failure `json:"failures,omitempty"` // the first few
	// Milliseconds until the whole answer was read.
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
	// Pods says how many requests each model server answered, by x-demo-pod.
	Pods map[string]int `json:"pods"`
}

// Failure is one answer that was not right.
type Failure struct {
	At    time.Time `json:"at"`
	Model string    `json:"model"`
	What  string    `json:"what"`
}

const mostFailures = 20 // that a report tells of one by one

// Run sends until the duration is over or ctx ends; requests that are under way then
// are waited for. An error says that the load cannot be made at all.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if len(cfg.Models) == 0 || cfg.Rate <= 0 || cfg.Workers <= 0 {
		return Report{}, errors.New("load: models, rate and workers are needed")
	}
	if cfg.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.Duration)
		defer cancel()
	}
	r := &recorder{report: Report{Pods: map[string]int{}}}
	var workers errgroup.Group
	for i := range cfg.Workers {
		workers.Go(func() error { return work(ctx, cfg, i, r) })
	}
	err := workers.Wait()
	return r.result(), err
}

// work is one worker: a request, then a rest, so that all of them keep the rate.
func work(ctx context.Context, cfg Config, number int, r *recorder) error {
	transport := &http.Transport{DisableKeepAlives: number%2 == 1}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: cfg.Timeout}
	interval := time.Duration(cfg.Workers) * time.Second / time.Duration(cfg.Rate)
	start := time.NewTimer(interval * time.Duration(number) / time.Duration(cfg.Workers))
	defer start.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-start.C:
	}
	tick := time.NewTicker(max(interval, time.Millisecond))
	defer tick.Stop()
	for n := number; ; n++ {
		// A request that began is seen through: its end says whether it failed.
		q, err := newRequest(context.WithoutCancel(ctx), cfg, n)
		if err != nil {
			return err
		}
		r.record(q.send(client))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// request is one request and what its answer must be.
type request struct {
	http   *http.Request
	model  string
	stream bool
}

// newRequest returns the n-th: the models take turns, and every fourth is a stream.
func newRequest(ctx context.Context, cfg Config, n int) (request, error) {
	q := request{model: cfg.Models[n%len(cfg.Models)], stream: n/len(cfg.Models)%4 == 3}
	body, err := json.Marshal(map[string]any{"model": q.model, "stream": q.stream, "max_tokens": 5,
		"messages": []map[string]string{{"role": "user", "content": "What is the color of the sky?"}}})
	if err != nil {
		return q, fmt.Errorf("load: %w", err)
	}
	q.http, err = http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(cfg.URL, "/")+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return q, fmt.Errorf("load: %w", err)
	}
	q.http.Header.Set("Content-Type", "application/json")
	if cfg.Host != "" {
		q.http.Host = cfg.Host
	}
	return q, nil
}

// answer is what came back; what is empty if it was right.
type answer struct {
	model, pod, what string
	at               time.Time
	took             time.Duration
}

func (q request) send(client *http.Client) answer {
	a := answer{model: q.model, at: time.Now()}
	response, err := client.Do(q.http)
	if err != nil {
		a.what = err.Error()
		return a
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	a.took, a.pod = time.Since(a.at), response.Header.Get("x-demo-pod")
	switch {
	case response.StatusCode != http.StatusOK:
		a.what = fmt.Sprintf("%d %.200s", response.StatusCode, body)
	case err != nil:
		a.what = fmt.Sprintf("torn after %d bytes: %v", len(body), err)
	case q.stream && !strings.HasSuffix(strings.TrimSpace(string(body)), "[DONE]"):
		a.what = fmt.Sprintf("a stream without its end: %.200s", body)
	case !q.stream:
		var said struct {
			Model string `json:"model"`
		}
		if err := json.Unmarshal(body, &said); err != nil || said.Model != q.model {
			a.what = fmt.Sprintf("an answer of model %q: %.200s", said.Model, body)
		}
	}
	return a
}

// recorder gathers answers.
type recorder struct {
	mu     sync.Mutex
	report Report
	took   []time.Duration
}

func (r *recorder) record(a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Requests++
	if a.what == "" {
		r.took = append(r.took, a.took)
		r.report.Pods[a.pod]++
		return
	}
	r.report.Failed++
	if len(r.report.Failures) < mostFailures {
		r.report.Failures = append(r.report.Failures, Failure{At: a.at, Model: a.model, What: a.what})
	}
}

func (r *recorder) result() Report {
	slices.Sort(r.took)
	at := func(part float64) float64 {
		if len(r.took) == 0 {
			return 0
		}
		return float64(r.took[int(part*float64(len(r.took)-1))].Microseconds()) / 1000
	}
	r.report.P50, r.report.P99, r.report.Max = at(0.5), at(0.99), at(1)
	return r.report
}
