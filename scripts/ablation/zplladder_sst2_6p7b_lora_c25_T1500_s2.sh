#!/usr/bin/env bash
# Appendix Table zpl-67b-ladder, seed=2
# Each value can be overridden: LR=1e-4 bash scripts/ablation/zplladder_sst2_6p7b_lora_c25_T1500_s2.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_common.sh"
RUN_ID=${RUN_ID:-zplladder_sst2_6p7b_lora_c25_T1500_s2}
TASK=${TASK:-SST2}
LOSS=${LOSS:-train_as_classification}
MODEL=${MODEL:-facebook/opt-6.7b}
DTYPE=${DTYPE:-auto}
OPT_BOS=${OPT_BOS:-<s>}
TRACK=${TRACK:-lora}
LORA_R=${LORA_R:-8}
LORA_ALPHA=${LORA_ALPHA:-16}
LORA_LAYERS=${LORA_LAYERS:-all}
METHOD=${METHOD:-pac-zpl}
PAC_M=${PAC_M:-128}
PAC_K=${PAC_K:-1}
CLIP=${CLIP:-25}
LR=${LR:-1e-3}
LR_SCHEDULE=${LR_SCHEDULE:-polynomial}
STEPS=${STEPS:-1500}
EVAL_STEPS=${EVAL_STEPS:-100}
ZO_EPS=${ZO_EPS:-1e-3}
DERIVATIVE=${DERIVATIVE:-central}
NUM_TRAIN=${NUM_TRAIN:-1000}
NUM_DEV=${NUM_DEV:-500}
NUM_EVAL=${NUM_EVAL:-1000}
SEED=${SEED:-2}
RUN_SEED=${RUN_SEED:-42}
LOGGING_STEPS=${LOGGING_STEPS:-10}
REPORT_TO=${REPORT_TO:-none}
run_cell
