package cluster

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envoys is what is provisioned for the guides' Gateway is called: Deployment and Service.
const envoys = "signalbox-inference-gateway"

// fault is something that is stopped, killed or replaced; no request may fail by it.
type fault struct {
	name string
	run  func(*testing.T)
}

func faults(t *testing.T) {
	kubectl(t, "scale", "deployment/"+envoys, "--replicas=2")
	kubectl(t, "rollout", "status", "deployment/"+envoys, "--timeout", patience.String())
	for _, f := range []fault{
		{"the control plane is replaced", replaceControlPlane},
		{"the leader is killed", killLeader},
		{"the whole control plane is away", stopControlPlane},
		{"the Envoys are deleted one by one", deleteEnvoys},
		{"the Envoys are replaced by new ones", replaceEnvoys},
		{"the Envoys become fewer", scaleEnvoysDown},
		{"model servers are replaced", replaceModelServers},
	} {
		t.Run(f.name, func(t *testing.T) { under(t, f.run) })
	}
	outages(t)
}

func replaceControlPlane(t *testing.T) {
	kubectl(t, "-n", namespace, "rollout", "restart", "deployment/signalbox")
	kubectl(t, "-n", namespace, "rollout", "status", "deployment/signalbox", "--timeout", patience.String())
	newRouteIsServed(t)
}

func leader(t *testing.T) string {
	holder := kubectl(t, "-n", namespace, "get", "lease", "signalbox", "-o", "jsonpath={.spec.holderIdentity}")
	return holder[:max(0, strings.LastIndex(holder, "-"))] // POD-PID
}

// killLeader kills the leader without a word, so that its lease must run out. Another
// replica then writes.
func killLeader(t *testing.T) {
	old := leader(t)
	kubectl(t, "-n", namespace, "delete", "pod", old, "--force", "--grace-period=0", "--wait=false")
	eventually(t, "another replica leads", func() (bool, string) { now := leader(t); return now != old && now != "", now })
	newRouteIsServed(t)
}

func stopControlPlane(t *testing.T) {
	replicas := kubectl(t, "-n", namespace, "get", "deployment/signalbox", "-o", "jsonpath={.spec.replicas}")
	kubectl(t, "-n", namespace, "scale", "deployment/signalbox", "--replicas=0")
	kubectl(t, "-n", namespace, "wait", "pods", "-l", "app.kubernetes.io/name=signalbox", "--for=delete", "--timeout", patience.String())
	kubectl(t, "-n", namespace, "scale", "deployment/signalbox", "--replicas="+replicas)
	kubectl(t, "-n", namespace, "rollout", "status", "deployment/signalbox", "--timeout", patience.String())
	newRouteIsServed(t)
}

func deleteEnvoys(t *testing.T) {
	for pod := range strings.FieldsSeq(kubectl(t, "get", "pods", "-l", "gateway.networking.k8s.io/gateway-name=inference-gateway", "-o", "name")) {
		kubectl(t, "delete", pod, "--wait=false")
		kubectl(t, "wait", pod, "--for=delete", "--timeout", patience.String())
		kubectl(t, "rollout", "status", "deployment/"+envoys, "--timeout", patience.String())
	}
}

// replaceEnvoys changes the parameters of the Gateway, which replaces every pod.
func replaceEnvoys(t *testing.T) {
	apply(t, parameters, "apply", "-f", "-")
	before := kubectl(t, "get", "deployment/"+envoys, "-o", "jsonpath={.metadata.generation}")
	kubectl(t, "patch", "gateway/inference-gateway", "--type=merge", "-p",
		`{"spec":{"infrastructure":{"parametersRef":{"group":"","kind":"ConfigMap","name":"three-envoys"}}}}`)
	eventually(t, "the Deployment changes", func() (bool, string) {
		now := kubectl(t, "get", "deployment/"+envoys, "-o", "jsonpath={.metadata.generation}")
		return now != before, now
	})
	kubectl(t, "rollout", "status", "deployment/"+envoys, "--timeout", patience.String())
}

