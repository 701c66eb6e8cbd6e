#!/usr/bin/env bash
# Rows of runs that take hours; each start goes on where the last one stopped:
#   DATA_DIR=... bash scripts/evidence.sh sst2 --hours 12    SmolLM2-135M on SST-2, method by method
#   DATA_DIR=... bash scripts/evidence.sh tofu --hours 8 --output_dir result/mine    SmolLM2-135M unlearns TOFU's
#                                                            authors, plain and with PUM, from models of its own
#       --precision float32    where a processor multiplies no bfloat16
#       --rates_of FILE        each method at the rate that an earlier plan's JSON found best
#   bash scripts/evidence.sh kappa                           what PUM's noise costs each method; minutes, tiny models
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
case "${1:-}" in
    sst2 | tofu | kappa) module=scripts.evidence_$1 ;;
    *) fail "name a table: sst2, tofu or kappa" ;;
esac
shift
run_module "$module" "$@"
