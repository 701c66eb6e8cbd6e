#!/usr/bin/env bash
# Everything that a CUDA machine should be asked, by one command, without network and with the data beside it:
#   PYTHON=python3 bash scripts/gpu_day.sh --minutes 14
# Tests that need CUDA, steps and exact derivatives on OPT's shapes, generation, several GPUs, SmolLM2's rows of the
# evidence tables. It stops in time, goes on where it stopped, and writes JSON and a page to result/gpu_day.
# Without CUDA it runs itself on tiny shapes. MODEL_DIR: a folder with SmolLM2-135M where its package is not installed.
# DATA_DIR: as for the cells; unset: the sample data. --list says what it would run, --only PATTERN ... runs some of it.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
if on DRY_RUN; then set -- --list "$@"; fi
unset DRY_RUN
choose_interpreter
exec "$PYTHON" -m scripts.gpu_day "$@"
