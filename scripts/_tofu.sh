# Sourced by tofu_unlearn.sh, tofu_pum.sh and tofu_parity.sh: what they take, the loop over models, splits and methods,
# the table.
#
#   SMOKE=1        tiny models made on the spot, from the sample data or DATA_DIR, in the place of MODELS
#                  SMOKE_EPOCHS, SMOKE_NTRAIN (retain rows), SMOKE_NEVAL and SMOKE_NEW_TOKENS say how small
#   DATA_DIR       folder with tofu/*.jsonl; unset: the Hugging Face hub (with SMOKE=1: the sample data)
#   METHOD_ARGS    arguments of the methods, "delta=0.0 rmu_layer=7"; with several METHODS one that a method has not
#                  is skipped with a note
#   NUM_GPUS       processes, one a GPU, that share a plain run's batches or PUM's copies; unset: one
#   GPUS           as CUDA_VISIBLE_DEVICES. Unlearning runs on the first NUM_GPUS; the others' share of the batch given
#                  with BATCH_SIZE_PER_GPU or GRAD_ACCUM_STEPS goes into more accumulation
#   ATTACKS        of relearn and quantize, those that every run and the retain model are attacked with afterwards;
#                  ATTACK_ARGS holds their options. relearn needs RETAIN_MODEL, BASE_MODEL or SMOKE=1
#   RERUN=1        repeats tasks that are finished, which are skipped otherwise
#   DRY_RUN=1      prints the commands and runs nothing
#   PYTHON         interpreter to run; unset: .venv, made on first use
# Lists are words separated by spaces. A path must not hold a space.
caller=$PWD
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
smoke=""
if [ -n "${SMOKE:-}" ] && [ "$SMOKE" != 0 ]; then
    smoke=1
    # Of models so small, threads that wait for each other cost more than they save.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    DATA_DIR=${DATA_DIR:-$here/../src/sample_data}
fi
source "$here/_common.sh"

# _common.sh changes the folder: a path given relative to the caller's, as an absolute one.
from_caller() { (cd "$caller" && absolute "$1"); }

MODELS=${MODELS:-open-unlearning/tofu_Llama-3.2-1B-Instruct_full}
METHODS=${METHODS:-$DEFAULT_METHODS}
known="GradAscent GradDiff NPO DPO SimNPO RMU UNDIAL CEU WGA SatImp PDU"
for word in $METHODS; do
    case " $known " in *" $word "*) ;; *) fail "METHODS: $word is unknown: use some of $known" ;; esac
done
SPLITS=${SPLITS:-forget10}
RETAIN_LOG=$(from_caller "${RETAIN_LOG:-}")
BASE_MODEL=$(from_caller "${BASE_MODEL:-}")
REFERENCE_MODEL=$(from_caller "${REFERENCE_MODEL:-}")
OUTPUT=${OUTPUT:-saves}
RETAIN_MODEL=$(from_caller "${RETAIN_MODEL:-}")
ATTACKS=${ATTACKS:-}
ATTACK_ARGS=${ATTACK_ARGS:-}
for word in $ATTACKS; do
    case "$word" in relearn | quantize) ;; *) fail "ATTACKS: $word is unknown: use relearn, quantize or both" ;; esac
done
SEED=${SEED:-0}
DTYPE=${DTYPE:-float32}
HOLDOUT_ROWS=${HOLDOUT_ROWS:-0}
LORA=${LORA:-}
LORA_R=${LORA_R:-8}
LORA_ALPHA=${LORA_ALPHA:-16}
NUM_GPUS=${NUM_GPUS:-1}
# Of the runs themselves: a plain one shares its batches among the processes, PUM its copies.
[[ "$NUM_GPUS" =~ ^[1-9][0-9]*$ ]] || fail "NUM_GPUS=$NUM_GPUS is no number from 1 on"
launcher=()
if [ "$NUM_GPUS" != 1 ]; then launcher=(scripts.launch "$NUM_GPUS"); fi
# A switch that is no number: 1 or nothing.
switch() {
    case "${!1:-}" in
        1 | [Tt]rue | [Yy]es) printf -v "$1" 1 ;;
        "" | 0 | [Ff]alse | [Nn]o) printf -v "$1" "" ;;
        *) fail "$1=${!1} is unknown: use 1 or 0" ;;
    esac
}
switch LORA
switch RERUN
if on RERUN; then OVERWRITE=1; fi

