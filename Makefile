# The two commands of the README are `make demo` and `make test`; each does its own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PACKAGES := train eval launch cluster models concepts miniature efface tests benchmarks docs setup.py
MEMORY_KB := $(shell awk '/MemAvailable/ {print $$2}' /proc/meminfo 2>/dev/null || echo 0)

.PHONY: demo test venv lint docs slow clean

demo: venv
	$(BIN)/efface run configs/campaigns/demo.yaml --out runs/demo

# The tests start Python hundreds of times: bytecode is kept, also where the environment says otherwise.
test slow: export PYTHONDONTWRITEBYTECODE =

# For `make test`: a test that hangs ends its process with a traceback, and where a process is gone the run ends and names
# the test; pytest-xdist would wait forever for the rest of that file.
HANG_OPTIONS := -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true --max-worker-restart=0

test: venv lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(HANG_OPTIONS)

slow: venv
	@if [ $(MEMORY_KB) -ge 16777216 ]; then $(BIN)/python -m pytest -m slow; \
	else echo "slow tests left out: less than 16 GiB of memory is free"; fi

lint: venv
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

venv: $(READY)

$(READY): setup.py constraints.txt .ci/install
	$(PYTHON) -c 'import sys; sys.exit("efface needs Python 3.11 or newer; say make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python .ci/install
	touch $(READY)

clean:
	rm -rf .venv build dist *.egg-info runs
