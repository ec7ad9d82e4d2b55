package modelserver

import (
	"context"
	"slices"
	"sync"
)

// queue lets a fixed number of requests run at once and counts the rest as waiting,
// which is what vLLM's scheduler reports and what endpoint pickers look at.
type queue struct {
	slots chan struct{}

	mu      sync.Mutex
	running map[string]int // by model
	waiting map[string]int
}

func newQueue(size int) *queue {
	return &queue{slots: make(chan struct{}, size), running: map[string]int{}, waiting: map[string]int{}}
}

// enter waits for a slot. The caller calls leave when the request is over; on error
// (ctx ended first) there is nothing to leave.
func (q *queue) enter(ctx context.Context, model string) (leave func(), err error) {
	q.add(q.waiting, model, 1)
	select {
	case q.slots <- struct{}{}:
	case <-ctx.Done():
		q.add(q.waiting, model, -1)
		return nil, context.Cause(ctx)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting[model]--
	q.running[model]++
	return func() {
		q.add(q.running, model, -1)
		<-q.slots
	}, nil
}

func (q *queue) add(m map[string]int, model string, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m[model] += n
}

// snapshot is a queue at one moment. The lists name models with at least one request.
type snapshot struct {
	running, waiting             int
	runningModels, waitingModels []string
}

func (q *queue) snapshot() snapshot {
	q.mu.Lock()
	defer q.mu.Unlock()
	var s snapshot
	s.running, s.runningModels = total(q.running)
	s.waiting, s.waitingModels = total(q.waiting)
	return s
}

func total(m map[string]int) (sum int, models []string) {
	for model, n := range m {
		if n > 0 {
			sum += n
			models = append(models, model)
		}
	}
	slices.Sort(models)
	return sum, models
}
