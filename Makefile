# make run        train and compare the methods of LiGO's paper on the default experiment, then show where the report is
# make test       lint, layers, types, the manual, tests
# make docs       build the manual: build/docs/index.html
# make generated  write what is generated in README.md and docs/: tables of results, commands, keys, methods
# make gpu        what a GPU is needed for: its tests, speeds, and the results made on one; in OUT, within MINUTES
# Each sets up .venv first if it is not there, from pyproject.toml with the exact versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
OUT := build/gpu
MINUTES := 60

.PHONY: run test tests checks docs generated gpu

run: .venv/ready
	$(BIN)/growbench run --methods stackbert,mslt,bert2bert,ki,ligo

# The checks run beside the tests; what they say comes in one piece.
test: .venv/ready
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target checks tests

checks: .venv/ready docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# With +, make lets the progress through as it comes.
tests: .venv/ready
	+$(BIN)/pytest --numprocesses auto --dist worksteal

# Every page is read anew, so that each warning is an error in each build.
docs: .venv/ready
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going -d build/doctrees docs build/docs

# The reports first, whose tables the pages hold.
generated: .venv/ready
	$(BIN)/growbench report results/reference/gpt2-tiny
	$(BIN)/growbench report results/mini
	$(BIN)/growbench report results/methods
	$(BIN)/growbench report results/tracks
	$(BIN)/python -m docs.generate

gpu: .venv/ready
	$(BIN)/python -m tests.gpu.session --minutes $(MINUTES) --out $(OUT)

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
