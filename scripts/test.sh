#!/usr/bin/env bash
# Sets the project up with what its tests need, then runs linter, type checker and tests.
# Arguments go to pytest: bash scripts/test.sh -k mechanisms
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    bash setup.sh --dev
    PYTHON=.venv/bin/python
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest "$@"
