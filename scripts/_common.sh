# Sourced by every cell script: sets the project up, then runs the cell from the variables the script has set.
#
#   SMOKE=1        shrinks the run; SMOKE_STEPS, SMOKE_EVAL (steps between evaluations), SMOKE_NTRAIN,
#                  SMOKE_NDEV, SMOKE_NEVAL, SMOKE_NEW_TOKENS (of a generated answer), SMOKE_K (directions a
#                  step, at most) and SMOKE_BATCH (tokens of a micro-batch) say how far
#   DRY_RUN=1      prints the command and runs nothing
#   DATA_DIR       folder with <task>/<split>.jsonl; unset: the Hugging Face hub
#   LOSS           train_as_classification, non_diff (SQuAD, DROP), only_train_option or full_text
#   SEED           of the draw of train, dev and test samples; RUN_SEED: of directions, adapters and membership
#   NUM_DEV=0      no dev set: the model after the last step is tested
#   TRAIN_ON=dev   trains on the public dev set alone, a baseline
#   DERIVATIVE     central (the paper's) or exact; ABSTAIN=1: PAC-ZPL releases 0 where the subsets disagree
#   RUN_ID         name of the folder in OUT_BASE, which is result/runs
#   OVERWRITE=1    replaces the run in that folder
#   RESUME=1       goes on with the interrupted run in that folder
#   NUM_GPUS       processes that share the samples, one a GPU
#   PYTHON         interpreter to run; unset: .venv, made on first use
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

# Whether a switch is on: set, and not to 0.
on() { [ -n "${!1:-}" ] && [ "${!1}" != 0 ]; }

# A path given relative to the caller's folder, as an absolute one; anything else as it is.
absolute() {
    local folder
    if [ ! -e "$1" ]; then
        echo "$1"
        return
    fi
    folder=$(cd "$(dirname "$1")" && pwd)
    echo "${folder%/}/$(basename "$1")"
}

if [ -n "${DATA_DIR:-}" ]; then
    [ -d "$DATA_DIR" ] || fail "DATA_DIR=$DATA_DIR is no folder"
    DATA_DIR=$(cd "$DATA_DIR" && pwd)
    export DATA_DIR
