#!/usr/bin/env bash
# MeZO, RTE, ft: rates tried: 1e-6, 1e-7
# Each value can be overridden: LR=1e-4 bash scripts/mezo/mezo_rte_13b_ft.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_common.sh"
RUN_ID=${RUN_ID:-mezo_rte_13b_ft}
TASK=${TASK:-RTE}
LOSS=${LOSS:-train_as_classification}
MODEL=${MODEL:-facebook/opt-13b}
DTYPE=${DTYPE:-auto}
OPT_BOS=${OPT_BOS:-<s>}
TRACK=${TRACK:-ft}
METHOD=${METHOD:-mezo}
BATCH=${BATCH:-16}
LR=${LR:-1e-6}
LR_SCHEDULE=${LR_SCHEDULE:-constant}
STEPS=${STEPS:-20000}
EVAL_STEPS=${EVAL_STEPS:-4000}
ZO_EPS=${ZO_EPS:-1e-3}
DERIVATIVE=${DERIVATIVE:-central}
NUM_TRAIN=${NUM_TRAIN:-1000}
NUM_DEV=${NUM_DEV:-500}
NUM_EVAL=${NUM_EVAL:-1000}
SEED=${SEED:-0}
RUN_SEED=${RUN_SEED:-42}
LOGGING_STEPS=${LOGGING_STEPS:-10}
REPORT_TO=${REPORT_TO:-none}
run_cell
