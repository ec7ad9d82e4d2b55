package modelserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// request holds the fields of the OpenAI API (and vLLM's ignore_eos) that change the
// shape of the answer.
type request struct {
	Model    string `json:"model"`
	Messages []struct {
		Content json.RawMessage `json:"content"` // a string, or parts
	} `json:"messages"`
	Prompt              json.RawMessage `json:"prompt"`
	Input               json.RawMessage `json:"input"`
	MaxTokens           *int            `json:"max_tokens"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	IgnoreEOS           bool            `json:"ignore_eos"`
	Stream              bool            `json:"stream"`
	StreamOptions       struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
}

// fail answers in the error shape of vLLM's OpenAI server.
func fail(w http.ResponseWriter, status int, message string, param any) {
	kind := "BadRequestError"
	switch {
	case status == http.StatusNotFound:
		kind = "NotFoundError"
	case status >= http.StatusInternalServerError:
		kind = "InternalServerError"
	}
	writeJSON(w, status, map[string]any{"error": map[string]any{"message": message, "type": kind, "param": param, "code": status}})
}

// read parses a request of the API and finds its model. When it reports false, the
// request has been answered.
func (s *Server) read(w http.ResponseWriter, r *http.Request) (req request, want wants, ok bool) {
	body, err := readBody(w, r)
	switch {
	case errors.Is(err, errTooLarge):
		fail(w, http.StatusRequestEntityTooLarge, err.Error(), nil)
		return req, want, false
	case err != nil:
		s.cfg.Logger.Debug("body broke off", zap.String("pod", s.cfg.Pod), zap.Error(err))
		return req, want, false
	}
	if want, err = s.readWants(r.Header); err != nil {
		fail(w, http.StatusBadRequest, err.Error(), nil)
		return req, want, false
	}
	if err := json.Unmarshal(body, &req); err != nil {
		fail(w, http.StatusBadRequest, "the request body is not valid: "+err.Error(), nil)
		return req, want, false
	}
	if req.Model == "" { // vLLM: the base model
		req.Model = s.cfg.Models[0]
	}
	if !slices.Contains(s.cfg.Models, req.Model) {
		fail(w, http.StatusNotFound, fmt.Sprintf("The model `%s` does not exist.", req.Model), "model")
		return req, want, false
	}
	if n := req.limit(); n < 1 {
		fail(w, http.StatusBadRequest, "max_tokens must be at least 1, got "+strconv.Itoa(n)+".", "max_tokens")
		return req, want, false
	}
	return req, want, true
}

// noLimit stands for a request without a limit, and bounds those with one.
const noLimit = 1 << 20

// limit is how many tokens the answer may have.
func (q request) limit() int {
	switch {
	case q.MaxCompletionTokens != nil:
		return min(*q.MaxCompletionTokens, noLimit)
	case q.MaxTokens != nil:
		return min(*q.MaxTokens, noLimit)
	}
	return noLimit
}

// asked returns the words of the prompt: of the last message, the prompt or the input.
func (q request) asked() []string {
	raw := q.Prompt
	if n := len(q.Messages); n > 0 {
		raw = q.Messages[n-1].Content
	} else if len(q.Input) > 0 {
		raw = q.Input
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		text = string(raw) // parts, or a list: its JSON has words, too
	}
	return strings.Fields(text)
}

// tokens makes up the answer: a word a token. It ends by itself ("stop"), or at the
// limit ("length"); with ignore_eos it runs to the limit, as vLLM does.
func (s *Server) tokens(q request) (tokens []string, reason string) {
	text := fmt.Sprintf("This is %s, simulated by pod %s. You asked: ", q.Model, s.cfg.Pod)
	words := append(strings.Fields(text), q.asked()...)
	n := min(len(words), 48)
	if q.IgnoreEOS && q.limit() < noLimit {
		n = q.limit()
	}
	reason = "stop"
	if q.limit() <= n {
		n, reason = q.limit(), "length"
	}
	for i := range n {
		tokens = append(tokens, words[i%len(words)]+" ")
	}
	tokens[n-1] = strings.TrimSuffix(tokens[n-1], " ")
	return tokens, reason
}

// models lists the base model and its adapters, whose parent it is.
func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	type model struct {
		ID      string  `json:"id"`
		Object  string  `json:"object"`
		Created int64   `json:"created"` // Unix seconds
		OwnedBy string  `json:"owned_by"`
		Root    string  `json:"root"`
		Parent  *string `json:"parent"`
	}
	var data []model
	for i, id := range s.cfg.Models {
		m := model{ID: id, Object: "model", Created: s.start.Unix(), OwnedBy: "vllm", Root: id}
		if i > 0 {
			m.Parent = &s.cfg.Models[0]
		}
		data = append(data, m)
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": data})
}

// embeddings answers with one fixed vector.
func (s *Server) embeddings(w http.ResponseWriter, r *http.Request) {
	req, want, ok := s.read(w, r)
	if !ok {
		return
	}
	leave, err := s.queue.enter(r.Context(), req.Model)
	if err != nil {
		return
	}
	defer leave()
	if !want.begin(r.Context(), w.Header()) {
		return
	}
	defer want.end(w.Header())
	n := len(req.asked())
	writeJSON(w, max(want.status, http.StatusOK), map[string]any{
		"object": "list", "model": req.Model,
		"data":  []any{map[string]any{"object": "embedding", "index": 0, "embedding": []float64{0.25, -0.5, 0.75}}},
		"usage": usage{PromptTokens: n, TotalTokens: n},
	})
	s.count.done(n, 0)
}
