# Every target sets itself up: a virtual environment in .venv, made by PYTHON (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: table table-long test lint docs benchmark soak setup clean

table: $(VENV)/.table
	$(BIN)/python experiments/train_table.py

table-long: $(VENV)/.table
	$(BIN)/python experiments/train_table.py --long

# A worker that dies ends the run: pytest-xdist might wait for ever for the rest of its file.
test: $(VENV)/.setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

lint: $(VENV)/.setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.setup
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs site
	@echo "open site/index.html"

benchmark: $(VENV)/.setup
	$(BIN)/python experiments/benchmark.py

soak: $(VENV)/.setup
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.soak --cluster --kills=20

setup: $(VENV)/.setup

# What the table needs; the rest is for those who change the code.
$(VENV)/.table: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[plots]'
	touch $@

$(VENV)/.setup: $(VENV)/.table
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info site
