# make demo | make weights | make test | make lint
#
# PY=/path/to/python uses an environment that already has torch and Detectron2 (see README.md); otherwise .venv is
# made once and filled with the pinned requirements.

PYTHON ?= python3.11
VENV ?= .venv
PHANTOM_SEED ?= 1
SEED ?= 1
DEMO ?= output/demo
# Default weights: a folder with image/ and mask/, and which slices are of one patient (docs/weights.md)
LESIONS ?=
GROUPS ?=
WEIGHTS ?= output/weights
# Processes of the tests
JOBS ?= 2

ifeq ($(origin PY), undefined)
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
endif

.PHONY: demo weights test lint

demo: $(READY)
	$(PY) tools/demo.py --output $(DEMO) --phantom-seed $(PHANTOM_SEED) --seed $(SEED)

weights: $(READY)
	$(PY) docs/default_weights.py --output $(WEIGHTS) $(if $(LESIONS),--lesions $(LESIONS)) $(if $(GROUPS),--groups $(GROUPS))

test: $(READY)
	$(PY) -m pytest -n $(JOBS) --dist loadfile

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

$(VENV)/.installed: requirements.txt requirements-detectron2.txt setup.py
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no $(PYTHON) here; install Python 3.11, or name it with PYTHON=..." >&2; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check --upgrade --no-deps --require-hashes \
	  --only-binary=:all: --python-version 3.10 -r requirements-detectron2.txt \
	  --target "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
