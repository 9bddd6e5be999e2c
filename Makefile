# Needs nothing but make and Python 3.11 to 3.13: every target makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Set to nothing to try the newest versions: make test CONSTRAINTS=
CONSTRAINTS ?= -c constraints.txt
# dali is for a torch of CUDA 12, dali-cuda13 for one of CUDA 13, as constraints.txt has it.
DALI ?= dali-cuda13

.PHONY: help demo test damage gate check loaders browser format bench clean

help:
	@echo "make demo    pretrain on handwritten digits: three minutes on two CPU cores"
	@echo "make test    run the tests"
	@echo "make damage  the damage suite in full: 200 kills, 1,000 damaged images; a quarter of an hour"
	@echo "make gate    compare costs with their thresholds; run nothing else meanwhile"
	@echo "make check   format, lint and types, as CI does"
	@echo "make loaders install FFCV (with apt-get) and NVIDIA DALI beside the rest"
	@echo "make browser install Chromium (with apt-get) and playwright, for the test of the report in one"
	@echo "make format  fix format and lint"
	@echo "make bench   measure the loaders and their peers, render tables and charts"

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "fastsimsiam needs Python 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV) \
		|| { echo "python3 cannot make environments: on Debian, apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]' $(CONSTRAINTS)
	@touch $@

demo: $(BIN)/.installed
	@$(BIN)/python datasets/digits.py --dest data/digits
	@$(BIN)/fastsimsiam views data/digits --out runs/demo-views.png --recipe demo
	@rm -rf runs/demo
	@$(BIN)/fastsimsiam pretrain demo --data data/digits --out runs/demo
	@$(BIN)/fastsimsiam knn runs/demo --data data/digits --k 5 20 100
	@echo "pictures: runs/demo-views.png runs/demo/curves.png"

test: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

damage: $(BIN)/.installed
	FASTSIMSIAM_DAMAGE=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/damage
	OMP_NUM_THREADS=1 $(BIN)/python tests/damage_checkpoints.py 0 1000
	OMP_NUM_THREADS=1 $(BIN)/python tests/damage_beton.py 300 0

gate: $(BIN)/.installed
	$(BIN)/python -m pytest -m throughput

loaders: $(BIN)/.installed
	scripts/install_ffcv.sh $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[$(DALI)]' $(CONSTRAINTS)

browser: $(BIN)/.installed
	scripts/install_browser.sh $(BIN)/python

check: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: loaders
	$(BIN)/python -m pip install --quiet -e '.[bench]' $(CONSTRAINTS)
	$(BIN)/python -m benchmarks.loader --json benchmarks/results/loader.json
	$(BIN)/python -m benchmarks.render

clean:
	rm -rf $(VENV)
