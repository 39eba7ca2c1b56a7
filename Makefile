# `make serve` runs rerankd, `make test` and `make lint` check it. Each makes its own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that run the tests: one a core, at most four. `make test WORKERS=0` runs them in one process, and
# PYTEST_ARGS is passed on, as in `make test PYTEST_ARGS="tests/test_cli.py -x"`.
WORKERS ?= auto
PYTEST_ARGS ?=

.PHONY: serve test coverage docs site engine examples test-clients test-torch test-ray test-soak wheels lint release-check clean

serve: $(VENV)/installed
	@$(BIN)/rerankd serve

test: $(VENV)/installed-dev
	$(BIN)/pytest --numprocesses=$(WORKERS) --maxprocesses=4 --dist=loadfile $(PYTEST_ARGS)

# Which lines the tests run, in this process and in those that it starts. A report, not a gate.
coverage: $(VENV)/installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses=$(WORKERS) --maxprocesses=4 --dist=loadfile $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage html --quiet

# The parts of the documentation that say what the code says.
docs: $(VENV)/installed-dev
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python tests/clients/docs.py

# The documentation as pages, in site/. A broken link is an error.
site: .venv-site/installed
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build --strict --quiet

.venv-site/installed: pyproject.toml
	@$(PYTHON) -m venv .venv-site
	@.venv-site/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@.venv-site/bin/python -m pip install --quiet --disable-pip-version-check --group site
	@touch $@

# llama.cpp for this machine, for the tests that compare it with the bundled one. Some minutes, once: it is kept
# under .test-home, by its source and its flags.
engine: $(VENV)/installed
	RERANKD_HOME=.test-home/engine-build $(BIN)/rerankd engine build --backend cpu

# The clients that are too large for every run: some 1.5 GB of libraries, once.
test-clients: $(VENV)/installed-dev
	$(BIN)/python tests/clients/venvs.py small wide
	$(BIN)/pytest -m wide tests/clients

# The programs of examples/, in the environments of test-clients, with the built-in model.
examples: $(VENV)/installed-dev
	$(BIN)/pytest -m "wide or not wide" tests/clients/test_examples.py

# The golden values again, from the reference libraries on the CPU, and the tests of the PyTorch backend, which the
# other environment skips. 2 GB of libraries, once, if pip finds PyTorch's wheel for CPUs; with CUDA 5 GB more.
test-torch: .venv-torch/installed
	.venv-torch/bin/python scripts/make_golden.py --check
	.venv-torch/bin/python scripts/golden_modules.py --check
	.venv-torch/bin/python -m pytest --numprocesses=$(WORKERS) --maxprocesses=4 --dist=loadfile -k torch \
		tests/test_torch.py tests/test_tuning_torch.py tests/test_cross_encoder.py tests/test_deploy.py tests/faults/test_real_engine.py tests/backends $(PYTEST_ARGS)

.venv-torch/installed: scripts/requirements-torch.txt pyproject.toml
	@$(PYTHON) -m venv .venv-torch
	@.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check --requirement scripts/requirements-torch.txt
	@.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

# The service and the jobs on Ray, on a cluster of several nodes in this machine, one after the other: each has
# processes for more cores than most machines have. 800 MB of libraries, once.
test-ray: .venv-ray/installed
	.venv-ray/bin/python -m pytest -W ignore::ResourceWarning tests/test_ray_*.py $(PYTEST_ARGS)

.venv-ray/installed: pyproject.toml
	@$(PYTHON) -m venv .venv-ray
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[ray]' 'datasets>=4' --group dev
	@touch $@

# The long ones: minutes each, and a load for the whole machine.
test-soak: $(VENV)/installed-dev
	$(BIN)/pytest -m soak -s

# That each dependency has a wheel for Linux on aarch64 and macOS on arm64. Asks the package index.
wheels: $(VENV)/installed-dev
	$(BIN)/python scripts/platform_wheels.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

# What a release would hold: the source archive and the wheel, which is installed into an empty environment and asked
# for scores.
release-check: $(VENV)/installed-dev
	$(BIN)/python scripts/release_check.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("rerankd needs Python 3.11 or newer; name one with make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian and Ubuntu, apt install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "installing rerankd into $(VENV) …"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null  # uv's environments have none
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# pip 25.1 is the first to know dependency groups.
$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	@echo "installing what the tests need into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

clean:
	rm -rf $(VENV) .venv-clients .venv-ray .venv-site .venv-torch site .test-home .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
		.coverage .coverage.* htmlcov dist
