#!/usr/bin/env bash
# Table 1, row FT · MI=0.33 · SST-2 1.3B
# Each value can be overridden: LR=1e-4 bash scripts/headline/sst2_1p3b_ft_pacmi_mi033_s0.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_common.sh"
RUN_ID=${RUN_ID:-sst2_1p3b_ft_pacmi_mi033_s0}
TASK=${TASK:-SST2}
LOSS=${LOSS:-train_as_classification}
MODEL=${MODEL:-facebook/opt-1.3b}
DTYPE=${DTYPE:-auto}
OPT_BOS=${OPT_BOS:-<s>}
TRACK=${TRACK:-ft}
METHOD=${METHOD:-pac-mi}
MI=${MI:-0.33}
PAC_CHARGE=${PAC_CHARGE:-real}
PAC_M=${PAC_M:-128}
PAC_K=${PAC_K:-1}
CLIP=${CLIP:-1000}
LR=${LR:-1e-4}
LR_SCHEDULE=${LR_SCHEDULE:-polynomial}
STEPS=${STEPS:-1000}
EVAL_STEPS=${EVAL_STEPS:-100}
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
