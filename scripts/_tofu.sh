# Sourced by tofu_unlearn.sh and tofu_pum.sh: what both take, the loop over models, splits and methods, the table.
#
#   SMOKE=1        tiny models made on the spot, from the sample data or DATA_DIR, in the place of MODELS
#                  SMOKE_EPOCHS, SMOKE_NTRAIN (retain rows), SMOKE_NEVAL and SMOKE_NEW_TOKENS say how small
#   DATA_DIR       folder with tofu/*.jsonl; unset: the Hugging Face hub (with SMOKE=1: the sample data)
#   OVERWRITE=1    replaces runs that are there
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
SPLITS=${SPLITS:-forget10}
RETAIN_LOG=$(from_caller "${RETAIN_LOG:-}")
BASE_MODEL=$(from_caller "${BASE_MODEL:-}")
OUTPUT=${OUTPUT:-saves}
SEED=${SEED:-0}
DTYPE=${DTYPE:-float32}
SYSTEM_PROMPT=${SYSTEM_PROMPT:-}
HOLDOUT_ROWS=${HOLDOUT_ROWS:-0}
LORA=${LORA:-}
LORA_R=${LORA_R:-8}
LORA_ALPHA=${LORA_ALPHA:-16}
NUM_GPUS=${NUM_GPUS:-1}
# Of the runs themselves: a plain one shares its batches among the processes, PUM its copies.
launcher=()
if [ "$NUM_GPUS" != 1 ]; then launcher=(scripts.launch "$NUM_GPUS"); fi

# Of the inner method; empty: its own default.
GAMMA=${GAMMA:-}
ALPHA=${ALPHA:-}
BETA=${BETA:-}
RETAIN_LOSS=${RETAIN_LOSS:-}
EPOCHS=${EPOCHS:-}
EVAL_LIMIT=${EVAL_LIMIT:-}
MAX_RETAIN=${MAX_RETAIN:-}
if [ -n "$smoke" ]; then
    LR=${LR:-1e-3}
    BATCH=${BATCH:-4}
    ACCUMULATION=${ACCUMULATION:-1}
    EPOCHS=${EPOCHS:-${SMOKE_EPOCHS:-40}}
    MAX_RETAIN=${MAX_RETAIN:-${SMOKE_NTRAIN:-120}}
    EVAL_LIMIT=${EVAL_LIMIT:-${SMOKE_NEVAL:-40}}
    MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-${SMOKE_NEW_TOKENS:-40}}
else
    LR=${LR:-1e-5}
    BATCH=${BATCH:-8}
    ACCUMULATION=${ACCUMULATION:-4}
    MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-200}
fi

# Options of every command on one split, in the array `common`.
common_options() {
    common=(--forget_split "$split" --max_new_tokens "$MAX_NEW_TOKENS" --dtype "$DTYPE" --seed "$SEED")
    common+=(--disable_tqdm True)
    local holdout=$HOLDOUT_ROWS
    # Of a data folder without held-out rows a check keeps some back, so that every score has a value.
    if [ -n "$smoke" ] && [ "$holdout" = 0 ] && [ ! -e "$DATA_DIR/tofu/holdout${split#forget}.jsonl" ]; then
        holdout=40
    fi
    if [ "$holdout" != 0 ]; then common+=(--holdout_rows "$holdout"); fi
    if [ -n "$MAX_RETAIN" ]; then common+=(--max_retain "$MAX_RETAIN"); fi
    if [ -n "$EVAL_LIMIT" ]; then common+=(--eval_limit "$EVAL_LIMIT"); fi
    if [ -n "$SYSTEM_PROMPT" ]; then common+=(--system_prompt "$SYSTEM_PROMPT"); fi
}

# Options of a plain or PUM run with one method, in the array `options`.
run_options() {
    options=("${common[@]}" --model_name "$model" --output_dir "$OUTPUT/unlearn/$task")
    options+=(--learning_rate "$LR" --per_device_train_batch_size "$BATCH")
    options+=(--gradient_accumulation_steps "$ACCUMULATION")
    if [ -n "$EPOCHS" ]; then options+=(--num_train_epochs "$EPOCHS"); fi
    if [ -n "$GAMMA" ]; then options+=(--gamma "$GAMMA"); fi
    if [ -n "$ALPHA" ]; then options+=(--alpha "$ALPHA"); fi
    if [ -n "$BETA" ]; then options+=(--beta "$BETA"); fi
    if [ -n "$RETAIN_LOSS" ]; then options+=(--retain_loss_type "$RETAIN_LOSS"); fi
    if on LORA; then options+=(--lora --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA"); fi
    if [ -n "$log" ]; then options+=(--retain_log "$log"); fi
    if [ -n "$smoke" ]; then options+=(--smoke); fi
    if on OVERWRITE; then options+=(--overwrite_output_dir); fi
}

# Before a split's runs: the model to unlearn from, its evaluation, and the retain model's log.
prepare_split() {
    log=$RETAIN_LOG
    if [ -n "$smoke" ]; then
        local made
        made=$(run_module pum.run_unlearn tiny "${common[@]}" | tail -n 1)
        if on DRY_RUN; then
            echo "$made"
            made=saves/tiny/DIGEST
        fi
        model=$made/full
        name=tiny
        log=$made/retain/evals/TOFU_EVAL.json
        before=$made/full/evals
        return
    fi
    if [ -z "$log" ] && [ -n "$BASE_MODEL" ]; then
        local folder=$OUTPUT/finetune/$(basename "$BASE_MODEL")_${split}_retain
        log=$folder/evals/TOFU_EVAL.json
        if [ ! -e "$log" ]; then
            (run_module pum.run_unlearn retain-log "${common[@]}" --model_name "$BASE_MODEL" --output_dir "$folder")
        fi
    fi
    name=$(basename "$model")
    before=$OUTPUT/eval/${name}_$split/evals
    local options=("${common[@]}" --model_name "$model" --output_dir "$OUTPUT/eval/${name}_$split")
    if [ -n "$log" ]; then options+=(--retain_log "$log"); fi
    (run_module pum.run_unlearn evaluate "${options[@]}")
}

# run_all COMMAND SUFFIX: every model, split and method; the task's name ends with SUFFIX. COMMAND sees `options`.
run_all() {
    local command=$1 suffix=$2 chosen model name split method task log before common options tables
    for chosen in $MODELS; do
        for split in $SPLITS; do
            model=$(from_caller "$chosen")
            tables=()
            common_options
            prepare_split
            for method in $METHODS; do
                task=tofu_${name}_${split}_$method$suffix
                run_options
                echo "== $task" >&2
                ("$command")
                tables+=("${task%"$suffix"}")
            done
            (run_module src.tofu.table "$OUTPUT/unlearn" --before "$before" --tasks "${tables[@]}")
        done
    done
}