# Of the inner method; empty: its own default.
GAMMA=${GAMMA:-}
ALPHA=${ALPHA:-}
BETA=${BETA:-}
RETAIN_LOSS=${RETAIN_LOSS:-}
METHOD_ARGS=${METHOD_ARGS:-}
EPOCHS=${EPOCHS:-}
LR_SCHEDULE=${LR_SCHEDULE:-}
WARMUP_EPOCHS=${WARMUP_EPOCHS:-}
# A layer's activations are computed again on the way back instead of being held, as the guide's script does it.
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-$((!${smoke:-0}))}
switch GRADIENT_CHECKPOINTING
# Of the evaluation
EVAL_LIMIT=${EVAL_LIMIT:-}
EVAL_STEPS=${EVAL_STEPS:-} # steps between evaluations on the way; empty: only the result is evaluated
MAX_RETAIN=${MAX_RETAIN:-}
MINK_K=${MINK_K:-0.4}
DATE_STRING=${DATE_STRING:-}
# SYSTEM_PROMPT unset: open-unlearning's of the model's family; empty: none

# How many GPUs the batch is given for: NUM_GPUS of them do the rows of all.
shares=1
if [ -n "${GPUS:-}" ]; then
    [[ "$GPUS" =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "GPUS=$GPUS is no list of GPU numbers, like 0 or 0,1"
    CUDA_VISIBLE_DEVICES=$(cut -d , -f "1-$NUM_GPUS" <<< "$GPUS")
    export CUDA_VISIBLE_DEVICES
    if [ -n "${BATCH_SIZE_PER_GPU:-}${GRAD_ACCUM_STEPS:-}" ]; then shares=$(tr , '\n' <<< "$GPUS" | wc -l); fi
fi
if [ -n "$smoke" ]; then
    LR=${LR:-1e-3}
    BATCH_SIZE_PER_GPU=${BATCH_SIZE_PER_GPU:-${BATCH:-4}}
    GRAD_ACCUM_STEPS=${GRAD_ACCUM_STEPS:-${ACCUMULATION:-1}}
    EPOCHS=${EPOCHS:-${SMOKE_EPOCHS:-40}}
    MAX_RETAIN=${MAX_RETAIN:-${SMOKE_NTRAIN:-120}}
    EVAL_LIMIT=${EVAL_LIMIT:-${SMOKE_NEVAL:-40}}
    MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-${SMOKE_NEW_TOKENS:-40}}
else
    LR=${LR:-1e-5}
    BATCH_SIZE_PER_GPU=${BATCH_SIZE_PER_GPU:-${BATCH:-8}}
    GRAD_ACCUM_STEPS=${GRAD_ACCUM_STEPS:-${ACCUMULATION:-4}}
    MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-200}
