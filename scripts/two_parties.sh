#!/usr/bin/env bash
# PUM between two parties on one machine: the server's process cannot read the client's rows, the client's process
# cannot read the server's folder; they exchange offers and replies. Then the same in one process, and both side by
# side. Run as root it gives each party a user id of its own; else both are the caller, and it says so.
#   SMOKE=1 bash scripts/two_parties.sh     tiny models of the sample data; needs no download
# Takes the variables of tofu_pum.sh for model, split, rows and inner run; of PUM's own those below.
set -euo pipefail
DEFAULT_METHODS=NPO
source "$(dirname "${BASH_SOURCE[0]}")/_tofu.sh"

PUM_COPIES_M=${PUM_COPIES_M:-2}
PUM_ROUNDS_R=${PUM_ROUNDS_R:-2}
PUM_SIGMA_RMS=${PUM_SIGMA_RMS:-0.001}
PUM_ALPHA_MAX=${PUM_ALPHA_MAX:-1.5}
SECRET_SEED=${SECRET_SEED:-1}  # so that the run in one process draws the same secrets; such a run is not private
SERVER_UID=${SERVER_UID:-64001} # need not belong to an account
CLIENT_UID=${CLIENT_UID:-64002}
[ -n "${DATA_DIR:-}" ] || fail "two parties read the rows from a folder: set DATA_DIR, or SMOKE=1"

apart=""
if [ "$(id -u)" = 0 ]; then apart=1; fi

# as UID COMMAND ...: the command as that user, where the parties are kept apart.
as() {
    local uid=$1
    shift
    if [ -n "$apart" ]; then
        setpriv --reuid="$uid" --regid="$uid" --clear-groups "$@"
    else
        "$@"
    fi
}

# module UID MODULE ARGUMENTS ...: a module of the project as that user, without the caller's variables.
module() {
    local uid=$1
    shift
    as "$uid" env -i PATH="$PATH" HOME="$home" USER="user$uid" LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \
        PYTHONPATH="$libraries" HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-}" \
        ${rows[@]+"${rows[@]}"} "$interpreter" -m "$@"
}

# An interpreter that both users can run: the project's own or, where that lies in a folder of root's, the system's
# of the same version with the project's libraries.
find_interpreter() {
    interpreter=$PYTHON libraries=""
    if as "$CLIENT_UID" env "$interpreter" -c "" 2>/dev/null; then return; fi # setpriv itself could still run it
    interpreter=/usr/bin/python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    libraries=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    if as "$CLIENT_UID" env PYTHONPATH="$libraries" "$interpreter" -c "import torch" 2>/dev/null; then return; fi
    echo "no other user can run $PYTHON: one user plays both parties" >&2
    interpreter=$PYTHON libraries="" apart=""
}

# forbidden UID FILE: the user must fail to read the file.
forbidden() {
    if as "$1" cat "$2" >/dev/null 2>&1; then
        if [ -n "$apart" ]; then fail "user $1 can read $2"; fi
        echo "one user plays both parties, who can read each other's folders: run as root to keep them apart" >&2
    else
        echo "user $1 cannot read $2"
    fi
}

round() {
    local number=$1 last=()
    if [ "$number" = "$PUM_ROUNDS_R" ]; then last=(--output_dir "$servers/merged"); fi
    rows=(DATA_DIR="$clients/data")
    module "$CLIENT_UID" pum.client --offer "$servers/offer/round$number" --reply "$clients/reply/round$number" \
        --inner_handler "$method" "${inner[@]}"
    rows=()
    module "$SERVER_UID" pum.merge --private "$servers/server" --reply "$clients/reply/round$number" \
        ${last[@]+"${last[@]}"}
    forbidden "$CLIENT_UID" "$servers/server/chain.jsonl"
    forbidden "$SERVER_UID" "$clients/data/tofu/$split.jsonl"
}

if on DRY_RUN; then fail "two_parties.sh has no DRY_RUN: its commands follow from each other"; fi
choose_interpreter
find_interpreter
split=${SPLITS%% *} method=${METHODS%% *} model=$(from_caller "${MODELS%% *}") rows=()
common_options
prepare_split
task=tofu_${name}_${split}_${method}_two_parties

# What the client does, and the same words for the run in one process.
inner=(--learning_rate "$LR" --per_device_train_batch_size "$BATCH_SIZE_PER_GPU" --gradient_accumulation_steps "$accumulation")
if [ -n "$EPOCHS" ]; then inner+=(--num_train_epochs "$EPOCHS"); fi
options=(--copies_m "$PUM_COPIES_M" --rounds_R "$PUM_ROUNDS_R" --sigma_rms "$PUM_SIGMA_RMS")
options+=(--alpha_max "$PUM_ALPHA_MAX" --secret_seed "$SECRET_SEED")
one=("${common[@]}" --model_name "$model" --output_dir "$OUTPUT/unlearn/${task}_one_process" "${options[@]}")
one+=(--inner_handler "$method" "${inner[@]}" --overwrite_output_dir True)
if [ -n "$log" ]; then one+=(--retain_log "$log"); fi
for ((i = 0; i < ${#common[@]}; i += 2)); do
    case "${common[i]}" in
        --forget_split | --seed | --disable_tqdm | --holdout_rows | --max_retain | --system_prompt)
            inner+=("${common[i]}" "${common[i + 1]}")
            ;;
    esac
done

work=$(mktemp -d "${TMPDIR:-/tmp}/two_parties.XXXXXX")
trap 'rm -rf "$work"' EXIT
servers=$work/servers clients=$work/clients home=$work/home
mkdir "$servers" "$clients" "$home"
mkdir -p "$clients/data"
cp -rL "$DATA_DIR/tofu" "$clients/data/tofu"
cp -rL "$model" "$servers/start"
chmod 755 "$work" && chmod 1777 "$home"
chmod -R u=rwX,go= "$clients/data" "$servers/start"
if [ -n "$apart" ]; then
    chown -R "$SERVER_UID:$SERVER_UID" "$servers"
    chown -R "$CLIENT_UID:$CLIENT_UID" "$clients"
fi

echo "== $task: $PUM_COPIES_M copies, $PUM_ROUNDS_R rounds" >&2
module "$SERVER_UID" pum.publish --model_name "$servers/start" --dtype "$DTYPE" --offer "$servers/offer" \
    --private "$servers/server" --inner_handler "$method" --seed "$SEED" "${options[@]}"
for ((number = 1; number <= PUM_ROUNDS_R; number++)); do round "$number"; done
module "$CLIENT_UID" pum.check "$servers/offer" "$clients/reply"

merged=$OUTPUT/unlearn/$task
rm -rf "$merged"
mkdir -p "$OUTPUT/unlearn"
cp -r "$servers/merged" "$merged"
evaluation=("${common[@]}" --model_name "$merged" --output_dir "$merged")
if [ -n "$log" ]; then evaluation+=(--retain_log "$log"); fi
(run_module pum.run_unlearn evaluate "${evaluation[@]}" >/dev/null)
(run_module pum.run_pum "${one[@]}" >/dev/null)
(run_module scripts.side_by_side before="$(dirname "$before")" "two parties=$merged" \
    "one process=$OUTPUT/unlearn/${task}_one_process")
