#!/usr/bin/env bash
# A check of one to two minutes after set-up, on any machine, on SmolLM2-135M and the sample data: three PAC-MI steps,
# then PAC-ZPL with 64 exact directions a step, whose dev loss must fall; then PAC-ZPL learning a small problem.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

echo "== PAC-MI with LoRA: smollm2-135m on src/sample_data"
env -u DRY_RUN DATA_DIR="$here/../src/sample_data" MODEL=smollm2-135m SMOKE=1 RUN_ID="${RUN_ID:-smoke}" \
    bash "$here/headline/sst2_1p3b_lora_pacmi_mi033_s0.sh"

echo "== PAC-ZPL that abstains, 64 exact directions a step: smollm2-135m on src/sample_data"
run_id=${RUN_ID:-smoke}-directions
env -u DRY_RUN DATA_DIR="$here/../src/sample_data" MODEL=smollm2-135m RUN_ID="$run_id" METHOD=pac-zpl ABSTAIN=1 \
    DERIVATIVE=exact PAC_K=64 LR=1e-1 SMOKE=1 SMOKE_K=64 SMOKE_STEPS=4 SMOKE_NTRAIN=128 SMOKE_NDEV=60 \
    bash "$here/headline/sst2_1p3b_lora_pacmi_mi033_s0.sh"

echo "== PAC-ZPL learns a small problem"
source "$here/_common.sh"
run_module scripts.learning_check
