#!/usr/bin/env bash
# The baseline: unlearn TOFU's forget set with ordinary methods, evaluate, and print the table beside PUM's runs.
# Each value can be overridden: METHODS="NPO GradDiff" SPLITS=forget01 bash scripts/tofu_unlearn.sh
#   SMOKE=1 bash scripts/tofu_unlearn.sh     tiny models of the sample data; needs no download
set -euo pipefail
DEFAULT_METHODS=NPO
source "$(dirname "${BASH_SOURCE[0]}")/_tofu.sh"

plain() {
    run_module ${launcher[@]+"${launcher[@]}"} pum.run_unlearn unlearn "${options[@]}" --method "$method"
}

run_all plain ""
