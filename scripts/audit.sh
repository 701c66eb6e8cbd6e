#!/usr/bin/env bash
# Attacks the mechanisms on a small objective and compares the success with the bounds; two to three minutes on two
# cores. Arguments go to paczo.audit, e.g. --runs 500.
#   bash scripts/audit.sh universe    asks of each method, DP's too, who was among the N: canaries, half an hour
set -euo pipefail
source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/_common.sh"

module=paczo.audit
if [ "${1:-}" = universe ]; then
    module=scripts.universe
    shift
fi
run_module "$module" "$@"