fi
for name in BATCH_SIZE_PER_GPU GRAD_ACCUM_STEPS; do
    [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || fail "$name=${!name} is no number from 1 on"
done
accumulation=$((GRAD_ACCUM_STEPS * shares))
if [ "$shares" -gt "$NUM_GPUS" ]; then echo "note: GPU $CUDA_VISIBLE_DEVICES does the work of $shares: accumulation $accumulation" >&2; fi

# Options of every command on one split, in the array `common`.
common_options() {
    common=(--forget_split "$split" --max_new_tokens "$MAX_NEW_TOKENS" --dtype "$DTYPE" --seed "$SEED")
    common+=(--mink_k "$MINK_K" --disable_tqdm True)
    holdout=$HOLDOUT_ROWS
    # Of a data folder without held-out rows a check keeps some back, so that every score has a value.
    if [ -n "$smoke" ] && [ "$holdout" = 0 ] && [ ! -e "$DATA_DIR/tofu/holdout${split#forget}.jsonl" ]; then
        holdout=40
    fi
    if [ "$holdout" != 0 ]; then common+=(--holdout_rows "$holdout"); fi
    if [ -n "$MAX_RETAIN" ]; then common+=(--max_retain "$MAX_RETAIN"); fi
    if [ -n "$EVAL_LIMIT" ]; then common+=(--eval_limit "$EVAL_LIMIT"); fi
    if [ -n "$REFERENCE_MODEL" ]; then common+=(--reference_model "$REFERENCE_MODEL"); fi
    if [ -n "${SYSTEM_PROMPT+set}" ]; then common+=(--system_prompt "$SYSTEM_PROMPT"); fi
    if [ -n "$DATE_STRING" ]; then common+=(--date_string "$DATE_STRING"); fi
}

# Options of a plain or PUM run with one method, in the array `options`.
run_options() {
    options=("${common[@]}" --model_name "$model" --output_dir "$OUTPUT/unlearn/$task")
    options+=(--learning_rate "$LR" --per_device_train_batch_size "$BATCH_SIZE_PER_GPU")
    options+=(--gradient_accumulation_steps "$accumulation")
    if [ -n "$EPOCHS" ]; then options+=(--num_train_epochs "$EPOCHS"); fi
    if [ -n "$LR_SCHEDULE" ]; then options+=(--lr_scheduler_type "$LR_SCHEDULE"); fi
    if [ -n "$WARMUP_EPOCHS" ]; then options+=(--warmup_epochs "$WARMUP_EPOCHS"); fi
    if on GRADIENT_CHECKPOINTING; then options+=(--gradient_checkpointing True); fi
    local words=($METHODS) own=$METHOD_ARGS
    own="${GAMMA:+gamma=$GAMMA }${ALPHA:+alpha=$ALPHA }${BETA:+beta=$BETA }$own"
    own="${RETAIN_LOSS:+retain_loss_type=$RETAIN_LOSS }$own"
    if [ -n "$own" ]; then
        options+=(--method_args "$own")
        if [ ${#words[@]} -gt 1 ]; then options+=(--skip_foreign_args); fi
    fi
    if on LORA; then options+=(--lora --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA"); fi
    if [ -n "$log" ]; then options+=(--retain_log "$log"); fi
    if [ -n "$EVAL_STEPS" ]; then options+=(--eval_every "$EVAL_STEPS"); fi
    if [ -n "$smoke" ]; then options+=(--smoke); fi
    if on OVERWRITE; then options+=(--overwrite_output_dir); fi
}

# Tiny models of the split: `made` is their folder, `base` what they were fine-tuned from.
make_tiny() {
    made=$(run_module pum.run_unlearn tiny "${common[@]}" | tail -n 1)
    if on DRY_RUN; then
        echo "$made"
        made=saves/tiny/DIGEST
    fi
    base=$made/base
}

# Before a split's runs: the model to unlearn from, its evaluation, and the retain model's log.
prepare_split() {
    log=$RETAIN_LOG
    base=$BASE_MODEL
    retain=$RETAIN_MODEL
    if [ -n "$smoke" ]; then
        local made
        make_tiny
        model=$made/full
        name=tiny
        log=$made/retain/evals/TOFU_EVAL.json
        before=$made/full/evals
        retain=${retain:-$made/retain}
        return
    fi
    if [ -z "$log" ] && [ -n "$BASE_MODEL" ]; then
        local folder=$OUTPUT/finetune/$(basename "$BASE_MODEL")_${split}_retain
        log=$folder/evals/TOFU_EVAL.json
        if [ ! -e "$log" ]; then
            (run_module pum.run_unlearn retain-log "${common[@]}" --model_name "$BASE_MODEL" --output_dir "$folder")
        fi
        retain=${retain:-$folder}
    fi
    name=$(basename "$model")
    before=$OUTPUT/eval/${name}_$split/evals
    local options=("${common[@]}" --model_name "$model" --output_dir "$OUTPUT/eval/${name}_$split")
    if [ -n "$log" ]; then options+=(--retain_log "$log"); fi
    (run_module pum.run_unlearn evaluate "${options[@]}")
}

# Whether the task's run is there and to stay; a check is always repeated.
is_finished() {
    local folder=$OUTPUT/unlearn/$task
    ! on OVERWRITE && ! on DRY_RUN && [ -e "$folder/metrics.json" ] && [ ! -e "$folder/SMOKE" ]
}

# Attack the plain and PUM runs of the split's tasks that are there, and the retain model.
attack_all() {
    local attack name attacked=() options=(--forget_split "$split" --dtype "$DTYPE" --seed "$SEED" $ATTACK_ARGS)
    options+=(--max_new_tokens "$MAX_NEW_TOKENS" --holdout_rows "$holdout" --before "$model")
    if [ -n "$EVAL_LIMIT" ]; then options+=(--eval_limit "$EVAL_LIMIT"); fi
    if [ -n "$log" ]; then options+=(--retain_log "$log"); fi
    if [ -n "${SYSTEM_PROMPT+set}" ]; then options+=(--system_prompt "$SYSTEM_PROMPT"); fi
    if [ -n "$DATE_STRING" ]; then options+=(--date_string "$DATE_STRING"); fi
    for name in "${tables[@]}"; do
        for name in "$OUTPUT/unlearn/$name" "$OUTPUT/unlearn/${name}_PUM"; do
            if [ -e "$name/metrics.json" ] || on DRY_RUN; then attacked+=("$name"); fi
        done
    done
    if [ -n "$retain" ]; then
        attacked+=("$retain")
        options+=(--retain_model "$retain")
    fi
    for attack in $ATTACKS; do (run_module src.tofu.attacks "$attack" "${attacked[@]}" "${options[@]}"); done
}

# Have the arguments of the runs to come checked before hours go into the evaluation of the unchanged model.
check_runs() {
    local method task options log=$RETAIN_LOG base=$BASE_MODEL name
    name=$(basename "$model")
    if on DRY_RUN; then return; fi
    for method in $METHODS; do
        task=tofu_${name}_${split}_$method$suffix
        if is_finished; then continue; fi
        run_options
        options+=(--check_only)
        ("$command")
    done
}

# run_all COMMAND SUFFIX: every model, split and method; the task's name ends with SUFFIX. COMMAND sees `options`.
run_all() {
    local command=$1 suffix=$2 chosen model name split method task log base retain holdout before common options tables shown
    for chosen in $MODELS; do
        for split in $SPLITS; do
            model=$(from_caller "$chosen")
            tables=()
            common_options
            if [ -z "$smoke" ]; then check_runs; fi
            prepare_split
            for method in $METHODS; do
                task=tofu_${name}_${split}_$method$suffix
                tables+=("${task%"$suffix"}")
                if is_finished; then
                    echo "== $task is finished and skipped; RERUN=1 repeats it" >&2
                    continue
                fi
                run_options
                echo "== $task" >&2
                ("$command")
            done
            if [ -n "$ATTACKS" ]; then attack_all; fi
            shown=(--before "$before" --page "$OUTPUT/unlearn/table.html")
            if [ -n "$retain" ]; then shown+=(--retain "$retain"); fi
            (run_module src.tofu.table "$OUTPUT/unlearn" "${shown[@]}" --tasks "${tables[@]}")
        done
    done
}
