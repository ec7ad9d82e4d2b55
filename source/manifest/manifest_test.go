package manifest

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

const route = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r%d}
spec:
  parentRefs: [{name: gw}]
  rules:
  - matches:
    - path: {value: /a%d}
      headers: [{name: X-Gateway-Model-Name, value: m%d}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}]
---
`

func TestSpeed(t *testing.T) {
	var b bytes.Buffer
	for i := range 1000 {
		fmt.Fprintf(&b, route, i, i, i)
	}
	start := time.Now()
	r := Parse("x", []byte(fmt.Sprintf(route, 1, 1, 1)))
	t.Log("first", time.Since(start), r.Problems)
	start = time.Now()
	r = Parse("x", b.Bytes())
	t.Log("1000", time.Since(start), len(r.Objects), r.Problems)
	start = time.Now()
	r = Parse("x", []byte(`apiVersion: gateway.networking.k8s.io/v1beta1
kind: Gateway
metadata: {name: r}
spec:
  gatewayClassName: 3
  hostnam: x
  listeners: [{name: x, port: 80, protocol: HTTP, tls: {}}, {name: x, port: 70000}]
---
a: [
---
apiVersion: v1
kind: Secret
metadata: {name: R}
data: {a: "???"}
---
apiVersion: v1
kind: Secret
metadata: {name: r}
data: {a: "???"}
`))
	t.Log("gw", time.Since(start))
	for _, p := range r.Problems {
		t.Log(p)
	}
}
