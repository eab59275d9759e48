# make train   sets up everything and trains LeNet-5 on Fashion-MNIST
# make test    sets up everything and runs all tests
# make test-quick   each test that is not slow with its first parameters: every part, in minutes
# make lint    formatting, lint and types
# make bench   every benchmark, against PyTorch where there is one (make bench-setup installs it apart), ~2 hours

PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/lenet5
BIN    := $(VENV)/bin

.PHONY: train test test-quick lint setup bench bench-setup

train: setup
	$(BIN)/python -m recvis_jax.prepare --dataset=fashion_mnist
	$(BIN)/python -m recvis_jax.train --config=configs/fashion_mnist/lenet5.py --workdir=$(RUN)

test: setup
	$(BIN)/python -m pytest -n 2 --dist=loadfile

test-quick: setup
	$(BIN)/python -m pytest -n 2 --dist=loadfile --quick

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/installed

# The first command that fails says what to do. Root on Debian gets the one package that it may lack.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "recvis_jax needs Python 3.11 or later; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; } || \
	  { echo "Python lacks venv; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

bench: setup bench-setup
	for b in models onednn epoch speedrun jpeg startup checkpoint growth input_pipeline mae_ablation; do $(BIN)/python benchmarks/$$b.py || exit 1; done

bench-setup: .venv-bench/installed

.venv-bench/installed: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@
