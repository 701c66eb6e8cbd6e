#!/usr/bin/env bash
# PUM: unlearn TOFU's forget set on perturbed, disguised copies and merge; then the table beside the plain runs.
# Each value can be overridden: PUM_COPIES_M=8 METHODS="NPO GradDiff" bash scripts/tofu_pum.sh
#   SMOKE=1 bash scripts/tofu_pum.sh       tiny models of the sample data; needs no download
#   PRESET=mpu bash scripts/tofu_pum.sh    the choices of the paper's code: two copies, alphas 1 + k/(m-1), disguises,
#                                          rounds and epochs by method, a constant rate, theta_0 as the reference
# Defaults are the guide's. Lists of numbers or folders are YAML or JSON lists; null leaves a value open. Folders in a
# list are absolute.
set -euo pipefail
DEFAULT_METHODS=NPO # the inner handlers
source "$(dirname "${BASH_SOURCE[0]}")/_tofu.sh"

case "${PRESET:-}" in
    "") ;;
    mpu)
        PUM_COPIES_M=${PUM_COPIES_M:-2}
        PUM_ALPHAS=${PUM_ALPHAS:-fixed}
        PUM_USE_REPARAM=${PUM_USE_REPARAM:-true}
        PUM_REFERENCE=${PUM_REFERENCE:-server}
        LR_SCHEDULE=${LR_SCHEDULE:-constant}
        WARMUP_EPOCHS=${WARMUP_EPOCHS:-0}
        ;;
    *) fail "PRESET=$PRESET is unknown: use mpu, or leave it out" ;;
esac
# Rounds and epochs a copy that the paper's code has for a method, where neither is given.
by_method=""
if [ -n "${PRESET:-}" ] && [ -z "${PUM_ROUNDS_R:-}${PUM_LOCAL_EPOCHS:-}" ]; then by_method=1; fi

# Outer loop
PUM_COPIES_M=${PUM_COPIES_M:-4}
PUM_ROUNDS_R=${PUM_ROUNDS_R:-1}
PUM_ALPHA_MIN=${PUM_ALPHA_MIN:-1.0}
PUM_ALPHA_MAX=${PUM_ALPHA_MAX:-1.0}
PUM_ALPHAS=${PUM_ALPHAS:-uniform} # or fixed: 1 + k/(m-1)
PUM_ETA_SRV=${PUM_ETA_SRV:-1.0}
# Publication centre, reference, jitter
PUM_THETA_REF_BETA=${PUM_THETA_REF_BETA:-0.8}
PUM_SERVER_CENTER_CLIP=${PUM_SERVER_CENTER_CLIP:-null}
PUM_CENTER_CLIP_C_PER_LAYER=${PUM_CENTER_CLIP_C_PER_LAYER:-null}
PUM_CENTER_CLIP_C_GLOBAL=${PUM_CENTER_CLIP_C_GLOBAL:-null}
PUM_JITTER_TAU=${PUM_JITTER_TAU:-0.0}
PUM_CENTER_CLIP_Q=${PUM_CENTER_CLIP_Q:-0.95}
PUM_CENTER_CLIP_KAPPA=${PUM_CENTER_CLIP_KAPPA:-1.25}
PUM_CENTER_CLIP_GAMMA=${PUM_CENTER_CLIP_GAMMA:-1.3}
PUM_CENTER_CLIP_REF_MODELS=${PUM_CENTER_CLIP_REF_MODELS:-null}
PUM_CENTER_REFERENCE=${PUM_CENTER_REFERENCE:-null} # public model that the first round clips around
# Calibrated noise
PUM_PER_LAYER_NOISE=${PUM_PER_LAYER_NOISE:-false}
DP_EPSILON=${DP_EPSILON:-null}
DP_DELTA=${DP_DELTA:-null}
DP_RDP_ORDERS=${DP_RDP_ORDERS:-[1.5,2,3,4,8,16,32,64,128]}
DP_PER_LAYER_ALLOC=${DP_PER_LAYER_ALLOC:-auto}
DP_SENS_PER_LAYER_L2=${DP_SENS_PER_LAYER_L2:-null}
DP_SENS_TOTAL_L2=${DP_SENS_TOTAL_L2:-null}
DP_USE_WORSTCASE_ALPHA=${DP_USE_WORSTCASE_ALPHA:-true}
DP_ACCOUNTING=${DP_ACCOUNTING:-paper}
# Manual noise. PUM_KAPPA: in each layer this share of the RMS of theta - BASE_MODEL, where nothing else is given
if [ -z "${PUM_SIGMA:-}${PUM_SIGMA_RMS:-}${PUM_SIGMA_PER_LAYER:-}" ] && [ "$DP_EPSILON" = null ]; then
    PUM_KAPPA=${PUM_KAPPA:-0.01}
