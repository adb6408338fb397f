# Two commands matter: `make demo` shows what burnfuse does, `make test` checks that it does it.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
SCRIPTS := docker/kafka/run

define need-python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "burnfuse needs Python 3.11 or newer: install it, or name it with PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "Python's venv module is missing: install it (Debian: apt install python3-venv)" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
SECONDS ?= 60
SEED ?=
SEEDS ?=
.PHONY: help demo test bench chaos fuzz chart lint types venv lock clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "  make %-6s  %s\n", $$1, $$2 }' Makefile

demo: venv ## show burnfuse at work on built-in traffic; options go in ARGS="..."
	@$(BIN)/burnfuse demo $(ARGS)

# In parts: what shares nothing uses all cores; on Kafka two files at once, each with a broker. ARGS may leave a part
# without tests (code 5). Chaos depends on time: a seed that differs is tried once more, and told. `make chaos` is strict.
define pytest
$(BIN)/python -m pytest -m "$(1)" $(2) $(ARGS) || [ $$? -eq 5 ] || failed=1
endef

test: .venv/.dev ## run all tests, with a real Kafka (needs Java 17 and Maven); options go in ARGS="..."
	@failed=0; \
	$(call pytest,not kafka and not chaos,-n auto --dist worksteal); \
	$(call pytest,kafka and not chaos,-n 2 --dist loadfile); \
	export CHAOS_TRIES=2; $(call pytest,chaos); \
	exit $$failed

bench: .cache/bench-venv/.done ## measure speed, latency, scaling, and bars; options go in ARGS="..."
	@.cache/bench-venv/bin/python -m benchmarks $(ARGS)

chaos: .venv/.dev ## kill, cut and freeze workers and the broker, by SEEDS=10 seeds or one SEED=17; logs in .cache/chaos
	@REQUIRE_KAFKA=1 CHAOS_SEED=$(SEED) CHAOS_SEEDS=$(SEEDS) $(BIN)/python -m pytest -q -s tests/chaos -m chaos $(ARGS); \
		code=$$?; $(BIN)/python tests/chaos/chaos_figures.py; exit $$code

fuzz: .venv/.fuzz ## fuzz every decoder for SECONDS=60 each (Linux); what it finds lies in .cache/fuzz
	@$(BIN)/python -m fuzz --seconds $(SECONDS) $(ARGS)

chart: .venv/.dev ## render the Helm chart and check what comes out; needs helm, or Go to build it
	@command -v helm >/dev/null || $(MAKE) --no-print-directory .cache/bin/helm
	@PATH="$(CURDIR)/.cache/bin:$$PATH" REQUIRE_HELM=1 $(BIN)/python -m pytest tests/helm $(ARGS)

lint: .venv/.dev ## check style and format
	@$(BIN)/ruff check . $(SCRIPTS)
	@$(BIN)/ruff format --check . $(SCRIPTS)

types: .venv/.dev ## check types
	@$(BIN)/mypy --strict burnfuse detectors stream benchmarks fuzz $(SCRIPTS)

venv: .venv/.server ## make .venv with burnfuse in it

lock: ## pin the newest allowed versions of all dependencies in requirements.lock
	$(need-python)
	@$(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.cache/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file requirements.lock pyproject.toml

clean: ## remove all that the other targets made
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

# A stamp is written after the installation: an interrupted one is done again, a finished one costs nothing.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock

.venv/.server: pyproject.toml requirements.lock
	$(need-python)
	@echo "Setting up .venv (once, about a minute)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -e '.[server]'
	@touch $@

.venv/.dev: pyproject.toml requirements.lock
	$(need-python)
	@echo "Setting up .venv for development (once, about a minute)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -e '.[dev]'
	@touch .venv/.server $@

.venv/.fuzz: .venv/.dev
	@$(INSTALL) -e '.[fuzz]'
	@touch $@

# The other stream processors stay out of .venv. Quix Streams wants an older pydantic than requirements.lock has,
# which nothing measured touches: it takes its place last.
.cache/bench-venv/.done: pyproject.toml requirements.lock benchmarks/requirements.txt
	$(need-python)
	@echo "Setting up .cache/bench-venv for benchmarks (once, about two minutes)"
	@$(PYTHON) -m venv .cache/bench-venv
	@.cache/bench-venv/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock \
		-e '.[server]' pytest pytest-timeout
	@.cache/bench-venv/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

.cache/bin/helm:
	@command -v go >/dev/null || { echo "There is no helm: install it, or Go to build it with" >&2; exit 1; }
	@echo "Building helm (once, about four minutes)"
	@GOBIN="$(CURDIR)/.cache/bin" go install helm.sh/helm/v3/cmd/helm@v3.19.0
