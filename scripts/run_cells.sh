#!/usr/bin/env bash
# Runs every cell whose script matches: bash scripts/run_cells.sh 'plateau_*' [--gpus 0,1] [--slurm] [--list]
# Finished cells are skipped, a failure does not stop the others; exit code 1 and a list where some failed.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
unset DRY_RUN
choose_interpreter
export PYTHON
if [ -n "${MODEL:-}" ]; then export MODEL; fi
exec "$PYTHON" -m scripts.run_cells "$@"
