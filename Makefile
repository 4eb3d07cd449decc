# make sweep   set up .venv and run the main job
# make test    set up .venv and pass the tests
# make docs    write the documentation as a site, build/site/docs/index.html
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test fast lint types docs smoke clean

sweep: .venv/ready
	$(BIN)/python run.py -m model=alexnet,resnet18,mobilenetv3 precision=int8,fp16

# One thread a process: several that each take all CPUs would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: .venv/ready
	$(PYTEST)

fast: .venv/ready
	$(PYTEST) -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -b html . build/site

smoke: .venv/ready
	$(BIN)/python run.py sweep=smoke

# The sources are compiled here: containers often forbid Python to write what it compiles, at every start anew.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q src
	touch $@

clean:
	rm -rf .venv multirun mlruns mlflow.db
