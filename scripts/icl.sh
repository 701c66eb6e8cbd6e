#!/usr/bin/env bash
# Evaluate a model as it is, zero-shot or with demonstrations in front of each prompt:
#   MODEL=facebook/opt-1.3b TASK=SST2 bash scripts/icl.sh
#   NUM_TRAIN=32 SFC=icl_sfc bash scripts/icl.sh
# NUM_TRAIN: demonstrations, 0 for zero-shot. TRAIN_SETS: so many draws of them, each evaluated.
# SFC: sfc or icl_sfc calibrates the scores by those of the prompt without its input.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
MODEL=${MODEL:-facebook/opt-1.3b}
DTYPE=${DTYPE:-auto}
OPT_BOS=${OPT_BOS:-<s>}
TASK=${TASK:-SST2}
NUM_TRAIN=${NUM_TRAIN:-0}
NUM_EVAL=${NUM_EVAL:-1000}
SEED=${SEED:-0}
TRAIN_SETS=${TRAIN_SETS:-}
SFC=${SFC:-}
RUN_ID=${RUN_ID:-icl-$TASK-$NUM_TRAIN${SFC:+-$SFC}}
options=()
if on SMOKE; then
    NUM_EVAL=${SMOKE_NEVAL:-4}
    options+=(--smoke)
fi
case "$SFC" in
    "") ;;
    sfc | icl_sfc) options+=("--$SFC") ;;
    *) fail "SFC=$SFC is unknown: use sfc or icl_sfc" ;;
esac
if [ -n "$TRAIN_SETS" ]; then
    options+=(--num_train_sets "$TRAIN_SETS")
elif [ "$NUM_TRAIN" != 0 ]; then
    options+=(--train_set_seed "$SEED")
fi
if on OVERWRITE; then options+=(--overwrite_output_dir); fi
run_module paczo.run_paczo --trainer none --output_dir "$OUT_BASE/$RUN_ID" \
    --task_name "$TASK" --model_name "$MODEL" --dtype "$DTYPE" --opt_bos "$OPT_BOS" \
    --num_train "$NUM_TRAIN" --num_eval "$NUM_EVAL" ${options[@]+"${options[@]}"}
