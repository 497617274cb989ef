#!/usr/bin/env bash
# Tests a weight folder on all ranks of the job; nothing is saved on the way, so it is not queued again.
#   sbatch [sbatch's options] scripts/slurm/eval.sh WEIGHTS RECIPE [--out DIR] [a.b=v ...]
# Run it where dsvid's clone is, or where `python -m dsvid` works. It reads, besides Slurm's own variables:
#   DSVID_PYTHON       the Python to use        (the activated environment's, else .venv/bin/python, else python3)
#   DSVID_MASTER_ADDR  address of the first node (its name in Slurm)
#SBATCH --job-name=dsvid-eval
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
set -euo pipefail

fail() {
  echo "eval.sh: $*" >&2
  exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "a batch script: sbatch eval.sh ..."
cd "$SLURM_SUBMIT_DIR"
[ $# -ge 2 ] || fail "WEIGHTS and RECIPE are needed"
weights=$1
recipe=$2
shift 2
program=(-m dsvid)
arguments=(eval --weights "$weights" --recipe "$recipe" "$@")

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
tasks=${SLURM_NTASKS_PER_NODE:-1}
if [ "${SLURM_GPUS_ON_NODE:-0}" -gt "$tasks" ]; then
  fail "$SLURM_GPUS_ON_NODE GPUs but $tasks task(s) on a node: add --ntasks-per-node=$SLURM_GPUS_ON_NODE"
fi
# Not --kill-on-bad-exit: the first rank that ends with 75 would have the others killed, and the job end with 137.
step=(srun --nodes="$nodes" --ntasks="$((nodes * tasks))" --ntasks-per-node="$tasks" --kill-on-bad-exit=0 --wait=30)
step+=("$python" -u "${program[@]}" "${arguments[@]}")
exec "${step[@]}"
