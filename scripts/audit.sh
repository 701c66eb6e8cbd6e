#!/usr/bin/env bash
# Attacks the mechanisms on a small objective and compares the success with the bounds; about two minutes on two
# cores. Arguments go to paczo.audit, e.g. --runs 500.
set -euo pipefail
source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/_common.sh"

run_module paczo.audit "$@"
