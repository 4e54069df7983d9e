# make setup   .venv with everything, from pinned versions; a second call does nothing
# make demo    the main job on the embedded pictures
# make test    the tests
# TORCH_INDEX=https://download.pytorch.org/whl/cpu make setup   takes torch from there (a CPU-only build)

PYTHON ?= python3.11
TORCH_INDEX ?=
UV = .venv/bin/python -m uv pip install --quiet --compile-bytecode --python .venv/bin/python --constraint constraints.txt

.PHONY: setup demo test lint

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(if $(TORCH_INDEX),$(UV) --index-url $(TORCH_INDEX) torch torchvision)
	$(UV) --editable '.[all,dev]'
	touch $@

demo: setup
	.venv/bin/python benchmarks/demo.py

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto
