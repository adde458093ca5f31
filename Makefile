# make run    install into .venv, train the demo (about five minutes on a processor), talk to it
# make test   install the test tools, run every test
# make lint   style, types, import directions
# make clean  remove .venv and what the tools left (runs/ stays)

PYTHON ?= python3
# More options, as in: make run ARGS="--budget 15m", make test ARGS="-k resume"
ARGS ?=
BIN := .venv/bin

.PHONY: run test lint clean
.DELETE_ON_ERROR:

run: .venv/.base
	$(BIN)/onesitting run demo $(ARGS)
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/onesitting chat runs/demo; \
	else echo "Talk to it: $(BIN)/onesitting chat runs/demo"; fi

# Two workers for two cores; more threads inside each would only take turns.
test: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# One pip call for pins and package: a second one could move a pinned version. The stamps make it idempotent.
.venv/.%: requirements/%.txt requirements/base.txt requirements/test.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $< --editable .
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info build dist
	find onesitting tests -name __pycache__ -type d -prune -exec rm -rf {} +
