#!/usr/bin/env bash
# Sets the project up with what its tests need, then runs linter, type checker and tests.
# Arguments go to pytest: bash scripts/test.sh -k mechanisms
# WORKERS: processes that share the test files, one thread each; default: one a processor.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    bash setup.sh --dev
    PYTHON=.venv/bin/python
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$PYTHON" -m pytest -n "${WORKERS:-auto}" --dist loadfile "$@"
