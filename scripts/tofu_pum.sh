#!/usr/bin/env bash
# PUM: unlearn TOFU's forget set on perturbed, disguised copies and merge; then the table beside the plain runs.
# Each value can be overridden: PUM_COPIES_M=8 METHODS="NPO GradDiff" bash scripts/tofu_pum.sh
#   SMOKE=1 bash scripts/tofu_pum.sh     tiny models of the sample data; needs no download
# Lists of numbers or folders are YAML or JSON lists; null leaves a value open. Folders in a list are absolute.
set -euo pipefail
DEFAULT_METHODS=NPO # the inner handlers
source "$(dirname "${BASH_SOURCE[0]}")/_tofu.sh"

# Outer loop
PUM_COPIES_M=${PUM_COPIES_M:-4}
PUM_ROUNDS_R=${PUM_ROUNDS_R:-1}
PUM_ALPHA_MIN=${PUM_ALPHA_MIN:-1.0}
PUM_ALPHA_MAX=${PUM_ALPHA_MAX:-1.5}
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
PUM_PER_LAYER_NOISE=${PUM_PER_LAYER_NOISE:-true}
DP_EPSILON=${DP_EPSILON:-null}
DP_DELTA=${DP_DELTA:-null}
DP_RDP_ORDERS=${DP_RDP_ORDERS:-null}
DP_PER_LAYER_ALLOC=${DP_PER_LAYER_ALLOC:-auto}
DP_SENS_PER_LAYER_L2=${DP_SENS_PER_LAYER_L2:-null}
DP_SENS_TOTAL_L2=${DP_SENS_TOTAL_L2:-null}
DP_USE_WORSTCASE_ALPHA=${DP_USE_WORSTCASE_ALPHA:-true}
DP_ACCOUNTING=${DP_ACCOUNTING:-paper}
# Manual noise; where neither PUM_SIGMA nor a target is given, a share of the weights' root mean square
if [ -z "${PUM_SIGMA:-}" ] && [ "$DP_EPSILON" = null ]; then PUM_SIGMA_RMS=${PUM_SIGMA_RMS:-0.01}; fi
PUM_SIGMA=${PUM_SIGMA:-0.0}
PUM_SIGMA_RMS=${PUM_SIGMA_RMS:-null}
PUM_SIGMA_PER_LAYER=${PUM_SIGMA_PER_LAYER:-null}
# Inner unlearning and robustness
PUM_LOCAL_EPOCHS=${PUM_LOCAL_EPOCHS:-null}
PUM_LOCAL_MAX_STEPS=${PUM_LOCAL_MAX_STEPS:-null}
PUM_CLIP_UPDATE_NORM=${PUM_CLIP_UPDATE_NORM:-null}
PUM_CLIP_UPDATE_PER_LAYER=${PUM_CLIP_UPDATE_PER_LAYER:-null}
# Disguise
PUM_USE_REPARAM=${PUM_USE_REPARAM:-true}
SECRET_SEED=${SECRET_SEED:-null} # reproducible secrets for experiments: such a run is not private

pum() {
    run_module ${launcher[@]+"${launcher[@]}"} pum.run_pum "${options[@]}" --inner_handler "$method" \
        --copies_m "$PUM_COPIES_M" --rounds_R "$PUM_ROUNDS_R" \
        --alpha_min "$PUM_ALPHA_MIN" --alpha_max "$PUM_ALPHA_MAX" --eta_srv "$PUM_ETA_SRV" \
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
        --local_epochs "$PUM_LOCAL_EPOCHS" --local_max_steps "$PUM_LOCAL_MAX_STEPS" \
        --clip_update_norm "$PUM_CLIP_UPDATE_NORM" --clip_update_norm_per_layer "$PUM_CLIP_UPDATE_PER_LAYER" \
        --use_orthogonal_reparam "$PUM_USE_REPARAM" --secret_seed "$SECRET_SEED"
}

run_all pum _PUM
