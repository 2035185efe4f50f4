# make demo, make test; make faults, make soak, make fuzz; make lint; make bench; make test-all for every Python found. PYTHON
# chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
FRAMES ?= 500000
SEED ?=
SECONDS ?= 600
INTEROP := tests/interop
PIP := -m pip --disable-pip-version-check -q

# Not for 3.8, whose children crash at a fork with it, nor for PyPy.
DEV = $$($(PYTHON) -c 'import sys; print("-Xdev" * (sys.version_info >= (3, 9) and sys.implementation.name == "cpython"))')

.PHONY: demo test faults soak fuzz bench bench-quick lint test-all clean

demo:
	@$(PYTHON) -m nodeipc demo

test: $(VENV)/installed interop
	$(VENV)/bin/python $(DEV) -m pytest -p tests.parallel $(PYTEST_ARGS)

$(VENV)/installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) install -e '.[test]'
	@touch $@

# Real node-ipc peers. Install scripts are never run; see tests/interop/package.json for why exactly these versions.
.PHONY: interop
interop:
	@if command -v npm >/dev/null && command -v node >/dev/null; then $(MAKE) -s $(INTEROP)/node_modules/installed; \
	else echo 'no Node.js: the tests with node-ipc peers will be skipped'; fi

$(INTEROP)/node_modules/installed: $(INTEROP)/package-lock.json
	cd $(INTEROP) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Every fault as often as the table of the README says, which it prints: 19 minutes on a busy machine.
faults: $(VENV)/installed interop
	FAULTS=full $(VENV)/bin/python $(DEV) -m pytest tests/faults tests/test_soak.py $(PYTEST_ARGS)

# Everything at once, with faults, for ten minutes or SECONDS; SEED= repeats what was chosen. Nothing is installed for it.
soak:
	@$(PYTHON) -m tests.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# Mutated streams, over the wire layer and over live sockets, for a minute or two; SEED= repeats a run. What fails is printed as
# a test case. Nothing is installed for it.
fuzz:
	@$(PYTHON) -m tests.fuzz --frames $(FRAMES) $(if $(SEED),--seed $(SEED))

# nodeipc beside node-ipc 14 and whatever else one would use, each in processes of its own; then what it needs, and how cost
# grows. Everything that was measured is left in .benchmarks. The others have an environment of their own, in these versions.
BENCH_NAME = .benchmarks/$$(date -u +%Y%m%dT%H%M%SZ)

bench: .venv-bench/installed interop
	@mkdir -p .benchmarks; name=$(BENCH_NAME); failed=0; \
	$(PYTHON) -m tests.benchmarks --peers all --python $(PYTHON) --python newest --json $$name.json || failed=1; \
	$(PYTHON) -m tests.benchmarks footprint --json $$name-footprint.json || failed=1; \
	$(PYTHON) -m tests.benchmarks growth --json $$name-growth.json || failed=1; \
	exit $$failed

# Less than two minutes, and nothing but node-ipc is installed.
bench-quick: interop
	@$(PYTHON) -m tests.benchmarks --quick --json $(BENCH_NAME)-quick.json

.venv-bench/installed: tests/benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	-.venv-bench/bin/python $(PIP) install -r tests/benchmarks/requirements.txt
	@touch $@

# Tools of CI, in an environment of their own.
lint: .venv-lint/installed
	.venv-lint/bin/ruff check nodeipc tests examples setup.py
	.venv-lint/bin/mypy
	.venv-lint/bin/python -m tests.typing

.venv-lint/installed:
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/python $(PIP) install ruff==0.17.6 mypy==2.4.1
	@touch $@

# Every CPython from 3.8 up, and PyPy, on PATH or under pyenv, each in an environment of its own; then PYTHON as if on other
# platforms, see tests/platforms.py.
test-all:
	@seen=; failed=; \
	for python in $$(seq -f python3.%g 8 20) $${PYENV_ROOT:-$$HOME/.pyenv}/versions/*/bin/python3 pypy3; do \
	  version=$$($$python -c 'import platform, sys; v = sys.version_info; v >= (3, 8) and print( \
	    platform.python_implementation().replace("CPython", "") + "%d.%d" % v[:2])' 2>/dev/null) || continue; \
	  case "$$version: $$seen" in :*) continue;; *" $$version "*) continue;; esac; \
	  seen="$$seen $$version "; echo "== Python $$version"; \
	  $(MAKE) -s test PYTHON=$$python VENV=.venv-$$version || failed="$$failed $$version"; \
	done; \
	for platform in NODEIPC_TEST_SELECTOR=select NODEIPC_TEST_SELECTOR=poll NODEIPC_TEST_NO_IPV6=1; do \
	  seen="$$seen $$platform "; echo "== $$platform"; \
	  env $$platform $(MAKE) -s test || failed="$$failed $$platform"; \
	done; \
	echo "tested:$$seen"; [ -z "$$failed" ] || { echo "FAILED on:$$failed"; exit 1; }

clean:
	rm -rf .venv .venv-* $(INTEROP)/node_modules build dist *.egg-info
