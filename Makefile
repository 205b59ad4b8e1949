# The whole vocabulary: demo test slow lint types bench docker clean. Each target makes its own environment in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := demo
BENCH  :=

.PHONY: demo test slow lint types bench docker clean

# constraints.txt pins what this project is tested with; users install with pyproject's bounds alone.
$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard pipeline/*.[ch] pipeline/svd/*.[ch] storage/*.c)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tilecov needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(BIN)/tilecov synth '$(DEMO)/shards/leaves-{000..003}.tar' --count 5000 --resolution 32
	$(BIN)/tilecov run '$(DEMO)/shards/leaves-{000..003}.tar' --resolution 32 --out $(DEMO)/run
	$(BIN)/tilecov verify $(DEMO)/run
	$(BIN)/python tests/demo/picture.py $(DEMO)/run '$(DEMO)/shards/leaves-000.tar' $(DEMO)/picture.png

test: $(VENV)/.installed
	$(BIN)/pytest

slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot see through an editable install, so it checks an installed copy.
types: $(VENV)/.installed
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p tilecov.pipeline -p tilecov.storage

# tilecov beside its peers: make bench BENCH='--table covariance --rounds 5'; --help lists more. The peers have an
# environment of their own, which sees what is in .venv, so that torch is installed once.
$(VENV)/bench/.installed: $(VENV)/.installed pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)/bench
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(VENV)/bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tilecov-environment.pth"
	$(VENV)/bench/bin/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(VENV)/bench/bin/pip install --quiet --constraint constraints.txt --no-deps litdata
	touch $@

bench: $(VENV)/bench/.installed
	$(VENV)/bench/bin/python tests/bench/peers.py $(BENCH)

# Builds the image and runs compose with it, on the engine that docker reaches, or as root on one of its own.
docker: $(VENV)/.installed
	$(BIN)/pytest -m 'slow or not slow' tests/docker

clean:
	rm -rf $(VENV) $(DEMO) bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
