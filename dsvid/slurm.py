"""The batch scripts of Slurm jobs, general or filled in for one job; `scripts/slurm/` holds the general ones.

Knows Slurm's options and signals; imports no torch. A script has to stand alone: sbatch copies it to another place.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from dsvid.errors import RecipeError

KINDS = ("train", "eval", "dapt", "array")
LAUNCHERS = ("srun", "deepspeed")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")
UNITS = {"m": 1, "h": 60, "d": 24 * 60}

PURPOSE = {
    "train": """\
# Trains on the job's nodes, saves before the time is over or when the job is preempted, and queues itself again:
#   sbatch [sbatch's options] scripts/slurm/train.sh RECIPE [--ds_config FILE] [--out DIR] [a.b=v ...]
# With GPUs: sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 --time=24:00:00 ...""",
    "dapt": """\
# Domain-adaptive pre-training: goes on with masked pre-training on videos of one's own domain, from published weights.
# It is train.sh for a pre-training recipe with model.init; there is no task of its own behind it.
#   sbatch [sbatch's options] scripts/slurm/dapt.sh RECIPE model.init=WEIGHTS data.train=LIST [--out DIR] ...""",
    "array": """\
# A job array: line N of SWEEP holds the `a.b=v` items of task N (blanks between them), and DIR/N is its run folder.
#   sbatch --array=1-4 [sbatch's options] scripts/slurm/array.sh SWEEP RECIPE [--ds_config FILE] [--out DIR] ...""",
    "eval": """\
# Tests a weight folder on all ranks of the job; nothing is saved on the way, so it is not queued again.
#   sbatch [sbatch's options] scripts/slurm/eval.sh WEIGHTS RECIPE [--out DIR] [a.b=v ...]""",
}
VARIABLES = """\
# Run it where dsvid's clone is, or where `python -m dsvid` works. It reads, besides Slurm's own variables:
#   DSVID_PYTHON       the Python to use        (the activated environment's, else .venv/bin/python, else python3)
#   DSVID_LAUNCHER     srun: a task for each rank (default) · deepspeed: `deepspeed --no_ssh` once a node
#   DSVID_MASTER_ADDR  address of the first node (its name in Slurm)"""

ARGUMENTS = {
    "train": """\
[ $# -ge 1 ] || fail "no RECIPE"
recipe=$1
shift""",
    "dapt": """\
[ $# -ge 1 ] || fail "no RECIPE"
recipe=$1
shift
case " $* $recipe " in
  *" model.init="* | *".yaml "* | *".yml "*) ;;
  *) fail "domain-adaptive pre-training starts from weights: add model.init=FILE_OR_FOLDER" ;;
esac""",
    "array": """\
[ $# -ge 2 ] || fail "SWEEP and RECIPE are needed"
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || fail "no job array: sbatch --array=1-N ..."
sweep=$1
recipe=$2
shift 2
line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" -- "$sweep") || fail "$sweep cannot be read"
[ -n "$line" ] || fail "$sweep has no line $SLURM_ARRAY_TASK_ID"
read -r -a items <<<"$line"
set -- "$@" "${items[@]}\"""",
    "eval": """\
[ $# -ge 2 ] || fail "WEIGHTS and RECIPE are needed"
weights=$1
recipe=$2
shift 2""",
}
TRAIN_PROGRAM = """\
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
@OUT@program=(-m dsvid.train)
[ ! -f dsvid/train.py ] || program=(dsvid/train.py)
arguments=(--ds_config "$config" --recipe "$recipe" --out "$out" "${rest[@]}")"""
EVAL_PROGRAM = """\
program=(-m dsvid)
arguments=(eval --weights "$weights" --recipe "$recipe" "$@")"""

START = """\
#!/usr/bin/env bash
{purpose}
{variables}
{options}
set -euo pipefail
{given}
fail() {{
  echo "{name}: $*" >&2
  exit 2
}}

[ -n "${{SLURM_JOB_ID:-}}" ] || fail "a batch script: sbatch {name} ..."
cd "$SLURM_SUBMIT_DIR"
{arguments}
{program}

python=${{DSVID_PYTHON:-}}
if [ -z "$python" ] && [ -z "${{VIRTUAL_ENV:-}}${{CONDA_PREFIX:-}}" ] && [ -x .venv/bin/python ]; then
  python=$PWD/.venv/bin/python
fi
python=${{python:-$(command -v python || command -v python3)}}

nodes=${{SLURM_JOB_NUM_NODES:-1}}
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${{DSVID_MASTER_ADDR:-$first}}
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # below the ports that the system gives away
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since Slurm 22.05 srun does not take it over by itself
fi
"""

