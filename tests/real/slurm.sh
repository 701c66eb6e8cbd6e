#!/usr/bin/env bash
# Four cells as an array job on a real Slurm of this machine alone, one of them killed, requeued and resumed.
#   MODEL=smollm2-135m DATA_DIR=/my/data bash tests/real/slurm.sh
# Run by hand: munge, slurmctld and slurmd are started from a folder of their own and are
# stopped at the end (KEEP=1 keeps the folder). PYTHON names the interpreter (unset: .venv), STEPS the steps of each cell.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
fail() { echo "error: $*" >&2; exit 2; }
PATH=$PATH:/usr/sbin:/sbin
for tool in munged slurmctld slurmd sbatch scontrol squeue; do
    command -v "$tool" > /dev/null \
        || fail "$tool is missing; on Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
done
[ -n "${DATA_DIR:-}" ] || fail "set DATA_DIR to a folder with sst2/train.jsonl and sst2/validation.jsonl"
export PYTHON=${PYTHON:-$root/.venv/bin/python} MODEL=${MODEL:-smollm2-135m} DATA_DIR

work=$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX")
pids=()
stop() {
    local daemon
    scancel --user "$(id -un)" 2> /dev/null || true
    for _ in $(seq 60); do # the daemons may not go before the tasks: these would wait for them
        [ -n "$(squeue --noheader 2> /dev/null)" ] || break
        sleep 0.5
    done
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        daemon=${pids[i]}
        kill "$daemon" 2> /dev/null || continue
        for _ in $(seq 20); do kill -0 "$daemon" 2> /dev/null && sleep 0.25 || break; done
        kill -9 "$daemon" 2> /dev/null || true
    done
    wait
    if [ -z "${KEEP:-}" ]; then rm -rf "$work"; else echo "kept: $work"; fi
}
trap stop EXIT

start_slurm() {
    local user host cores memory
    user=$(id -un) host=$(hostname -s) cores=$(getconf _NPROCESSORS_ONLN)
    memory=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    mkdir -p "$work"/{state,spool,munge}
    chmod 700 "$work/munge"
    dd if=/dev/urandom of="$work/munge/key" bs=128 count=1 status=none
    chmod 600 "$work/munge/key"
    cat > "$work/slurm.conf" << EOF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=100000
MinJobAge=3600
KillWait=2
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory
PartitionName=local Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
    export SLURM_CONF=$work/slurm.conf
    munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" \
        --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed" > "$work/munged.out" 2>&1 &
    pids+=($!)
    sleep 1
    slurmctld -D > "$work/slurmctld.out" 2>&1 &
    pids+=($!)
    slurmd -D -N "$host" > "$work/slurmd.out" 2>&1 &
    pids+=($!)
    for _ in $(seq 60); do
        if sinfo --noheader --format=%T 2> /dev/null | grep -q idle; then return; fi
        sleep 0.5
    done
    tail -n 3 "$work"/*.log "$work"/*.out >&2
    fail "Slurm did not start"
}

# One field of an array task, as squeue or scontrol has it.
field() { scontrol show job "$1" --oneliner | grep -o " $2=[^ ]*" | head -n 1 | cut -d= -f2; }
steps() { if [ -e "$OUT_BASE/$1/transcript.jsonl" ]; then grep -c '"step"' "$OUT_BASE/$1/transcript.jsonl" || true; else echo 0; fi; }
await() { # what, seconds, command: until it is true
    local end=$((SECONDS + $2))
    until "${@:3}"; do
        [ $SECONDS -lt $end ] || fail "waited $2 s for $1"
        sleep 0.3
    done
}
has_steps() { [ "$(steps "$1")" -ge "$2" ]; }
is() { [ "$(field "$1" JobState)" = "$2" ]; }
ended() { [ -z "$(squeue --noheader --jobs "$1" --states=PENDING,RUNNING,COMPLETING 2> /dev/null)" ]; }

export SMOKE=1 SMOKE_STEPS=${STEPS:-12} SMOKE_NTRAIN=${SMOKE_NTRAIN:-16} SECRET_SEED=1 OUT_BASE=$work/runs
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset RUN_ID OVERWRITE NUM_GPUS
cells=sst2_1p3b_lora_pacmi_mi033_s
pattern="headline/$cells[0-3]"

start_slurm
echo "Slurm $(slurmctld -V | cut -d' ' -f2): $(sinfo --noheader --format='%c CPUs, partition %P %T')"
said=$(bash "$root/scripts/run_cells.sh" --cpu --slurm local "$pattern")
echo "$said"
[[ "$said" == "Slurm job "*": 4 cells, 0 finished"* ]] || fail "four cells were to be submitted"
job=${said#Slurm job }
job=${job%%:*}

await "cell 0 to take 3 steps" 300 has_steps "${cells}0" 3
kill -9 "$(pgrep -f -o "paczo.run_paczo .*$OUT_BASE/${cells}0 ")"
await "cell 0 to end" 60 is "${job}_0" FAILED
echo "cell 0: killed by SIGKILL after $(steps "${cells}0") steps, $(field "${job}_0" JobState)"
scontrol requeue "${job}_0"

await "cell 1 to take 3 steps" 300 has_steps "${cells}1" 3
echo "cell 1: requeued by Slurm while it runs, after $(steps "${cells}1") steps"
scontrol requeue "${job}_1"

await "all tasks to end" 1800 ended "$job"
for number in 0 1 2 3; do
    name=$cells$number
    echo "cell $number: $(field "${job}_$number" JobState), $(steps "$name") steps, restarted" \
        "$(field "${job}_$number" Restarts) times; $(tail -n 2 "$root/result/logs/slurm-${job}_$number.log" | head -n 1)"
    is "${job}_$number" COMPLETED || fail "cell $number did not complete"
    [ "$(steps "$name")" = "$SMOKE_STEPS" ] || fail "cell $number has $(steps "$name") steps"
    [ -e "$OUT_BASE/$name/metrics.json" ] || fail "cell $number has no result"
done
for number in 0 1; do
    [ "$(field "${job}_$number" Restarts)" = 1 ] || fail "cell $number was not requeued"
    grep -q "resumed, done" "$root/result/logs/slurm-${job}_$number.log" || fail "cell $number was not resumed"
done

if bash "$root/scripts/run_cells.sh" --cpu --slurm local "$pattern" 2> "$work/again"; then fail "submitted twice"; fi
echo "submitted again: $(cat "$work/again")"
OUT_BASE=$work/alone bash "$root/scripts/run_cells.sh" "headline/$cells[01]" > "$work/alone.log"
for number in 0 1; do
    cmp "$work"/{runs,alone}/"$cells$number/transcript.jsonl" || fail "cell $number is not what it is uninterrupted"
done
echo "cells 0 and 1 have the transcripts of uninterrupted runs, byte for byte"
