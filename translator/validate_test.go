package translator

import (
	"regexp/syntax"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// TestRegex holds expressions that Envoy 1.40 was seen to take and to refuse.
func TestRegex(t *testing.T) {
	for expr, refusal := range map[string]string{
		"/v1/(chat/)?completions":          "",
		"(meta|mistral)-.*":                "",
		"é+":                               "",
		`\x{ff}`:                           "",
		`\x{000041}`:                       "",
		strings.Repeat("a", 90):            "",
		strings.Repeat("a", 100):           "too large",
		"[a-z]{1,1000}":                    "too large",
		"[a-z]{1,1001}":                    "invalid repeat count",
		"/[":                               "missing closing ]",
		"(?=x)":                            "invalid or unsupported Perl syntax",
		`[\x{10000}-\x{10ffff}]`:           "beyond a byte",
		`\x{100}`:                          "beyond a byte",
		"[^/]+/" + strings.Repeat(".", 50): "too large",
	} {
		err := checkRegex(expr)
		if refusal == "" && err != nil || refusal != "" && (err == nil || !strings.Contains(err.Error(), refusal)) {
			t.Errorf("%q: %v, want %q", expr, err, refusal)
		}
	}
}

// TestProgramSize: the estimate is not below what Envoy 1.40 says (its log of
// re2.max_program_size.warn_level), nor far above.
func TestProgramSize(t *testing.T) {
	for expr, measured := range map[string]int{
		"/a": 6, "/abcdef": 11, "/v1/.*": 10, "/v1/.+": 11, ".": 6, "..": 8, "(?s).": 5, "[^/]+": 7, "/v1/(chat/)?completions": 27,
		"[a-z]": 5, "[a-z]{1,5}": 13, "[a-z0-9_-]+": 9, `\w+`: 8, `\S+`: 9, "(?i)/v1/models": 14, "abc|abd|xyz": 10, "(abc)*": 9,
		`\bfoo\b`: 9, "é": 6, "[à-ü]": 5, `\pL+`: 12, "a{3}": 7, "a{0,5}": 14, "(a|b){3}": 13, "x??": 6, "llama-3.*": 13,
		"(meta|mistral)-.*": 19, ".*foo.*": 11, "a||b": 7, "(?:(a|b|)*)*": 9,
	} {
		re, err := syntax.Parse(latin1(expr), syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		prog, err := syntax.Compile(re.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if got := programSize(prog); got < measured || got > measured*2 {
			t.Errorf("%q: estimated %d, Envoy says %d", expr, got, measured)
		}
	}
}

func TestWeightsThatEnvoyCannotSum(t *testing.T) {
	if err := checkWeights([]ruleBackend{{Weight: 1 << 31}, {Weight: 1<<31 - 1}}); err != nil {
		t.Error(err)
	}
	if err := checkWeights([]ruleBackend{{Weight: 1 << 31}, {Weight: 1 << 31}}); err == nil {
		t.Error("2^32 was taken")
	}
}

func TestMarshalRefuses(t *testing.T) {
	for _, name := range []string{"\xff", "ok"} {
		_, err := marshal(&routev3.Route{Name: name, Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}, Action: serverError()})
		if (err == nil) != (name == "ok") {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if _, err := marshal(&routev3.Route{Match: &routev3.RouteMatch{}, Action: serverError()}); err == nil {
		t.Error("a route without a path was taken")
	}
}
