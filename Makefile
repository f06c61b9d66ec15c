# make help lists the targets.
#
# The torch build (CPU or one of the CUDA ones) is the user's choice, made with pip's own settings:
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS or a pip.conf are honoured as they are. The lock
# names torch without a local version and none of its CUDA companions, so it fits every build.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DIR ?= build/demo
REPORT ?= $(DEMO_DIR)/SmolLM2-135M-Instruct-20/report.html
PYTEST_ARGS ?=
# Each has a Ray of its own: about 4 GB and two cores.
PYTEST_PROCESSES ?= 3
CRDS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo quick test pytest check check-aside check-manifests format lock reference architectures fuzz audit serve-check report-check chaos month clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with the locked packages and this project (a no-op when up to date)
	@:

$(STAMP): requirements.lock pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Every candidate is asked, not only found: shims exist without an interpreter behind them, and
# Debian's python3 comes without ensurepip.
$(BIN)/pip:
	@for candidate in python3 python3.13 python3.12 python3.11; do \
	    if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	        >/dev/null 2>&1; then \
	        echo "creating $(VENV) with $$($$candidate --version)"; \
	        exec $$candidate -m venv --clear $(VENV); \
	    fi; \
	done; \
	echo "make install needs Python 3.11 or newer with its venv module, and found none as" >&2; \
	echo "python3, python3.13, python3.12 or python3.11. On Debian and Ubuntu install the" >&2; \
	echo "packages python3 and python3-venv." >&2; \
	exit 1

demo: install  ## compress a real small model end to end and print what it cost
	$(BIN)/svdllm demo --work-dir $(DEMO_DIR)

# The check runs beside the tests; what it found is printed after them.
quick test: install
	@mkdir -p build; rm -f build/check.log; \
	$(MAKE) --no-print-directory --jobs=2 pytest check-aside; failed=$$?; \
	cat build/check.log; exit $$failed
test: export TESTS :=
quick: export PYTEST_PROCESSES := logical
quick: export TESTS := -m "not slow" tests/unit
quick:  ## lint, types and the unit tests that take no more than seconds
test:  ## lint, types and every test

pytest:
	$(BIN)/python -m pytest --numprocesses $(PYTEST_PROCESSES) --dist loadfile \
	    --no-loadscope-reorder $(TESTS) $(PYTEST_ARGS)

check-aside:
	@$(MAKE) check > build/check.log 2>&1

check: install  ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-manifests: install  ## deploy/ and ray_cluster.yaml; CRDS=folder of KubeRay's CRDs for its kinds
	CRDS=$(CRDS) $(BIN)/python -m pytest tests/unit/project/test_manifests.py

format: install  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install  ## resolve pyproject.toml anew into requirements.lock
	$(BIN)/python .ci/lock.py > requirements.lock.new
	mv requirements.lock.new requirements.lock

reference: install  ## write docs/configuration.md from the schemas
	$(BIN)/python .ci/reference.py > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

architectures: install  ## check every kind of model, and write docs/architectures.md (minutes)
	$(BIN)/python -m tests.campaigns.architectures > docs/architectures.md.new
	mv docs/architectures.md.new docs/architectures.md

fuzz: install  ## mutated checkpoints, configurations and texts, each to end cleanly (minutes)
	$(BIN)/python -m tests.campaigns.fuzz

# In an environment of its own: what it needs is no dependency of the project.
audit: install  ## look up the packages of requirements.lock in databases of vulnerabilities
	$(BIN)/python -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	build/audit/bin/pip-audit --no-deps --disable-pip --requirement requirements.lock

serve-check: install  ## serve CHECKPOINT="folder ..." with an unmodified engine, compare with transformers
	bash tests/campaigns/serve_check.sh

report-check: install  ## open REPORT=report.html in headless Chromium, take screenshots of it
	$(BIN)/python -m tests.campaigns.report_check $(REPORT) --output build/report-check

chaos: install  ## kill workers, nodes and the driver of 24 seeded runs, compare their bytes (long)
	$(BIN)/python -m tests.campaigns.chaos

month: install  ## thirty nights over a training run, with kills and overlaps (long)
	$(BIN)/python -m tests.campaigns.month

clean:  ## remove .venv, build results and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
