# Every target sets itself up: a bare clone with python3, pip and make is enough.

PYTHON ?= python3
BIN := .venv/bin
# Installing torch first keeps pip from choosing a build with CUDA where a plain one is at hand.
TORCH := $(shell grep '^torch==' constraints.txt)
# The stubs require tensorrt itself, whose library is on an index of its own; pyright needs the stubs alone.
STUBS := $(shell grep '^tensorrt-stubs==' constraints.txt)
OUT ?= out

.PHONY: demo test test-all check format docs clean

# What the demo needs is a twentieth of what the tests need; whatever has all of it has that too.
.venv/demo: pyproject.toml constraints.txt
	@echo 'Setting up .venv to paint with: ONNX Runtime, NumPy, Pillow and some small packages, 60 MB to download ...'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[onnxruntime]'
	@touch $@

.venv/ready: pyproject.toml constraints.txt
	@echo 'Setting up .venv to develop with, once; each line below is quiet until it has ended.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo 'torch: 190 MB to download where a build for the CPU is at hand, else 2.7 GB with CUDA ...'
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	@echo 'diffusers, transformers, ONNX and the tools to test with: 150 MB ...'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps $(STUBS)
	@echo 'TensorRT-RTX, to build its engines in tests: 100 MB ...'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[tensorrt-rtx]' \
		|| echo 'TensorRT-RTX cannot be installed here; the tests that build its engines will be skipped'
	@touch .venv/demo $@

demo: .venv/demo  ## paint one prompt with the demo model, in two stages and in one, and score both
	$(BIN)/python examples/demo.py --outdir $(OUT)

test: check  ## what CI runs
	$(BIN)/python -m pytest

test-all: check .venv/slow  ## and everything slow
	$(BIN)/python -m pytest -m 'not gpu'

# What only slow tests need: Ray, and a Chromium for the web page where the machine has none.
.venv/slow: .venv/ready
	@echo 'Ray: 130 MB ...'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	scripts/browser .venv/browser || echo 'No browser can be had here; the tests of the web page will be skipped'
	@touch $@

check: .venv/ready  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/ready  ## write the pages that are made from records, results and docstrings
	for script in docs/make_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv $(OUT)