SRUN = """\
tasks=${SLURM_NTASKS_PER_NODE:-1}
if [ "${SLURM_GPUS_ON_NODE:-0}" -gt "$tasks" ]; then
  fail "$SLURM_GPUS_ON_NODE GPUs but $tasks task(s) on a node: add --ntasks-per-node=$SLURM_GPUS_ON_NODE@OTHER@"
fi
# Not --kill-on-bad-exit: the first rank that ends with 75 would have the others killed, and the job end with 137.
step=(srun --nodes="$nodes" --ntasks="$((nodes * tasks))" --ntasks-per-node="$tasks" --kill-on-bad-exit=0 --wait=30)
step+=("$python" -u "${program[@]}" "${arguments[@]}")"""

DEEPSPEED = """\
# One `deepspeed --no_ssh` a node. Slurm sends its signal to every process of the step: the shell and the launcher
# must survive it, and `dsvid launch` sees to that below itself.
slots=${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}
# shellcheck disable=SC2016
on_a_node='
trap "" USR1 TERM
hosts=$(mktemp)
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\\$/ slots=$1/" >"$hosts"
python=$2
shift 2
code=0
"$python" -m dsvid launch -- "$python" -m deepspeed.launcher.runner --hostfile "$hosts" --no_ssh \\
  --node_rank "$SLURM_NODEID" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@" || code=$?
rm -f "$hosts"
exit "$code"'
unset SRUN_CPUS_PER_TASK
step=(srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}")
step+=(--kill-on-bad-exit=0 --wait=60)
[ "${program[0]}" != -m ] || program=(--module "${program[1]}")
step+=(bash -c "$on_a_node" node "$slots" "$python" "${program[@]}" "${arguments[@]}")"""

CHOICE = """\
case ${{DSVID_LAUNCHER:-srun}} in
  srun)
{srun}
    ;;
  deepspeed)
{deepspeed}
    ;;
  *) fail "DSVID_LAUNCHER=$DSVID_LAUNCHER: srun or deepspeed" ;;
esac
"""

SUPERVISED = """\
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
    echo "$(date +%T) exit code $code, not queued again: $restarts restarts, and no checkpoint since the last;" \
      "give it a longer --time, or a later signal (--lead, --signal), and submit the same line to go on"
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
"""
PLAIN = """\
exec "${step[@]}"
"""


@dataclass(frozen=True)
class Resources:
    """What a job asks Slurm for; `None` leaves a line out."""

    name: str = "dsvid-{kind}"
    nodes: int | None = None
    gpus: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    array: str | None = None
    lead_s: int = 300
    launcher: str | None = None


def script(kind: str, resources: Resources | None = None, words: Sequence[str] = ()) -> str:
    """The text of a batch script; with `words` its arguments stand in it, each quoted for the shell.

    Raises RecipeError where a value cannot stand in a `#SBATCH` line.
    """
    resources = resources or Resources()
    training = kind != "eval"
    out = 'out=$out/$(printf "%04d" "$SLURM_ARRAY_TASK_ID")\n' if kind == "array" else ""
    program = TRAIN_PROGRAM.replace("@OUT@", out) if training else EVAL_PROGRAM
    variables = VARIABLES if training else "\n".join(VARIABLES.splitlines()[:2] + VARIABLES.splitlines()[-1:])
    text = START.format(
        purpose=PURPOSE[kind],
        variables=variables,
        options="\n".join(f"#SBATCH {line}" for line in sbatch_lines(kind, resources)),
        given=_given(resources, words),
        name=f"{kind}.sh",
        arguments=ARGUMENTS[kind],
        program=program,
    )
    srun = SRUN.replace("@OTHER@", ", or set DSVID_LAUNCHER=deepspeed" if training else "")
    if not training:
        return f"{text}{srun}\n{PLAIN}"
    return text + CHOICE.format(srun=_indent(srun), deepspeed=_indent(DEEPSPEED)) + "\n" + SUPERVISED


