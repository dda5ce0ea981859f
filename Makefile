MAKEFLAGS += --warn-undefined-variables --no-builtin-rules
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := $(CURDIR)/.bin
BUILD := $(CURDIR)/.build
NODE := $(BUILD)/node
TOOLS := $(BIN)/api-linter $(BIN)/buf $(BIN)/golangci-lint $(BIN)/grpcurl $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-grpc
# Every module of the workspace, from go.work itself.
MODULES = $(shell go list -m -f '{{.Dir}}')
PROTO_IMAGE := proto/released.binpb
RUN ?= .

.PHONY: help
help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

.PHONY: demo
demo: build ## Run the whole story once, in one process, and say whether it went as it should
	@$(BIN)/phasekey-dev demo

.PHONY: dev
dev: build ## Start everything in one process and stay up; state in .build/dev
	@$(BIN)/phasekey-dev --dir $(BUILD)/dev

.PHONY: build
build: ## Build all commands into .bin
	@mkdir -p $(BIN)
	@tools/progress.sh go build -v -o $(BIN)/ ./services/registry/cmd/... ./services/broker/cmd/... ./services/vault/cmd/... ./services/phasekey/cmd/... ./pkg/entrasim/cmd/...

.PHONY: test
test: setup proto-check generate-check lint modules model ## Everything that CI runs
	@$(MAKE) --no-print-directory unit

.PHONY: unit
unit: build ## Run the tests; RUN=pattern selects
	@# SQLite is C in Go, whose memory is none that the race detector looks at: looking in vain made the rotator's tests take four times as long. It is that one
	@# package, which shares no code with others: of a generic function the linker keeps one copy, and must not keep one that is not looked at.
	go test -race -gcflags=modernc.org/sqlite/lib=-race=false -shuffle=on -timeout 20m -run '$(RUN)' work
	@# What the race detector has too little time for: a whole month.
	go test -timeout 20m -run '$(RUN)' ./services/vault/internal/year

.PHONY: model
model: ## Check the models of mastership in every state
	@tools/debian.sh gcc:gcc spin:spin
	@test/model/check.sh $(BUILD)/model

.PHONY: setup
setup: $(TOOLS) ## Install what the tests need: Debian packages, build tools, clients for Node
	@tools/debian.sh curl:curl gcc:gcc redis-server:redis-server initdb:postgresql chromium:chromium node:nodejs npm:npm spin:spin
	@$(MAKE) --no-print-directory $(NODE)/installed

# What test/clients runs in Node, outside of the source; after setup's packages, which npm is one of.
$(NODE)/installed: test/clients/node/package.json test/clients/node/package-lock.json
	@echo "installing the clients for Node that test/clients/node/package-lock.json pins"
	@rm -rf $(NODE) && mkdir -p $(NODE) && cp $^ $(NODE)/
	npm ci --prefix $(NODE) --ignore-scripts --no-audit --no-fund --loglevel=http
	@touch $@

$(TOOLS) &: tools/go.mod tools/go.sum
	@mkdir -p $(BIN)
	@echo "building the tools that tools/go.mod pins"
	@GOWORK=off GOBIN=$(BIN) tools/progress.sh go -C tools install -v tool
	@touch $(TOOLS)

$(BUILD)/proto: tools/go.mod tools/protodeps/main.go
	@rm -rf $@
	@GOWORK=off go -C tools run ./protodeps $@

.PHONY: generate
generate: $(TOOLS) $(BUILD)/proto ## Format the protos and generate Go from them
	rm -rf gen/phasekey
	$(BIN)/buf format -w proto
	$(BIN)/buf generate

.PHONY: generate-check
generate-check: $(TOOLS) $(BUILD)/proto
	@rm -rf $(BUILD)/gen && mkdir -p $(BUILD)/gen
	@$(BIN)/buf generate --output $(BUILD)
	@diff -r $(BUILD)/gen/phasekey gen/phasekey || { echo "gen/ is not what the protos say: run 'make generate'"; exit 1; }

.PHONY: proto-check
proto-check: $(TOOLS) $(BUILD)/proto
	$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code proto || { echo "the protos are not formatted: run 'make generate'"; exit 1; }
	$(BIN)/buf breaking proto --against $(PROTO_IMAGE)
	@cd proto && $(BIN)/api-linter -I $(BUILD)/proto --config api-linter.yaml --set-exit-status --output-format summary $$(find phasekey -name '*.proto')

