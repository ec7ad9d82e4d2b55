package kube

import "time"

// pace is how fast one object may be written: a Gateway that a thousand routes attach to
// is written a few times, not a thousand. The first write is at once.
type pace struct {
	next time.Time     // not before
	gap  time.Duration // doubles while writes keep coming
}

const (
	firstGap = 100 * time.Millisecond
	maxGap   = 3 * time.Second
)

// after returns the pace after a write.
func (p pace) after(now time.Time) pace {
	if p.gap = min(2*p.gap, maxGap); p.gap == 0 || now.Sub(p.next) > maxGap {
		p.gap = firstGap
	}
	p.next = now.Add(p.gap)
	return p
}
