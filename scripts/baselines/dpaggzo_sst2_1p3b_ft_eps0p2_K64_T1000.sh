#!/usr/bin/env bash
# Table 3 + Appendix dpaggzo-parity, DP-AggZO K=64 FT @ ε=0.2
# Each value can be overridden: LR=1e-4 bash scripts/baselines/dpaggzo_sst2_1p3b_ft_eps0p2_K64_T1000.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_common.sh"
RUN_ID=${RUN_ID:-dpaggzo_sst2_1p3b_ft_eps0p2_K64_T1000}
TASK=${TASK:-SST2}
LOSS=${LOSS:-train_as_classification}
MODEL=${MODEL:-facebook/opt-1.3b}
DTYPE=${DTYPE:-auto}
OPT_BOS=${OPT_BOS:-<s>}
TRACK=${TRACK:-ft}
METHOD=${METHOD:-dp-aggzo}
DP_K=${DP_K:-64}
EPSILON=${EPSILON:-0.2}
DELTA=${DELTA:-1e-5}
SAMPLE_RATE=${SAMPLE_RATE:-0.064}
CLIP=${CLIP:-25}
LR=${LR:-5e-6}
LR_SCHEDULE=${LR_SCHEDULE:-constant}
STEPS=${STEPS:-1000}
EVAL_STEPS=${EVAL_STEPS:-200}
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
