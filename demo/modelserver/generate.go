package modelserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// api is where chat completions and completions differ.
type api interface {
	// names returns the prefix of ids, the object of a whole answer and of a chunk.
	names() (id, whole, chunk string)
	// whole returns the choice of a whole answer.
	whole(text string) map[string]any
	// chunk returns the choice of one chunk.
	chunk(text string, first bool) map[string]any
}

type chat struct{}

func (chat) names() (id, whole, chunk string) {
	return "chatcmpl-", "chat.completion", "chat.completion.chunk"
}

func (chat) whole(text string) map[string]any {
	return map[string]any{"index": 0, "message": map[string]any{"role": "assistant", "content": text}}
}

func (chat) chunk(text string, first bool) map[string]any {
	delta := map[string]any{"content": text}
	if first {
		delta["role"] = "assistant"
	}
	return map[string]any{"index": 0, "delta": delta}
}

type completion struct{}

func (completion) names() (id, whole, chunk string) {
	return "cmpl-", "text_completion", "text_completion"
}
func (completion) whole(text string) map[string]any { return map[string]any{"index": 0, "text": text} }
func (completion) chunk(text string, _ bool) map[string]any {
	return map[string]any{"index": 0, "text": text}
}

// generate answers a request for tokens, whole or as a stream.
func (s *Server) generate(a api) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req, want, ok := s.read(w, r)
		if !ok {
			return
		}
		leave, err := s.queue.enter(r.Context(), req.Model)
		if err != nil {
			return // the client left while it waited
		}
		defer leave()
		if !want.begin(r.Context(), w.Header()) {
			return
		}
		defer want.end(w.Header())
		if want.status >= http.StatusBadRequest {
			fail(w, want.status, "asked for by "+WantStatus, nil)
			return
		}
		id, whole, chunk := a.names()
		g := generation{Server: s, api: a, req: req, want: want, base: map[string]any{
			"id": fmt.Sprintf("%s%s-%d", id, s.cfg.Pod, s.count.next()), "created": time.Now().Unix(), "model": req.Model}}
		g.tokens, g.reason = s.tokens(req)
		if req.Stream {
			g.base["object"] = chunk
			g.stream(w, r)
			return
		}
		g.base["object"] = whole
		g.whole(w, r)
	}
}

// generation is one answer in the making.
type generation struct {
	*Server
	api    api
	req    request
	want   wants
	base   map[string]any // what the answer and every chunk of it carry
	tokens []string
	reason string
}

func (g *generation) usage() usage {
	p, c := len(g.req.asked()), len(g.tokens)
	return usage{PromptTokens: p, CompletionTokens: c, TotalTokens: p + c}
}

func (g *generation) whole(w http.ResponseWriter, r *http.Request) {
	if !sleep(r.Context(), time.Duration(len(g.tokens)-1)*g.want.tokenDelay) {
		return
	}
	choice := g.api.whole(strings.Join(g.tokens, ""))
	choice["finish_reason"] = g.reason
	g.base["choices"], g.base["usage"] = []any{choice}, g.usage()
	writeJSON(w, max(g.want.status, http.StatusOK), g.base)
	g.count.done(len(g.req.asked()), len(g.tokens))
}

// stream sends one server-sent event a token, then [DONE].
func (g *generation) stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.WriteHeader(max(g.want.status, http.StatusOK))
	out := http.NewResponseController(w)
	for i, token := range g.tokens {
		if i > 0 && !sleep(r.Context(), g.want.tokenDelay) {
			return
		}
		choice := g.api.chunk(token, i == 0)
		choice["finish_reason"] = nil
		if i == len(g.tokens)-1 {
			choice["finish_reason"] = g.reason
		}
		g.base["choices"] = []any{choice}
		if !g.event(w, out) {
			return
		}
	}
	if g.req.StreamOptions.IncludeUsage {
		g.base["choices"], g.base["usage"] = []any{}, g.usage()
		if !g.event(w, out) {
			return
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
	g.count.done(len(g.req.asked()), len(g.tokens))
}

// event sends base as one event, at once; false: the client left.
func (g *generation) event(w http.ResponseWriter, out *http.ResponseController) bool {
	b, err := json.Marshal(g.base)
	if err != nil {
		return false // cannot be: strings and numbers only
	}
	if _, err := fmt.Fprintf(w, "data: %s\n\n", b); err != nil {
		return false
	}
	return out.Flush() == nil
}