fi
if [ -n "${MODEL:-}" ]; then MODEL=$(absolute "$MODEL"); fi
case "${OUT_BASE:=result/runs}" in /* | result/runs) ;; *) OUT_BASE=$PWD/$OUT_BASE ;; esac

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

# Set the project up unless PYTHON is given.
choose_interpreter() {
    if [ -z "${PYTHON:-}" ]; then
        bash "$ROOT/setup.sh"
        PYTHON=$ROOT/.venv/bin/python
    fi
    command -v "$PYTHON" > /dev/null || fail "PYTHON=$PYTHON is no interpreter"
}

# Run a Python module of the project; with DRY_RUN print the command, quoted for the shell.
run_module() {
    if on DRY_RUN; then
        printf 'python -m'
        printf ' %q' "$@"
        printf '\n'
        return
    fi
    choose_interpreter
    TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-true} exec "$PYTHON" -m "$@"
}

# Smaller numbers for a check. A generated token costs far more than a scored one, so such tasks get fewer samples;
# of the others all but SST2 have two dozen rows of sample data.
shrink() {
    local train=8 held_out=4
    case "$TASK" in
        SST2 | sst2) train=32 held_out=16 ;;
        SQuAD | squad | DROP | drop) train=4 held_out=2 ;;
    esac
    STEPS=${SMOKE_STEPS:-3}
    EVAL_STEPS=${SMOKE_EVAL:-$STEPS}
    NUM_TRAIN=${SMOKE_NTRAIN:-$train}
    NUM_DEV=${SMOKE_NDEV:-$held_out}
    NUM_EVAL=${SMOKE_NEVAL:-$held_out}
    if [ -n "${MAX_NEW_TOKENS:-}" ]; then MAX_NEW_TOKENS=${SMOKE_NEW_TOKENS:-8}; fi
    local name
    for name in PAC_K DP_K; do
        if [[ "${!name:-1}" =~ ^[0-9]+$ ]] && [ "${!name:-1}" -gt "${SMOKE_K:-4}" ]; then
            printf -v "$name" %s "${SMOKE_K:-4}"
        fi
    done
}

# A cell script shows what its own method and track need; a METHOD or TRACK from outside may need more.
need() {
    local chosen=$1 name
    shift
    for name in "$@"; do [ -n "${!name:-}" ] || fail "$chosen needs $name, which this script does not set"; done
}

# Whether there is a dev set to choose the best checkpoint by.
has_dev() { [ "$NUM_DEV" != 0 ] && [ "${TRAIN_ON:-train}" = train ]; }

# Each of these adds options to the array of its caller.
pac_options() {
    need "METHOD=$METHOD" PAC_M PAC_K CLIP
    case "$METHOD" in
        pac-mi)
            need "METHOD=$METHOD" MI
            options+=(--pac_mi "$MI")
            ;;
        pac-zpl)
            options+=(--pac_zpl)
            if on ABSTAIN; then options+=(--pac_zpl_abstain); fi
            ;;
        non-private) options+=(--no_privacy --ablation "${ABLATION:-none}") ;;
    esac
    if [ -n "${PAC_CHARGE:-}" ]; then options+=(--pac_charge "$PAC_CHARGE"); fi
    options+=(--pac_m "$PAC_M" --pac_k "$PAC_K" --pac_clip "$CLIP")
    if has_dev; then options+=(--pac_load_best_dev); fi
    if [ -n "${SECRET_SEED:-}" ]; then options+=(--pac_secret_seed "$SECRET_SEED"); fi
}

dp_options() {
    need "METHOD=$METHOD" DP_K EPSILON DELTA SAMPLE_RATE CLIP
    options+=(--dp_k "$DP_K" --dp_epsilon "$EPSILON" --dp_delta "$DELTA" --dp_sample_rate "$SAMPLE_RATE")
    options+=(--dp_clip "$CLIP")
    if has_dev; then options+=(--dp_load_best_dev); fi
    if [ -n "${SECRET_SEED:-}" ]; then options+=(--dp_secret_seed "$SECRET_SEED"); fi
}

mezo_options() {
    need "METHOD=$METHOD" BATCH
    options+=(--zo_batch_size "$BATCH")
    if has_dev; then
        options+=(--load_best_model_at_end --eval_strategy steps --save_strategy steps --save_steps "$EVAL_STEPS")
    fi
}

task_options() {
    case "$LOSS" in
        train_as_classification | non_diff | only_train_option) options+=("--$LOSS") ;;
        full_text) options+=(--only_train_option False) ;;
        *) fail "LOSS=$LOSS is unknown: use train_as_classification, non_diff, only_train_option or full_text" ;;
    esac
    if [ "${TRAIN_ON:-train}" != train ]; then options+=(--train_on "$TRAIN_ON"); fi
    if [ -n "${MAX_NEW_TOKENS:-}" ]; then options+=(--max_new_tokens "$MAX_NEW_TOKENS"); fi
    case "$TRACK" in
        lora)
            need "TRACK=$TRACK" LORA_R LORA_ALPHA
            options+=(--lora --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" --lora_layers "${LORA_LAYERS:-all}")
            ;;
        prefix) options+=(--prefix_tuning --num_prefix "${NUM_PREFIX:-5}") ;;
        head) options+=(--head_tuning) ;;
        ft) ;;
        *) fail "TRACK=$TRACK is unknown: use lora, prefix, head or ft" ;;
    esac
}

run_cell() {
    local options=() launcher=() module=paczo.run_paczo
    if on SMOKE; then
        shrink
        options+=(--smoke)
        if [ -n "${SMOKE_BATCH:-}" ]; then options+=(--token_budget "$SMOKE_BATCH"); fi
    fi
    if on OVERWRITE; then options+=(--overwrite_output_dir); fi
    if on RESUME; then options+=(--resume_from_checkpoint True); fi
    task_options
    if on ABSTAIN && [ "$METHOD" != pac-zpl ]; then fail "ABSTAIN=1 belongs to METHOD=pac-zpl"; fi
    case "$METHOD" in
        pac-mi | pac-zpl | non-private)
            pac_options
            if [ "$PAC_K" != 1 ]; then module=paczo.run_paczo_kvar; fi
            ;;
        dpzero | dp-aggzo)
            module=baselines.run_dp_zo
            dp_options
            ;;
        mezo)
            module=baselines.run_mezo
            mezo_options
            ;;
        *) fail "METHOD=$METHOD is unknown: use pac-mi, pac-zpl, non-private, dpzero, dp-aggzo or mezo" ;;
    esac
    if [ "${NUM_GPUS:-1}" != 1 ]; then launcher=(scripts.launch "$NUM_GPUS"); fi
    run_module ${launcher[@]+"${launcher[@]}"} "$module" \
        --output_dir "$OUT_BASE/$RUN_ID" \
        --task_name "$TASK" --model_name "$MODEL" --dtype "$DTYPE" --opt_bos "$OPT_BOS" \
        --num_train "$NUM_TRAIN" --num_dev "$NUM_DEV" --num_eval "$NUM_EVAL" \
        --train_set_seed "$SEED" --seed "$RUN_SEED" \
        --max_steps "$STEPS" --learning_rate "$LR" --lr_scheduler_type "$LR_SCHEDULE" --zo_eps "$ZO_EPS" \
        --zo_derivative "$DERIVATIVE" \
        --eval_steps "$EVAL_STEPS" --save_total_limit 3 --logging_steps "$LOGGING_STEPS" \
        --report_to "$REPORT_TO" \
        "${options[@]}"
}
