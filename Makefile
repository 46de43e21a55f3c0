# `make` lists the targets. Everything is installed into .venv; delete that folder to start again.
# Another Python: `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test

help:
	@echo "make demo     install, train HRANet for a few minutes on sample pictures, show the result"
	@echo "make test     install, run the whole test suite"
	@echo "make install  install into $(VENV); needs Python 3.10 or newer (docs/install.md)"

# A folder of its own with a Python that has pip: $(1). One that is there already is kept.
define CREATE_VENV
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
  { echo "$(PYTHON) is missing or older than 3.10. Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
  { echo "$(PYTHON) cannot make virtual environments. Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(1)
endef

install: $(INSTALLED)

demo: install
	$(VENV)/bin/python scripts/demo.py

# A worker for each core, four at most: each has torch in memory, and the largest pictures take 4 GB.
test: install
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# BasicSR 1.4.2 comes as source alone, and from Python 3.13 on its setup.py fails with KeyError: '__version__': exec()
# no longer leaves names in a function's locals() (PEP 667). There its wheel is built first, with an exec() that does.
# Goes with the first BasicSR release that has a wheel or builds on 3.13.
BASICSR_WHEEL := wheels/basicsr-1.4.2-py3-none-any.whl
BUILD := build/basicsr
define SITECUSTOMIZE
import builtins, sys
plain_exec = builtins.exec
def exec_in_frame(code, *namespaces, **options):
    if not (namespaces or options):
        frame = sys._getframe(1)
        namespaces = frame.f_globals, frame.f_locals
    plain_exec(code, *namespaces, **options)
builtins.exec = exec_in_frame
endef
export SITECUSTOMIZE
NEEDS_WHEEL := $(shell $(PYTHON) -c 'import sys; print("yes" * (sys.version_info >= (3, 13)))' 2>/dev/null)

$(BASICSR_WHEEL):
	$(call CREATE_VENV,$(BUILD))
	$(BUILD)/bin/python -m pip install -c constraints.txt setuptools
	@printf '%s\n' "$$SITECUSTOMIZE" > $(BUILD)/sitecustomize.py
	PYTHONPATH="$(CURDIR)/$(BUILD)" $(BUILD)/bin/python -m pip wheel --no-build-isolation --use-pep517 --no-deps \
	  -w $(@D) basicsr==1.4.2
	rm -rf $(BUILD)

# BasicSR asks for `opencv-python`, which needs libGL. A server or container has none: there the same OpenCV without
# windows is laid over it.
HEADLESS_OPENCV := python -m pip install --no-deps --force-reinstall -c constraints.txt opencv-python-headless

# Of the pip lines, the first and the last are docs/install.md's; tests/test_install.py compares them.
$(INSTALLED): setup.py pyproject.toml constraints.txt $(if $(NEEDS_WHEEL),$(BASICSR_WHEEL))
	$(call CREATE_VENV,$(VENV))
	$(VENV)/bin/python -m pip install -c constraints.txt setuptools
	$(if $(NEEDS_WHEEL),$(VENV)/bin/python -m pip install --no-deps $(BASICSR_WHEEL))
	$(VENV)/bin/python -m pip install --no-build-isolation --use-pep517 -c constraints.txt -e '.[dev]'
	@$(VENV)/bin/python -c 'import cv2' 2>/dev/null || $(VENV)/bin/$(HEADLESS_OPENCV)
	@touch $@
