#!/usr/bin/env bash
# A check of one to two minutes after set-up, on any machine: three PAC-MI steps with LoRA on SmolLM2-135M and
# the sample data, then PAC-ZPL learning a small problem.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

echo "== PAC-MI with LoRA: smollm2-135m on src/sample_data"
env -u DRY_RUN DATA_DIR="$here/../src/sample_data" MODEL=smollm2-135m SMOKE=1 RUN_ID="${RUN_ID:-smoke}" \
    bash "$here/headline/sst2_1p3b_lora_pacmi_mi033_s0.sh"

echo "== PAC-ZPL learns a small problem"
source "$here/_common.sh"
run_module scripts.learning_check
