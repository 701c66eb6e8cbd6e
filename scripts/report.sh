#!/usr/bin/env bash
# Writes result/report/report.md and report.html (self-contained) from OUT_BASE and result/published.
# bash scripts/report.sh --runs GLOB reports on the runs that match, relative to the project (quote it); --against passes,
# --bands error change their learning curves; --private also writes private.html, for the owner of the data alone.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
run_module paczo.report --runs "$OUT_BASE" "$@"
