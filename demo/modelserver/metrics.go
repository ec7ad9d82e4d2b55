package modelserver

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// counters only grow.
type counters struct{ ids, success, promptTokens, generationTokens atomic.Int64 }

func (c *counters) next() int64 { return c.ids.Add(1) }

// done counts a request that was answered to its end.
func (c *counters) done(prompt, generated int) {
	c.success.Add(1)
	c.promptTokens.Add(int64(prompt))
	c.generationTokens.Add(int64(generated))
}

// metrics answers in Prometheus' text format with vLLM's names and labels. The cache
// has two: vLLM renamed gpu_cache_usage_perc to kv_cache_usage_perc in 0.10, and
// pickers of either age read this server.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	q := s.queue.snapshot()
	cache := float64(q.running) / float64(s.cfg.MaxRunning)
	var b strings.Builder
	engine := fmt.Sprintf("engine=\"0\",model_name=%q", s.cfg.Models[0])
	write := func(name, kind, labels string, value any) {
		fmt.Fprintf(&b, "# TYPE vllm:%s %s\nvllm:%s{%s} %v\n", name, kind, name, labels, value)
	}
	write("num_requests_running", "gauge", engine, q.running)
	write("num_requests_waiting", "gauge", engine, q.waiting)
	write("kv_cache_usage_perc", "gauge", engine, cache)
	write("gpu_cache_usage_perc", "gauge", engine, cache)
	write("cache_config_info", "gauge", `block_size="16",num_gpu_blocks="1024",engine="0"`, 1)
	// vLLM's value is the time of the last change; readers take the newest series.
	write("lora_requests_info", "gauge", fmt.Sprintf("max_lora=\"%d\",running_lora_adapters=%q,waiting_lora_adapters=%q",
		s.cfg.MaxLoRA, s.adapters(q.runningModels), s.adapters(q.waitingModels)), float64(time.Now().UnixMilli())/1000)
	write("prompt_tokens_total", "counter", engine, s.count.promptTokens.Load())
	write("generation_tokens_total", "counter", engine, s.count.generationTokens.Load())
	write("request_success_total", "counter", engine+`,finished_reason="stop"`, s.count.success.Load())
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	fmt.Fprint(w, b.String())
}

// adapters joins those of models that are adapters.
func (s *Server) adapters(models []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(models), func(m string) bool { return m == s.cfg.Models[0] }), ",")
}
