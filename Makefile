# make run    train and compare the methods of LiGO's paper on the default experiment, then show where the report is
# make test   lint, types and tests
# Both set up .venv first if it is not there, from pyproject.toml with the exact versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test readme

run: .venv/ready
	$(BIN)/growbench run --methods stackbert,mslt,bert2bert,ki,ligo

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --dist worksteal

# Copy the committed results' tables into the README; a test compares them.
readme: .venv/ready
	$(BIN)/growbench report results/reference/gpt2-tiny
	$(BIN)/growbench report results/mini
	sed -i -e '/<!-- savings -->/,/<!-- end -->/{//!d}' -e '/<!-- savings -->/r results/reference/gpt2-tiny/report/savings.md' \
		-e '/<!-- mini -->/,/<!-- end -->/{//!d}' -e '/<!-- mini -->/r results/mini/report/overview.md' README.md

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
