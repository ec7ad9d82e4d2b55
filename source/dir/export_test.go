package dir

import "time"

// Grace sets how long a file that vanished or got shorter must stay so: on a busy
// machine a test's own writes may be cut in two for longer than ten short settle times.
func Grace(d time.Duration) Option { return func(w *watched) { w.grace = d } }
