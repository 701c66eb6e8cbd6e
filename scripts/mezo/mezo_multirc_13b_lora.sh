#!/usr/bin/env bash
# MeZO, MultiRC, lora: rates tried: 1e-4, 5e-5
# Each value can be overridden: LR=1e-4 bash scripts/mezo/mezo_multirc_13b_lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_common.sh"
RUN_ID=${RUN_ID:-mezo_multirc_13b_lora}
TASK=${TASK:-MultiRC}
LOSS=${LOSS:-train_as_classification}
MODEL=${MODEL:-facebook/opt-13b}
DTYPE=${DTYPE:-auto}
OPT_BOS=${OPT_BOS:-<s>}
TRACK=${TRACK:-lora}
LORA_R=${LORA_R:-8}
LORA_ALPHA=${LORA_ALPHA:-16}
LORA_LAYERS=${LORA_LAYERS:-all}
METHOD=${METHOD:-mezo}
BATCH=${BATCH:-16}
LR=${LR:-1e-4}
LR_SCHEDULE=${LR_SCHEDULE:-constant}
STEPS=${STEPS:-20000}
EVAL_STEPS=${EVAL_STEPS:-4000}
ZO_EPS=${ZO_EPS:-1e-2}
DERIVATIVE=${DERIVATIVE:-central}
NUM_TRAIN=${NUM_TRAIN:-1000}
NUM_DEV=${NUM_DEV:-500}
NUM_EVAL=${NUM_EVAL:-1000}
SEED=${SEED:-0}
RUN_SEED=${RUN_SEED:-42}
LOGGING_STEPS=${LOGGING_STEPS:-10}
REPORT_TO=${REPORT_TO:-none}
run_cell
