#!/usr/bin/env bash
# A job array: line N of SWEEP holds the `a.b=v` items of task N (blanks between them), and DIR/N is its run folder.
#   sbatch --array=1-4 [sbatch's options] scripts/slurm/array.sh SWEEP RECIPE [--ds_config FILE] [--out DIR] ...
# Run it where dsvid's clone is, or where `python -m dsvid` works. It reads, besides Slurm's own variables:
#   DSVID_PYTHON       the Python to use        (the activated environment's, else .venv/bin/python, else python3)
#   DSVID_LAUNCHER     srun: a task for each rank (default) · deepspeed: `deepspeed --no_ssh` once a node
#   DSVID_MASTER_ADDR  address of the first node (its name in Slurm)
#SBATCH --job-name=dsvid-array
#SBATCH --output=%x-%A_%a.out
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

fail() {
  echo "array.sh: $*" >&2
  exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "a batch script: sbatch array.sh ..."
cd "$SLURM_SUBMIT_DIR"
[ $# -ge 2 ] || fail "SWEEP and RECIPE are needed"
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || fail "no job array: sbatch --array=1-N ..."
sweep=$1
recipe=$2
shift 2
line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" -- "$sweep") || fail "$sweep cannot be read"
[ -n "$line" ] || fail "$sweep has no line $SLURM_ARRAY_TASK_ID"
read -r -a items <<<"$line"
set -- "$@" "${items[@]}"
config=ds_configs/zero2.json
out=runs/$(basename "${recipe%.*}")
rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --ds_config | --out) [ $# -ge 2 ] || fail "$1 needs a value" ;;&
    --ds_config) config=$2; shift 2 ;;
    --ds_config=*) config=${1#*=}; shift ;;
    --out) out=$2; shift 2 ;;
    --out=*) out=${1#*=}; shift ;;
    *) rest+=("$1"); shift ;;
  esac
done
out=$out/$(printf "%04d" "$SLURM_ARRAY_TASK_ID")
program=(-m dsvid.train)
[ ! -f dsvid/train.py ] || program=(dsvid/train.py)
arguments=(--ds_config "$config" --recipe "$recipe" --out "$out" "${rest[@]}")

python=${DSVID_PYTHON:-}
if [ -z "$python" ] && [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then
  python=$PWD/.venv/bin/python
fi
python=${python:-$(command -v python || command -v python3)}

nodes=${SLURM_JOB_NUM_NODES:-1}
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${DSVID_MASTER_ADDR:-$first}
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # below the ports that the system gives away
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since Slurm 22.05 srun does not take it over by itself
fi
case ${DSVID_LAUNCHER:-srun} in
  srun)
    tasks=${SLURM_NTASKS_PER_NODE:-1}
    if [ "${SLURM_GPUS_ON_NODE:-0}" -gt "$tasks" ]; then
      fail "$SLURM_GPUS_ON_NODE GPUs but $tasks task(s) on a node: add --ntasks-per-node=$SLURM_GPUS_ON_NODE, or set DSVID_LAUNCHER=deepspeed"
    fi
    # Not --kill-on-bad-exit: the first rank that ends with 75 would have the others killed, and the job end with 137.
    step=(srun --nodes="$nodes" --ntasks="$((nodes * tasks))" --ntasks-per-node="$tasks" --kill-on-bad-exit=0 --wait=30)
    step+=("$python" -u "${program[@]}" "${arguments[@]}")
    ;;
  deepspeed)
    # One `deepspeed --no_ssh` a node. Slurm sends its signal to every process of the step: the shell and the launcher
    # must survive it, and `dsvid launch` sees to that below itself.
    slots=${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}
    # shellcheck disable=SC2016
    on_a_node='
trap "" USR1 TERM
hosts=$(mktemp)
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$1/" >"$hosts"
python=$2
shift 2
code=0
"$python" -m dsvid launch -- "$python" -m deepspeed.launcher.runner --hostfile "$hosts" --no_ssh \
  --node_rank "$SLURM_NODEID" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@" || code=$?
rm -f "$hosts"
exit "$code"'
    unset SRUN_CPUS_PER_TASK
    step=(srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}")
    step+=(--kill-on-bad-exit=0 --wait=60)
    [ "${program[0]}" != -m ] || program=(--module "${program[1]}")
    step+=(bash -c "$on_a_node" node "$slots" "$python" "${program[@]}" "${arguments[@]}")
    ;;
  *) fail "DSVID_LAUNCHER=$DSVID_LAUNCHER: srun or deepspeed" ;;
esac

# Slurm's own signal (--signal above) goes to the ranks and not to this shell. What is sent to this shell is handed on
# by scancel, once: the ranks save at the first signal. Never kill srun itself: it would end the ranks without a save.
signals=0
# shellcheck disable=SC2317,SC2329
ask() {
  signals=$((signals + 1))
  if [ "$signals" = 1 ]; then
    echo "$(date +%T) signal: the ranks are asked to save"
    scancel --signal=USR1 "$SLURM_JOB_ID" || true
  fi
}
trap ask USR1 TERM

# Step of the newest checkpoint in the run folder; -1 where there is none.
newest() {
  local manifest step=-1
  for manifest in "$out"/checkpoints/step-*/manifest.json; do
    if [[ $manifest =~ /step-([0-9]+)/[^/]*$ ]] && [ "$((10#${BASH_REMATCH[1]}))" -gt "$step" ]; then
      step=$((10#${BASH_REMATCH[1]}))
    fi
  done
  echo "$step"
}

before=$(newest)
rm -f "$out/stopped" # of a start before
echo "$(date +%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): $out"
"${step[@]}" &
pid=$!
while true; do
  seen=$signals
  code=0
  wait "$pid" || code=$?
  # A signal to this shell ends `wait`, not the step: then its code is 128 + the signal's number.
  [ "$signals" != "$seen" ] && [ "$code" -gt 128 ] || break
done

# 75: saved, start me again. 138: ended by the signal before there was anything to save.
if [ "$code" = 75 ] || [ "$code" = 138 ]; then
  trap '' USR1 TERM # the requeue ends this shell
  restarts=${SLURM_RESTART_COUNT:-0}
  if [ -e "$out/stopped" ]; then
    echo "$(date +%T) exit code $code, not queued again: asked by $(cat "$out/stopped"); submit the same line to go on"
    exit "$code"
  fi
  if [ "$restarts" -ge 3 ] && [ "$(newest)" -le "$before" ]; then
    echo "$(date +%T) exit code $code, not queued again: $restarts restarts, and no checkpoint since the last;"       "give it a longer --time, or a later signal (--lead, --signal), and submit the same line to go on"
    exit "$code"
  fi
  echo "$(date +%T) exit code $code: job $SLURM_JOB_ID goes back into the queue"
  if scontrol requeue "$SLURM_JOB_ID"; then
    exit 0
  fi
  echo "$(date +%T) that was refused: submit the same line again to go on"
  exit 75
fi
echo "$(date +%T) ended with exit code $code"
exit "$code"
