#!/usr/bin/env bash
# Compares all mechanisms on the small problem of scripts/smoke.sh and writes result/published/learning_table.json,
# which the report draws (40 minutes of one core). With the word `tracks`: PAC-ZPL on all weights, LoRA, a prefix and
# the head, into learning_tracks.json (some minutes).
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
run_module scripts.learning_table "$@"
