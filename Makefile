# make train   sets up everything and trains LeNet-5 on Fashion-MNIST
# make test    sets up everything and runs all tests
# make test-quick   each test that is not slow with its first parameters: every part, in minutes
# make test-lowest  those of test-quick with the lowest versions that pyproject.toml names; to be run when a bound changes
# make docs    the site, in build/site/: a warning or a dead link is an error
# make lint    formatting, lint and types
# make notebooks    the lecture, executed: notebooks/built/*.ipynb with their figures; one of them with ONLY=03
# make notebooks-check  each notebook twice: both executions must give the same
# make bench   every benchmark, against PyTorch where there is one (make bench-setup installs it apart), ~2 hours
#
# With another Python: make train PYTHON=python3.13. Each has an environment of its own beside .venv, that of python3.

PYTHON ?= python3
RUN    ?= runs/lenet5
# pyenv puts every python3.X on the path, and runs only those that are switched on.
RUNS   := $(shell $(PYTHON) -c 'import sys; print(sys.executable)' 2>/dev/null || \
  ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(patsubst python%,%,$(PYTHON)).*/bin/python 2>/dev/null | tail -n 1)
VERSION := $(if $(RUNS),$(shell $(RUNS) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
VENV   ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(or $(VERSION),none))
BIN    := $(VENV)/bin

.PHONY: train test test-quick test-lowest has-python lint docs notebooks notebooks-check setup bench bench-setup

train: setup
	$(BIN)/python -m recvis_jax.prepare --dataset=fashion_mnist
	$(BIN)/python -m recvis_jax.train --config=configs/fashion_mnist/lenet5.py --workdir=$(RUN)

test: setup
	$(BIN)/python -m pytest -n 2 --dist=loadfile

test-quick: setup
	$(BIN)/python -m pytest -n 2 --dist=loadfile --quick

test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest -n 2 --dist=loadfile --quick

# Whether PYTHON is there at all; says nothing.
has-python:
	@[ -n "$(VERSION)" ]

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "build/site/index.html: open it in a browser"

notebooks: setup
	$(BIN)/python notebooks/build.py $(ONLY)

notebooks-check: setup
	$(BIN)/python notebooks/build.py --check $(ONLY)

setup: $(VENV)/installed-$(VERSION)

# The first command that fails says what to do. Root on Debian gets the one package that it may lack. An environment that
# another version of Python made is made anew.
$(VENV)/installed-$(VERSION): pyproject.toml
	@[ -n "$(RUNS)" ] && $(RUNS) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not there, or older than the Python 3.11 that recvis_jax needs; name another with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(RUNS) -c 'import ensurepip' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; } || \
	  { echo "Python lacks venv; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@[ ! -e $(VENV)/pyvenv.cfg ] || [ -x $(BIN)/python$(VERSION) ] || rm -r $(VENV)
	$(RUNS) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# The lowest versions of what is named; the highest of what those need and does not name a bound.
.venv-lowest/installed: pyproject.toml
	$(RUNS) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

bench: setup bench-setup
	for b in models onednn epoch speedrun jpeg startup checkpoint growth input_pipeline mae_ablation sift textures; do $(BIN)/python benchmarks/$$b.py || exit 1; done

bench-setup: .venv-bench/installed

.venv-bench/installed: benchmarks/requirements.txt
	$(RUNS) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@
