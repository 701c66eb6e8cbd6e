#!/usr/bin/env bash
# Times one zeroth-order step, or with the word "generation" first the greedy generation, beside a plain reference.
#   bash scripts/bench.sh --shape opt-125m --n 64 --track lora --dtype float32
#   DATA_DIR=/my/data bash scripts/bench.sh generation --model smollm2-135m
# DATA_DIR gives the lengths (sst2) or the questions (squad); unset: the sample data.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
module=scripts.bench
if [ "${1:-}" = generation ]; then
    module=scripts.bench_generation
    shift
fi
if [ -n "${DATA_DIR:-}" ]; then set -- --data_dir "$DATA_DIR" "$@"; fi
run_module "$module" "$@"