.PHONY: release-image
release-image: $(TOOLS) $(BUILD)/proto ## Make anew the image that breaking changes are judged against
	$(BIN)/buf build proto -o $(PROTO_IMAGE)

.PHONY: lint
lint: $(BIN)/golangci-lint ## Vet and lint all modules
	@! grep -rL --include='*_test.go' -iE 'synctest|bubble' $$(grep -rl --include='*_test.go' 'time\.Sleep(' $(MODULES)) | grep . || { echo "time.Sleep outside of a synctest bubble, see above"; exit 1; }
	go vet work
	$(BIN)/golangci-lint run $(addsuffix /...,$(MODULES))

.PHONY: fix
fix: $(BIN)/golangci-lint ## Format, and mend what the linters can mend
	$(BIN)/golangci-lint fmt $(MODULES)
	$(BIN)/golangci-lint run --fix $(addsuffix /...,$(MODULES))

# Two seeds at a time, on two cores in one night, each a process: there is little in a bubble to do at once, and what a second core is woken for costs an eighth.
# FIRST goes on where a run was ended: a seed that was lived through has its line in the table.
SEEDS := 10
FIRST ?= 1
DAYS ?= 365
YEAR := $(BUILD)/year.test -test.timeout=24h -test.run=TestYear -test.v -year.days=$(DAYS) -year.integrations=200 -year.leases=50 -year.progress
.PHONY: year
year: ## Live through ten simulated years of 200 integrations with every fault; takes a night. FIRST=seed goes on
	@mkdir -p $(BUILD)
	go test -c -o $(BUILD)/year.test ./services/vault/internal/year
	cd services/vault/internal/year && seq $(FIRST) $(SEEDS) | GOMAXPROCS=1 xargs -P 2 -I SEED $(YEAR) -year.seed=SEED -year.table=$(BUILD)/year.md

SEED ?= 1
.PHONY: replay
replay: ## Live through the simulated year of one SEED up to twenty times, until something is violated; DAYS=number shortens it
	@mkdir -p $(BUILD)
	go test -c -o $(BUILD)/year.test ./services/vault/internal/year
	cd services/vault/internal/year && GOMAXPROCS=1 $(YEAR) -year.seed=$(SEED) -year.replay=20

.PHONY: faults
faults: build setup ## Run the tests under faults alone, and show what they measure; RUN=pattern selects
	go test -count=1 -timeout 20m -v -run '$(RUN)' ./test/fault

.PHONY: planted
planted: setup ## Break the rotator in one way after another, and see that the tests find each; RUN=pattern selects
	go run ./test/cmd/planted -run '$(RUN)'

# The packages that promise something about speed or memory.
BENCHES := ./pkg/entrasim ./services/registry/internal/rpc ./services/vault/internal/rotation ./services/broker/internal/web
.PHONY: bench
bench: build ## Measure what the documentation promises, and fail if a ratio or a bound of memory is not kept
	@tools/bench.sh $(BENCHES)
	@$(MAKE) --no-print-directory load

# A process may have 20,000 descriptors; the vault and its runners are processes of their own.
LOAD := -load.streams=10000 -load.rounds=3 -load.duration=5s -load.firsts=2000
.PHONY: load
load: build setup ## Measure the vault beside a bare gRPC server, 20,000 streams among it; takes ten minutes
	go test -count=1 -timeout 3h -run TestLoad -v ./test/load $(LOAD) -load.promises -load.progress -load.json=$(BUILD)/load.json

FUZZTIME ?= 1m
.PHONY: fuzz
fuzz: ## Fuzz beyond the seeds, which the tests try: each FUZZTIME long, a minute; RUN=FuzzMask selects
	@tools/fuzz.sh '$(RUN)' '$(FUZZTIME)'

PICTURES := waiting landing entra pending result declined lost
.PHONY: pictures
pictures: build setup ## Make the pictures in docs/ anew, from what the tests in a browser see
	go test -count=1 -run TestPages ./test/e2e
	@mkdir -p docs/images
	cp $(patsubst %,$(BUILD)/screenshots/%.png,$(PICTURES)) docs/images/

.PHONY: modules
modules: ## Build each module by itself, without the workspace
	@for dir in $(MODULES); do echo "GOWORK=off go build $${dir#$(CURDIR)/}"; (cd $$dir && GOWORK=off go build ./... && GOWORK=off go mod verify >/dev/null); done