// parameters give the guides' Gateway three Envoys that log more.
const parameters = `
apiVersion: v1
kind: ConfigMap
metadata: {name: three-envoys, namespace: default}
data: {replicas: "3", logLevel: info, drainSeconds: "60"}
`

func scaleEnvoysDown(t *testing.T) {
	kubectl(t, "patch", "configmap/three-envoys", "--type=merge", "-p", `{"data":{"replicas":"1"}}`)
	eventually(t, "one Envoy is left", func() (bool, string) {
		pods := kubectl(t, "get", "pods", "-l", "gateway.networking.k8s.io/gateway-name=inference-gateway", "-o", "name")
		return strings.Count(pods, "pod/") == 1, pods
	})
}

func replaceModelServers(t *testing.T) {
	for _, pool := range []string{"gemma3", "vllm-phi4-mini-instruct"} { // FailClose and FailOpen
		kubectl(t, "rollout", "restart", "deployment/"+pool)
		kubectl(t, "rollout", "status", "deployment/"+pool, "--timeout", patience.String())
	}
}

// newRouteIsServed shows that changes still reach Envoy, and statuses the API server.
func newRouteIsServed(t *testing.T) {
	t.Helper()
	name := "new-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	apply(t, strings.ReplaceAll(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: NAME, namespace: default}
spec:
  parentRefs: [{name: inference-gateway}]
  hostnames: [NAME.example]
  rules: [{backendRefs: [{name: gemma3-pods, port: 8000}]}]
`, "NAME", name), "apply", "-f", "-")
	defer kubectl(t, "delete", "httproute", name)
	address := kubectl(t, "get", "gateway/inference-gateway", "-o", "jsonpath={.status.addresses[0].value}")
	eventually(t, "a new route is served", func() (bool, string) {
		out, err := run(t, "", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", "-H", "Host: "+name+".example", "http://"+address+"/")
		return err == nil && out == "200", out
	})
	kubectl(t, "wait", "httproute/"+name, "--timeout", patience.String(), `--for=jsonpath={.status.parents[0].conditions[?(@.type=="Accepted")].status}=True`)
}

// outages stops the API server and etcd, where this machine runs them: CLUSTER_RUN is the
// folder with their process ids, as ../shared/cluster keeps it.
func outages(t *testing.T) {
	dir := os.Getenv("CLUSTER_RUN")
	if dir == "" {
		t.Log("CLUSTER_RUN is not set: this cluster's API server and etcd cannot be stopped from here and are left alone")
		return
	}
	for _, o := range []struct {
		process string
		away    time.Duration
	}{{"apiserver", time.Minute}, {"etcd", 30 * time.Second}} {
		t.Run(o.process+" hangs", func(t *testing.T) {
			// To the pods: when the API server is back, Kubernetes may take the node for
			// lost at first, and then its own proxy has no endpoints.
			pod := kubectl(t, "get", "pods", "-l", "gateway.networking.k8s.io/gateway-name=inference-gateway", "-o", "jsonpath={.items[0].status.podIP}")
			port := kubectl(t, "get", "service/"+envoys, "-o", "jsonpath={.spec.ports[0].targetPort}")
			l := startLoad(t, o.away+time.Minute, "http://"+pod+":"+port)
			hang(t, filepath.Join(dir, o.process+".pid"), o.away)
			eventually(t, "the API server answers again", func() (bool, string) {
				out, err := run(t, "", "kubectl", "get", "--raw", "/readyz", "--request-timeout=2s")
				return err == nil, out
			})
			newRouteIsServed(t)
			l.finish(t)
		})
	}
}

// hang stops a process, which keeps its connections and answers nothing, and lets it go on.
func hang(t *testing.T, pidFile string, away time.Duration) {
	t.Helper()
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}()
	<-time.After(away)
}
