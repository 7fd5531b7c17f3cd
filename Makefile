# Two commands to begin with: `make digits` and `make test`. `make help` lists the rest.
#
# Everything goes into the active virtual environment, or into .venv, which is made where none is active.

VENV := $(or $(VIRTUAL_ENV),$(CURDIR)/.venv)
PYTHON ?= python3
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# What was installed, and from where: a stamp in the environment, so that it goes when the environment does.
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)
STAMP := $(VENV)/.pyromancy$(subst /,-,$(CURDIR))
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# The package that this one replaces, for the tests and benchmarks that compare the two.
ORACLE := $(CURDIR)/.cache/oracle
PYROMANCY_ORACLE ?= $(ORACLE)
export PYROMANCY_ORACLE

ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help digits test check sanitize lint format bench docs wheel clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

digits: $(STAMP) ## train a network on scikit-learn's digits; ARGS="--epochs 3" goes to the example
	$(PY) examples/train_digits.py $(ARGS)

test: $(STAMP)-test | $(PYROMANCY_ORACLE) ## run the tests; PYTEST_ARGS="-k energy" goes to pytest
	$(PY) -m pytest $(PYTEST_ARGS)

check: $(STAMP)-dev | $(PYROMANCY_ORACLE) ## a minute's look before a commit: style, and one case of every test that is quick
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pytest -q --quick -n 2 $(PYTEST_ARGS)

sanitize: $(STAMP)-test ## tests of the compiled module with the compiler's sanitizers; takes a while
	bash tests/sanitize.sh $(PY)

lint: $(STAMP)-dev ## check style, format and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(if $(CPP),$(VENV)/bin/clang-format --dry-run -Werror $(CPP))
	$(PY) -m mypy

format: $(STAMP)-dev ## bring the code into the format that lint checks
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(if $(CPP),$(VENV)/bin/clang-format -i $(CPP))

bench: $(STAMP)-dev | $(PYROMANCY_ORACLE) ## run the benchmarks; BENCH_ARGS="-k estep" goes to pytest
	$(PY) -m pytest bench $$(test -d $(PYROMANCY_ORACLE) && echo --oracle $(PYROMANCY_ORACLE)) $(BENCH_ARGS)

docs: $(STAMP)-docs ## build the documentation into build/docs, with the gallery's scripts run
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs

wheel: $(STAMP) ## build a wheel for this Python into dist/
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

clean: ## remove what was built, but not the virtual environment
	rm -rf build dist docs/generated .cache .coverage .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf python/*.egg-info python/pyromancy/*.so $(STAMP) $(STAMP)-test $(STAMP)-dev $(STAMP)-docs
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pyromancy needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# An environment holds one checkout at a time: installing this one voids the stamps of the others.
$(STAMP): $(SOURCES) | $(PY)
	$(PIP) install 'setuptools>=77' ninja 'pybind11>=2.13' torch
	@echo 'Compiling takes some minutes, and pip says nothing until it is done; PYROMANCY_NATIVE=0 make ... does without, slower.'
	$(PIP) install --no-build-isolation -e '.[examples]'
	rm -f $(VENV)/.pyromancy-*
	touch $@

# The package is there already, so that this adds what its extra names and builds nothing again.
$(STAMP)-%: $(STAMP)
	$(PIP) install 'pyromancy-kernels[$*]'
	touch $@

# Without a network the comparison tests skip and say why. What it needs beside torch, the extras name: the folder may
# outlive the environment that fetched it.
$(ORACLE): | $(STAMP)
	@$(PIP) install -q --retries 1 --no-deps --target $@.part pyromancy-ai==0.0.1 && mv $@.part $@ \
	  || { rm -rf $@.part; echo "pyromancy-ai 0.0.1 could not be fetched: the tests that compare with it will skip"; }
