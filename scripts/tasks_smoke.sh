#!/usr/bin/env bash
# Each of the fifteen tasks takes three private steps on SmolLM2-135M (or MODEL) and the sample data (or DATA_DIR), a
# few minutes in all, and a line says how long it took. Names of tasks as arguments: only these.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ $# = 0 ]; then set -- SST2 SST5 TREC MNLI SNLI RTE CB BoolQ MultiRC WIC WSC Copa ReCoRD SQuAD DROP; fi
failed=0
for task in "$@"; do
    loss=train_as_classification new_tokens=()
    case "$task" in
        Copa | ReCoRD) loss=only_train_option ;;
        SQuAD | DROP) loss=non_diff new_tokens=(MAX_NEW_TOKENS=50) ;;
    esac
    begin=$(date +%s)
    if output=$(env DATA_DIR="${DATA_DIR:-$here/../src/sample_data}" MODEL="${MODEL:-smollm2-135m}" SMOKE=1 OVERWRITE=1 \
        TASK="$task" LOSS="$loss" RUN_ID="tasks-smoke-$task" ${new_tokens[@]+"${new_tokens[@]}"} \
        bash "$here/headline/sst2_1p3b_lora_pacmi_mi033_s0.sh" 2>&1); then
        printf '%-8s trained in %4d s\n' "$task" $(($(date +%s) - begin))
    else
        printf '%-8s failed: %s\n' "$task" "$(tail -n 1 <<<"$output")"
        failed=1
    fi
done
exit $failed
