package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
)

var precedenceSeed = flag.Uint64("precedence.seed", 0, "seed of TestPrecedence; 0: any")

const (
	precedenceWorlds   = 24  // at least, and as many more as it takes until everything in specOrder has decided
	precedenceRequests = 120 // of each world
)

// TestPrecedence: for random HTTPRoutes and random requests the rule that answers on the
// real Envoy is the one that the text of Gateway API names. What reads that text
// (precedence_spec_test.go) shares nothing with the translator.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	seed := *precedenceSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("again with: -precedence.seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	p := startPod(t, "pod")
	world := drawSpecWorld(r, 0)
	b := startBox(t, map[string]string{"world.yaml": world.yaml(p)}, boxOptions{Ready: len(world.listeners)})
	sent, answered, decided := 0, 0, map[string]int{}
	undecided := func() string {
		for _, by := range specOrder {
			if decided[by] < 3 {
				return by
			}
		}
		return ""
	}
	for i := 0; i < precedenceWorlds || i < 5*precedenceWorlds && undecided() != ""; i++ {
		if i > 0 {
			world = drawSpecWorld(r, i)
			b.Write("world.yaml", world.yaml(p))
		}
		waitFor(t, fmt.Sprintf("the Envoy serves world %d", i), func() bool { return b.servesVersion(i) })
		requests := make([]specRequest, precedenceRequests)
		for j := range requests {
			requests[j] = drawSpecRequest(r)
		}
		for j, got := range b.askAll(requests) {
			want, by := world.read(requests[j])
			decided[by]++
			if sent++; want != "" {
				answered++
			}
			if problem := requests[j].problem(got, want); problem != "" {
				t.Errorf("world %d, request %d: %+v\n%s", i, j, requests[j], problem)
			}
		}
		if t.Failed() {
			t.Fatalf("with these objects:\n%s", world.yaml(p))
		}
	}
	t.Logf("%d requests, %d of them belong to a rule, decided by %v", sent, answered, decided)
	if by := undecided(); by != "" {
		t.Errorf("hardly a request was decided by %s", by)
	}
}

// servesVersion says whether the Envoy's workers, as far as new connections find them, use
// a version of the world.
func (b *box) servesVersion(version int) bool {
	for range 16 {
		req, err := http.NewRequest(http.MethodGet, b.URL, nil)
		if err != nil {
			b.t.Fatal(err)
		}
		req.Close, req.Host = true, specProbe
		if a := do(sharedClient, req); a.Header.Get("X-Version") != fmt.Sprint(version) {
			return false
		}
	}
	return true
}

// askAll sends requests, several at a time.
func (b *box) askAll(requests []specRequest) []answer {
	out := make([]answer, len(requests))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, rq := range requests {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i] = rq.send(b.URL)
		})
	}
	wg.Wait()
	return out
}

// specRequest is what a rule may look at of a request.
type specRequest struct {
	host, method, path, query string // query: value of q
	x, y                      string // headers; "": not sent
	body                      bool   // JSON
	model                     string // in the body
}

func (rq specRequest) send(url string) answer {
	url += rq.path
	if rq.query != "" {
		url += "?p=1&q=" + rq.query
	}
	body := ""
	switch {
	case rq.body && rq.model != "":
		body = fmt.Sprintf(`{"messages":[{"model":"nested"}],"model":%q}`, rq.model)
	case rq.body:
		body = `{"messages":[]}`
	}
	req, err := http.NewRequest(rq.method, url, strings.NewReader(body))
	if err != nil {
		return answer{Err: err}
	}
	req.Host = rq.host
	req.Header.Set("Content-Type", "application/json")
	for name, value := range map[string]string{"X": rq.x, "Y": rq.y} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	return do(sharedClient, req)
}

// problem says what is wrong with an answer; "" if nothing is. What belongs to no rule is
// not found, or, of a body without a model on a host that looks at models, not accepted.
func (rq specRequest) problem(got answer, want string) string {
	rule := got.Header.Get("X-Rule")
	switch {
	case got.Err != nil:
		return got.Err.Error()
	case rule != want:
		return fmt.Sprintf("answered %d by rule %q; want rule %q", got.Status, rule, want)
	case want != "" && got.Status != 200:
		return fmt.Sprintf("answered %d; want 200", got.Status)
	case want == "" && got.Status != 404 && (got.Status != 400 || rq.method == http.MethodGet || rq.model != ""):
		return fmt.Sprintf("answered %d; want 404: it belongs to no rule", got.Status)
	}
	return ""
}

func drawSpecRequest(r *rand.Rand) specRequest {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	rq := specRequest{
		host: pick("a.example.com", "b.example.com", "x.a.example.com", "y.x.a.example.com", "c.example.com", "example.com", "other.org", "A.Example.com") + pick("", "", "", ":8080"),
		path: pick("/", "/v1", "/v1/", "/v1/chat", "/v1/chat/", "/v1/chat/more", "/v1chat", "/v2/models", "/V1"),
		x:    pick("", "1", "2", "12"), y: pick("", "1"), query: pick("", "1", "1", "2", "12"),
		method: pick("GET", "POST", "POST", "POST", "PUT"),
	}
	if rq.method != "GET" {
		rq.body = r.IntN(8) > 0
	}
	if rq.body {
		rq.model = pick("", "base", "lora-1", "lora-1", "lora-2", "other", "nobody-s")
	}
	return rq
}
