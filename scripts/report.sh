#!/usr/bin/env bash
# Writes result/report/report.md and report.html (self-contained) from OUT_BASE and result/published.
# bash scripts/report.sh --private also draws what only the data's owner may see, into private.html.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
run_module paczo.report --runs "$OUT_BASE" "$@"
