# The commands of a working day. `make test` is what CI runs; `make test-fast` is for between two edits.
.PHONY: setup test test-fast lint

PYTHON = .venv/bin/python

setup:
	sh setup.sh

# All but what is marked `slow`, with MPI and SLURM: under 10 minutes on 2 idle cores.
test: setup
	. .venv/bin/activate && python -m pytest

# Without MPI, SLURM and whole runs: under 90 seconds on 2 idle cores.
test-fast: setup
	. .venv/bin/activate && python -m pytest -q -m 'not slow and not integration and not mpi and not slurm'

lint: setup
	. .venv/bin/activate && ruff check . && ruff format --check . && lint-imports --no-logo && mypy

