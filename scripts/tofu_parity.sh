#!/usr/bin/env bash
# Ours beside open-unlearning's published numbers: evaluate its published models on a CUDA machine with the hub.
#   FAMILY=Llama-2-7b-chat-hf SPLITS=forget10 bash scripts/tofu_parity.sh
#   UNLEARN=1    also unlearn the family's full model with the METHODS that numbers are published of (NPO GradDiff RMU)
#   SMOKE=1      the same path on tiny models of the sample data; of these nothing is published
set -euo pipefail
DEFAULT_METHODS="NPO GradDiff RMU"
FAMILY=${FAMILY:-Llama-3.2-1B-Instruct}
MODELS=${MODELS:-open-unlearning/tofu_${FAMILY}_full}
DTYPE=${DTYPE:-bfloat16} # open-unlearning's
if [ -n "${SMOKE:-}" ] && [ "$SMOKE" != 0 ]; then DTYPE=float32; fi
source "$(dirname "${BASH_SOURCE[0]}")/_tofu.sh"

for split in $SPLITS; do
    common_options
    where=()
    log=$OUTPUT/parity/${FAMILY}_${split}_retain/evals/TOFU_EVAL.json
    if [ -n "$smoke" ]; then
        make_tiny
        where=(--models "$made")
    fi
    parity=(pum.parity --model_family "$FAMILY" --output_dir "$OUTPUT/parity" "${common[@]}" ${where[@]+"${where[@]}"})
    (run_module "${parity[@]}")
    if on UNLEARN; then
        RETAIN_LOG=$log SPLITS=$split DTYPE=$DTYPE OUTPUT=$OUTPUT METHODS=$METHODS MODELS=$MODELS \
            bash "$here/tofu_unlearn.sh"
        (run_module "${parity[@]}" --unlearned "$OUTPUT/unlearn")
    fi
done
