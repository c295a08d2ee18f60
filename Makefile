# make demo   the main job, from nothing, in about two minutes after set-up
# make test   every check, from nothing; with root it installs the peers it needs
# make train-test   the tests of the training scripts, in a .venv-train with torch
#
# The first two make their own .venv. REQUIRE_PEERS=1 turns a skipped peer test into a failure.
# TORCH names the torch to install: without a GPU, TORCH="torch --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRAIN_VENV := .venv-train
TORCH ?= torch
SHELL := /bin/bash
SOURCES := $(shell find dicom_node engines conf demo -type f ! -name '*.pyc' 2>/dev/null)
PEERS := storescu storescp echoscu findscu movescu getscu dcmdump dcmconv dciodvfy Orthanc initdb rsyslogd \
    openssl chromium pdfinfo
PEER_PACKAGES := dcmtk orthanc dicom3tools postgresql rsyslog rsyslog-gnutls openssl chromium poppler-utils fonts-dejavu-core

# Workers are the parallelism: spinning threads on shared cores cost a factor of six.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test train-test lint types layers compiled unit peers clean

demo: $(VENV)/.installed
	$(BIN)/dicom-node demo

test: $(VENV)/.installed $(VENV)/.watermark-peers peers
	$(MAKE) -j2 types compiled
	$(MAKE) lint layers unit

lint: $(VENV)/.installed
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy --strict

layers: $(VENV)/.installed
	$(BIN)/lint-imports

# One process compiles the loops over samples, and the tests themselves; three at once would each do it.
compiled: $(VENV)/.installed
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest -q -k test_compiled.py

# A safe path keeps the work tree out of it: what is installed is tested. A crashed worker ends it.
unit: $(VENV)/.installed
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest -n 3 --dist loadgroup --max-worker-restart=0

$(VENV)/.installed: pyproject.toml $(SOURCES)
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    test "$$(id -u)" = 0 || { echo "as root: apt-get install python3-venv" >&2; exit 1; }; \
	    apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '.[dev]'
	touch $@

# torch is large, so it is no part of `make test`, where these tests are skipped.
train-test: $(TRAIN_VENV)/.installed
	$(TRAIN_VENV)/bin/python -m pytest tests/unit/training

$(TRAIN_VENV)/.installed: pyproject.toml $(SOURCES)
	test -x $(TRAIN_VENV)/bin/pip || $(PYTHON) -m venv --clear $(TRAIN_VENV)
	$(TRAIN_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(TRAIN_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(TRAIN_VENV)/bin/python -m pip install --quiet '.[train]' 'hypothesis>=6.100' 'pytest>=8.2' 'pytest-timeout>=2.3'
	touch $@

# What robustness is compared with; without their own dependencies, which we have or do not call.
$(VENV)/.watermark-peers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps invisible-watermark blind-watermark
	touch $@

# The peers are real ones; without root their tests are skipped, and that is said.
peers:
	@missing=(); for tool in $(PEERS); do PATH=$$PATH:/usr/sbin:$$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1) command -v $$tool >/dev/null || missing+=($$tool); done; \
	if [ $${#missing[@]} -eq 0 ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $(PEER_PACKAGES) for the peer tests (missing: $${missing[*]})"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PEER_PACKAGES) >/dev/null; \
	elif [ -n "$(REQUIRE_PEERS)" ]; then \
	    echo "missing: $${missing[*]}; install $(PEER_PACKAGES)" >&2; exit 1; \
	else \
	    echo "***************************************************************************" >&2; \
	    echo "* PEER TESTS WILL BE SKIPPED: no $${missing[*]}" >&2; \
	    echo "* as root: apt-get install $(PEER_PACKAGES)" >&2; \
	    echo "***************************************************************************" >&2; \
	fi

clean:
	rm -rf $(VENV) $(TRAIN_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
