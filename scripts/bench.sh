#!/usr/bin/env bash
# Times one zeroth-order step beside a plain reference, or with another word first something else:
#   bash scripts/bench.sh --shape opt-125m --n 64 --track lora --dtype float32
#   bash scripts/bench.sh generation --model smollm2-135m         greedy generation, beside the library's
#   bash scripts/bench.sh directions --model smollm2-135m --k 64  exact derivatives along K directions
#   bash scripts/bench.sh precision --model smollm2-135m          how true derivatives are in each precision
#   bash scripts/bench.sh parties                                 PUM: memory by copies, of a merge; time on two processes
#   bash scripts/bench.sh tracks --model smollm2-135m             what each track trains, keeps and costs
# DATA_DIR gives the lengths (sst2) or the questions (squad); unset: the sample data.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
module=scripts.bench
case "${1:-}" in
    generation | directions | precision | parties | tracks)
        module=scripts.bench_$1
        shift
        ;;
esac
if [ -n "${DATA_DIR:-}" ]; then set -- --data_dir "$DATA_DIR" "$@"; fi
run_module "$module" "$@"
