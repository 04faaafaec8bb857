# Every target sets itself up: a virtual environment in .venv, made by PYTHON (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Three workers for two cores, because some tests wait for other programs. A worker that dies ends
# the run: pytest-xdist might wait for ever for the rest of its file.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.PHONY: help table table-long test lint docs benchmark soak hostile setup clean

help:  # print the targets
	@sed -n 's/^\([a-z-]*\):.*  # \(.*\)/make \1\t\2/p' Makefile | expand -t 18

table: $(VENV)/.table  # train seven rows of the paper's Table 1 at a small size
	$(BIN)/python experiments/train_table.py

table-long: $(VENV)/.table  # all rows, longer, some with three seeds
	$(BIN)/python experiments/train_table.py --long

test: $(VENV)/.setup  # run the tests
	$(PYTEST) $(TESTS)

lint: $(VENV)/.setup  # check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.setup  # build the documentation in site/
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs site
	@echo "open site/index.html"

benchmark: $(VENV)/.setup  # time training steps, evaluation, generation and checkpoints
	$(BIN)/python experiments/benchmark.py

soak: $(VENV)/.setup  # run slow tests, kill training, cut its power, train for 200,000 steps: hours
	$(PYTEST) -m slow
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.soak --cluster --kills=20
	$(BIN)/python -m tests.soak.power
	$(BIN)/python -m tests.soak.hours

hostile: $(VENV)/.setup  # change files of every kind at random, 10,000 times each, and read them
	$(BIN)/python -m tests.soak.hostile

setup: $(VENV)/.setup  # make .venv with everything that development needs
	@echo "$(VENV) is ready: for example $(BIN)/block-recurrent --help"

# What the table needs; the rest is for those who change the code.
$(VENV)/.table: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3")'
	@echo "making $(VENV) with $(PYTHON) and installing jax, flax and the other required packages (some minutes)"
	@$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[data,plots]'
	@touch $@

$(VENV)/.setup: $(VENV)/.table
	@echo "installing the packages for data, plots, TensorBoard, documentation, tests and linters"
	$(INSTALL) '.[dev]'
	@touch $@

clean:  # remove .venv and everything that was built
	rm -rf $(VENV) *.egg-info build site
