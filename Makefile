# Every target sets itself up: a bare clone with python3, pip and make is enough.

PYTHON ?= python3
BIN := .venv/bin
# Installing torch first keeps pip from choosing a build with CUDA where a plain one is at hand.
TORCH := $(shell grep '^torch==' constraints.txt)
# The stubs require tensorrt itself, whose library is on an index of its own; pyright needs the stubs alone.
STUBS := $(shell grep '^tensorrt-stubs==' constraints.txt)
OUT ?= out

.PHONY: demo test test-all check format docs clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps $(STUBS)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[tensorrt-rtx]' \
		|| echo 'TensorRT-RTX cannot be installed here; the tests that build its engines will be skipped'
	touch $@

demo: .venv/ready  ## export the demo model, paint one prompt, score it
	$(BIN)/python examples/demo.py --outdir $(OUT)

test: check  ## what CI runs
	$(BIN)/python -m pytest

test-all: check  ## and everything slow
	$(BIN)/python -m pytest -m 'not gpu'

check: .venv/ready  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv $(OUT)
