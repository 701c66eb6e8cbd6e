#!/usr/bin/env bash
# Compares all mechanisms on the small problem of scripts/smoke.sh (some minutes on a CPU) and writes
# result/published/learning_table.json, which the report draws.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
run_module scripts.learning_table "$@"
