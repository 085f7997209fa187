# MoE Lab: `make lab` and `make test` do everything from a fresh clone. Written for make 3.81 (macOS) and newer.
#
#   PYTHON=...       the Python to use (3.11 or newer); found if not given
#   TORCH_INDEX=...  pip index address for torch; see "Which torch" in README.md
#   LAB=...          flags for JupyterLab, such as LAB=--no-browser
#   DEMO=...         flags for the demo, such as DEMO='--bandwidth "50 MB/s" --tokens 200'
#   TESTS=...        what pytest runs, such as TESTS=tests/test_house.py

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
INDEX_SEEN := $(VENV)/.torch-index
TORCH := $(shell sed -n 's/^ *"torch>=\([0-9.]*\).*/\1/p' pyproject.toml)
TORCH_INDEX ?=
NOTEBOOK := notebooks/00_welcome.ipynb
# What test-quick leaves out beside the markers: files that take over five seconds each.
LONG := tests/engine/test_exactness.py tests/evaluation/test_sweep.py tests/evaluation/test_cluster.py tests/widgets \
        tests/test_terminal.py tests/test_readme.py tests/test_testing.py

.PHONY: help lab demo test test-quick test-slow notebooks lint install clean distclean chromium FORCE

help:
	@echo "make lab         install into $(VENV) and open JupyterLab on the welcome notebook"
	@echo "make demo        the pocket model writes under three settings, side by side, in this terminal"
	@echo "make test        all tests but the slow ones (under 15 minutes)"
	@echo "make test-quick  a subset: no browser, no kernel, nothing that takes long (under 90 seconds)"
	@echo "make test-slow   the rest"
	@echo "make notebooks   execute every notebook"
	@echo "make lint        ruff, mypy and the layers (import-linter)"
	@echo "make install     only make $(VENV), install everything into it and compile the kernels"
	@echo "make clean       remove caches and build outputs; make distclean: $(VENV) too"

# ------------------------------------------------------------------------------------------ set-up

install: $(STAMP)

# An index address other than the one torch came from last time installs torch anew.
ifneq ($(TORCH_INDEX),)
ifneq ($(TORCH_INDEX),$(shell cat $(INDEX_SEEN) 2>/dev/null))
$(STAMP): FORCE
endif
endif

$(STAMP): pyproject.toml
	@python="$(PYTHON)"; new='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if $(PY) -c "$$new" 2>/dev/null && $(PY) -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	if [ -z "$$python" ]; then \
	  for name in python3.11 python3.12 python3.13 python3 python; do \
	    if $$name -c "$$new" >/dev/null 2>&1; then python=$$name; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "MoE Lab needs Python 3.11 or newer and finds none. Debian/Ubuntu: apt-get install python3 python3-venv;" \
	       "macOS: brew install python@3.12; or name one: make lab PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c "$$new" >/dev/null 2>&1; then \
	  echo "PYTHON=$$python is not a Python 3.11 or newer; name another: make lab PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
	  echo "$$python has no venv module. Debian/Ubuntu: apt-get install $$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$python"; "$$python" -m venv --clear $(VENV)
ifneq ($(TORCH_INDEX),)
	@if [ "$$(cat $(INDEX_SEEN) 2>/dev/null)" != "$(TORCH_INDEX)" ]; then $(PY) -m pip uninstall -q -y torch 2>/dev/null || true; fi
	$(PY) -m pip install -q --disable-pip-version-check "torch==$(TORCH)" --index-url "$(TORCH_INDEX)"
	@echo "$(TORCH_INDEX)" > $(INDEX_SEEN)
else
	@if [ "$$(uname -s)" = Linux ] && ! $(PY) -c 'import torch' 2>/dev/null; then \
	  echo "installing torch $(TORCH) from pip's own index (if that is gigabytes of CUDA: Ctrl-C, and see 'Which torch' in README.md)"; fi
	$(PY) -m pip install -q --disable-pip-version-check "torch==$(TORCH)"
endif
	$(PY) -m pip install -q --disable-pip-version-check -e ".[lab,dev]"
	$(PY) -m moe_lab compile
	@touch $(STAMP)

FORCE:

# -------------------------------------------------------------------------------------------- use

lab: $(STAMP)
	$(PY) -m jupyterlab $$(test "$$(id -u)" = 0 && echo --allow-root) $(LAB) $(NOTEBOOK)

demo: $(STAMP)
	@$(PY) -m moe_lab demo $(DEMO)

# ------------------------------------------------------------------------------------------ checks

test: $(STAMP) chromium
	$(PY) -m pytest -m "not slow" $(TESTS)

test-quick: $(STAMP)
	$(PY) -m pytest -q -m "not slow and not browser and not notebook" $(if $(TESTS),,$(addprefix --ignore=,$(LONG))) $(TESTS)

test-slow: $(STAMP) chromium
	$(PY) -m pytest -m slow $(TESTS)

notebooks: $(STAMP)
	$(PY) -m pytest -m notebook tests/notebooks

chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  [ -d "/Applications/Chromium.app" ] || [ -d "/Applications/Google Chrome.app" ] || \
	  echo "no Chromium: browser tests will be skipped. Debian/Ubuntu: apt-get install chromium; macOS: brew install --cask chromium"

lint: $(STAMP)
	$(PY) -m ruff check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis node_modules
	find moe_lab widgets tests benchmarks notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)