def _given(resources: Resources, words: Sequence[str]) -> str:
    lines = [f"export DSVID_LAUNCHER={resources.launcher}"] if resources.launcher else []
    lines += [f"set -- {shlex.join(words)}"] if words else []
    return "".join(f"{line}\n" for line in lines)


def _indent(text: str) -> str:
    """Two levels in; not the lines of a quoted text, which must not change."""
    lines, quoted = [], False
    for line in text.splitlines():
        lines.append(line if quoted or not line else f"    {line}")
        if line.startswith("on_a_node='"):
            quoted = True
        elif quoted and line.endswith("'"):
            quoted = False
    return "\n".join(lines)


def sbatch_lines(kind: str, resources: Resources) -> list[str]:
    """The `#SBATCH` options. Raises RecipeError by option name."""
    name = resources.name.format(kind=kind)
    lines = [
        f"--job-name={_name('--name', name)}",
        "--output=%x-%A_%a.out" if kind == "array" else "--output=%x-%j.out",
    ]
    nodes, gpus = resources.nodes, resources.gpus
    lines.append(f"--nodes={_number('--nodes', 1 if nodes is None else nodes, 1, 100_000)}")
    if gpus:
        lines.append(f"--gpus-per-node={_number('--gpus', gpus, 0, 1024)}")
    # A task for each rank; the deepspeed launcher needs the same cores, in one task a node.
    lines.append(f"--ntasks-per-node={max(1, _number('--gpus', gpus or 0, 0, 1024))}")
    if resources.cpus_per_task is not None:
        lines.append(f"--cpus-per-task={_number('--cpus-per-task', resources.cpus_per_task, 1, 4096)}")
    for option, value, pattern, example in (
        ("mem", resources.mem, r"\d+[KMGT]?", "240G"),
        ("partition", resources.partition, r"[A-Za-z0-9][A-Za-z0-9._,-]*", "gpu"),
        ("account", resources.account, NAME.pattern, "my-group"),
        ("qos", resources.qos, NAME.pattern, "normal"),
        ("array", resources.array, r"[0-9]+([-,:%][0-9]+)*", "1-8%2"),
    ):
        if value is not None:
            if not re.fullmatch(pattern, value):
                raise RecipeError(f"--{option}", found=repr(value), expected=f"like {example}")
            lines.append(f"--{option}={value}")
    if resources.time is not None:
        lines.append(f"--time={slurm_time(resources.time)}")
    if resources.launcher not in (None, *LAUNCHERS):
        raise RecipeError("--launcher", found=repr(resources.launcher), expected=" or ".join(LAUNCHERS))
    if kind != "eval":
        lead = _number("--lead", resources.lead_s, 10, 86_400)
        limit_s = time_s(slurm_time(resources.time)) if resources.time is not None else 0
        if 0 < limit_s <= 2 * lead:  # else every start is signalled before it has got anywhere, and queued again
            raise RecipeError(
                f"--lead {lead} is too long for --time {resources.time}",
                found=f"the signal comes {lead} s before the end of {limit_s} s",
                expected="a lead of less than half the time",
                fix=f"--time {2 * lead // 60 + 1}m or more" + (f", or --lead {limit_s // 4}" if limit_s >= 40 else ""),
            )
        lines += [f"--signal=USR1@{lead}", "--requeue", "--open-mode=append"]
    return lines


def slurm_time(text: str) -> str:
    """`24h`, `90m`, `2d`, or a time as Slurm writes it -> a time as Slurm reads it. Raises RecipeError."""
    short = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if short:
        hours, minutes = divmod(int(short[1]) * UNITS[short[2]], 60)
        return f"{hours // 24}-{hours % 24:02d}:{minutes:02d}:00" if hours >= 24 else f"{hours:02d}:{minutes:02d}:00"
    if not TIME.fullmatch(text) or not re.search(r"[1-9]", text):
        raise RecipeError("--time", found=repr(text), expected="like 24h, 90m, 2d, 12:00:00 or 1-12:00:00")
    return text


def time_s(text: str) -> int:
    """A time as Slurm reads it -> seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = text.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if dash or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _name(option: str, value: str) -> str:
    if not NAME.fullmatch(value):
        raise RecipeError(option, found=repr(value), expected="letters, digits, `.`, `_` and `-`")
    return value


def _number(option: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise RecipeError(option, found=value, expected=f"{least} to {most}")
    return value