fi
PUM_KAPPA=${PUM_KAPPA:-null}
PUM_SIGMA=${PUM_SIGMA:-0.0}
PUM_SIGMA_RMS=${PUM_SIGMA_RMS:-null} # a share of all weights' RMS
PUM_SIGMA_PER_LAYER=${PUM_SIGMA_PER_LAYER:-null}
# Inner unlearning and robustness
PUM_LOCAL_EPOCHS=${PUM_LOCAL_EPOCHS:-null} # epochs a copy; null: the plain run's steps, shared out to the rounds
PUM_LOCAL_MAX_STEPS=${PUM_LOCAL_MAX_STEPS:-null}
PUM_REFERENCE=${PUM_REFERENCE:-copy} # of NPO, DPO, UNDIAL; or server: theta_0 itself
PUM_CLIP_UPDATE_NORM=${PUM_CLIP_UPDATE_NORM:-null}
PUM_CLIP_UPDATE_PER_LAYER=${PUM_CLIP_UPDATE_PER_LAYER:-null}
# Disguise
PUM_USE_REPARAM=${PUM_USE_REPARAM:-false}
SECRET_SEED=${SECRET_SEED:-null} # reproducible secrets for experiments: such a run is not private

pum() {
    local kappa_base=null rounds=$PUM_ROUNDS_R epochs=$PUM_LOCAL_EPOCHS
    if [ "$PUM_KAPPA" != null ] && [ -n "$base" ]; then kappa_base=$base; fi
    if [ -n "$by_method" ]; then
        case "$method" in
            SimNPO | DPO | SatImp) rounds=10 epochs=1 ;;
            NPO | WGA) rounds=2 epochs=5 ;;
            *) rounds=1 epochs=10 ;;
        esac
    fi
    run_module ${launcher[@]+"${launcher[@]}"} pum.run_pum "${options[@]}" --inner_handler "$method" \
        --copies_m "$PUM_COPIES_M" --rounds_R "$rounds" \
        --alpha_min "$PUM_ALPHA_MIN" --alpha_max "$PUM_ALPHA_MAX" --alphas "$PUM_ALPHAS" \
        --eta_srv "$PUM_ETA_SRV" \
        --theta_ref_beta "$PUM_THETA_REF_BETA" --server_center_clipping "$PUM_SERVER_CENTER_CLIP" \
        --center_clip_C_per_layer "$PUM_CENTER_CLIP_C_PER_LAYER" \
        --center_clip_C_global "$PUM_CENTER_CLIP_C_GLOBAL" --jitter_tau "$PUM_JITTER_TAU" \
        --center_clip_quantile_q "$PUM_CENTER_CLIP_Q" --center_clip_quantile_kappa "$PUM_CENTER_CLIP_KAPPA" \
        --center_clip_round_gamma "$PUM_CENTER_CLIP_GAMMA" \
        --center_clip_ref_model_paths "$PUM_CENTER_CLIP_REF_MODELS" \
        --center_reference_model_path "$(from_caller "$PUM_CENTER_REFERENCE")" \
        --per_layer_noise "$PUM_PER_LAYER_NOISE" --dp_epsilon "$DP_EPSILON" --dp_delta "$DP_DELTA" \
        --dp_rdp_orders "$DP_RDP_ORDERS" --dp_per_layer_allocation "$DP_PER_LAYER_ALLOC" \
        --dp_sensitivity_per_layer_l2 "$DP_SENS_PER_LAYER_L2" --dp_sensitivity_total_l2 "$DP_SENS_TOTAL_L2" \
        --dp_use_worstcase_alpha "$DP_USE_WORSTCASE_ALPHA" --dp_accounting "$DP_ACCOUNTING" \
        --sigma "$PUM_SIGMA" --sigma_rms "$PUM_SIGMA_RMS" --sigma_per_layer "$PUM_SIGMA_PER_LAYER" \
        --kappa "$PUM_KAPPA" --kappa_base_model_path "$kappa_base" \
        --local_epochs "$epochs" --local_max_steps "$PUM_LOCAL_MAX_STEPS" --client_reference "$PUM_REFERENCE" \
        --clip_update_norm "$PUM_CLIP_UPDATE_NORM" --clip_update_norm_per_layer "$PUM_CLIP_UPDATE_PER_LAYER" \
        --use_orthogonal_reparam "$PUM_USE_REPARAM" --secret_seed "$SECRET_SEED"
}

run_all pum _PUM
