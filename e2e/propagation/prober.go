package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	inARow   = 15               // answers of one status that count as settled
	patience = 30 * time.Second // for a change to show
)

// prober asks for one hostname, one request after the other, until it is stopped.
type prober struct {
	stop func()

	mu     sync.Mutex
	faults []string
	status int       // of the newest answer
	since  time.Time // when the first of the present row of that status came
	row    int
	news   chan struct{} // closed by the next answer
}

func newProber(url, host string) *prober {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	p := &prober{news: make(chan struct{})}
	p.stop = func() { cancel(); <-done }
	go func() {
		defer close(done)
		p.run(ctx, url, host)
	}()
	return p
}

func (p *prober) run(ctx context.Context, url, host string) {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	for ctx.Err() == nil {
		status, fault := ask(ctx, client, url, host)
		if ctx.Err() == nil {
			p.note(status, fault)
		}
	}
}

func ask(ctx context.Context, client *http.Client, url, host string) (status int, fault string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err.Error()
	}
	request.Host = host
	response, err := client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return 0, err.Error()
	case response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNotFound:
		return response.StatusCode, fmt.Sprintf("%d %.100s", response.StatusCode, body)
	}
	return response.StatusCode, ""
}

func (p *prober) note(status int, fault string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fault != "" {
		p.faults = append(p.faults, fault)
	}
	if status != p.status {
		p.status, p.since, p.row = status, time.Now(), 0
	}
	p.row++
	close(p.news)
	p.news = make(chan struct{})
}

// await waits for a row of answers with the status, and returns when its first came.
func (p *prober) await(ctx context.Context, status int) (time.Time, error) {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		p.mu.Lock()
		now, row, since, news := p.status, p.row, p.since, p.news
		p.mu.Unlock()
		if now == status && row >= inARow {
			return since, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-deadline.C:
			return time.Time{}, fmt.Errorf("no %d answers in a row with %d after %s; the last was %d", inARow, status, patience, now)
		case <-news:
		}
	}
}

func (p *prober) takeFaults() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.faults
	p.faults = nil
	return f
}
