#!/usr/bin/env bash
# Runs every cell whose script matches: bash scripts/run_cells.sh 'plateau_*' [--gpus 0,1] [--list]
# Finished cells are skipped, a failure does not stop the others; exit code 1 and a list where some failed.
# As one Slurm array job, a task a cell, requeued tasks resumed: bash scripts/run_cells.sh --slurm PARTITION PATTERN
# [--cpu]; sbatch's own variables say the rest (SBATCH_TIMELIMIT, SBATCH_ACCOUNT, ...). DRY_RUN=1 prints the job.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
if on DRY_RUN; then set -- --list "$@"; fi
unset DRY_RUN
choose_interpreter
export PYTHON
if [ -n "${MODEL:-}" ]; then export MODEL; fi
exec "$PYTHON" -m scripts.run_cells "$@"
