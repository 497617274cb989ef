"""A plan as plain numbers for JSON, and as a table for people. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsvid.data.device_copy import ON_DEVICE
from dsvid.deepspeed_json import precision
from dsvid.plan import compute, zero
from dsvid.plan.advice import Change
from dsvid.plan.estimate import GIB, Plan
from dsvid.plan.run_length import RunLength, run_length

Row = tuple[str, str, str]


def as_json(plan: Plan, change: Change | None, others: list[Change]) -> dict[str, Any]:
    """Every number of a plan, in bytes, FLOPs and seconds; null where a number is not known."""
    question, schedule, length = plan.question, plan.schedule, run_length(plan)
    return {
        "recipe": question.recipe,
        "task": plan.recipe.task,
        "arch": plan.spec.arch,
        "gpus": question.gpus,
        "zero_stage": plan.settings.stage,
        "precision": precision(plan.config),
        "attention": plan.setting.attention,
        "checkpointing": plan.checkpointing,
        "parameters": {"total": plan.sizes.total, "trained": plan.sizes.trained},
        "tokens": vars(plan.count),
        "batch": {
            "total": schedule.batch_total, "micro": schedule.batch_micro, "accumulation": schedule.accumulation,
            "lr": schedule.lr, "min_lr": schedule.min_lr,
        },
        "flops_per_clip": {"model": plan.flops_model, "executed": plan.flops_executed},
        "memory_bytes": {
            "weights": plan.states.weights, "gradients": plan.states.gradients, "masters": plan.states.masters,
            "moments": plan.states.moments, "average": plan.states.average, "states": plan.states.device,
            "activations": plan.activations.device, "activations_saved": plan.activations.saved,
            "activations_recomputed": plan.activations.recomputed, "activations_working": plan.activations.working,
            "activations_by_backend": plan.variants, "buffers": plan.buffers, "clips": plan.clips_bytes,
            "step_buffers": plan.step_buffers, "peak_backward": plan.peak_backward, "peak_step": plan.peak_step,
            "peak": plan.peak, "reserve_assumed": question.reserve, "gpu": question.memory,
            "host_per_gpu": plan.states.host + plan.activations.host,
        },
        "fits": plan.fits,
        "change": None if change is None else _change_json(change),
        "other_changes": [_change_json(other) for other in others],
        "disk_bytes": {"checkpoint": plan.checkpoint, "run_folder": length.disk_bytes},
        "videos": {"count": plan.videos.count, "source": plan.videos.source},
        "steps": length.steps,
        "warmup_steps": length.warmup_steps,
        "run_flops": length.flops,
        "rate": None if question.rate is None else {
            "peak_flops": question.rate.peak, "mfu_assumed": question.rate.share, "source": question.rate.source,
        },
        "step_seconds": None if plan.time is None else vars(plan.time),
        "sent_bytes_per_step": plan.sent_bytes,
        "clips_per_second": length.clips_a_second,
        "days": length.days,
        "gpu_hours": length.gpu_hours,
        "loader_cores_per_gpu": length.cores,
        "loader_cores_per_gpu_shards": length.cores_shards,
        "not_modelled": zero.not_modelled(plan.config),
    }  # fmt: skip


def _change_json(change: Change) -> dict[str, Any]:
    return {"words": list(change.words), "what": change.why, "peak_bytes": change.plan.peak}


def table(plan: Plan, change: Change | None, others: list[Change]) -> str:
    """The plan as aligned lines."""
    length = run_length(plan)
    parts = [_head(plan), *_rows(_model(plan)), "", *_rows(_memory(plan)), "", *_verdict(plan, change, others)]
    parts += ["", *_rows([*_run(plan, length), *_feeding(plan, length)])]
    for key in zero.not_modelled(plan.config):
        parts.append(f"not known: what {key} changes in memory; the numbers are those without it")
    if plan.sizes.frozen:
        parts.append("FLOPs and activations are those of training every parameter; resting ones need less")
    return "\n".join(parts)


def _head(plan: Plan) -> str:
    question = plan.question
    nodes = -(-question.gpus // question.gpus_a_node)
    where = f"{question.gpus} GPU{'s' * (question.gpus > 1)}" if nodes < 2 else f"{question.gpus} GPUs on {nodes} nodes"
    how = f"ZeRO-{plan.settings.stage}, {precision(plan.config)}"
    return f"{question.recipe}: {plan.recipe.task}, {plan.spec.arch}, {where}, {how}"


def _rows(rows: list[Row]) -> Iterator[str]:
    for name, value, remark in rows:
        yield f"  {name:<24}{value:>16}  {remark}".rstrip()


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / (1 << 20):.2f} MiB"


def _model(plan: Plan) -> list[Row]:
    schedule, sizes, count = plan.schedule, plan.sizes, plan.count
    resting = f"{sum(sizes.frozen) / 1e6:.1f} M of them rest" if sizes.frozen else ""
    tokens = f"{count.encoded} encoded"
    if count.decoded:
        tokens += f", {count.encoded + count.decoded} in the decoder, {count.predicted} predicted"
    more = plan.flops_executed - plan.flops_model
    again = f"{plan.flops_executed / 1e9:.1f} with recomputation" if more > 0 else "forward and backward"
    return [
        ("parameters", f"{sizes.total / 1e6:.2f} M", resting),
        ("tokens of a clip", str(plan.spec.grid.tokens), tokens),
        ("GFLOP a clip", f"{plan.flops_model / 1e9:.1f}", again),
        ("batch.total", str(schedule.batch_total),
         f"= {plan.question.gpus} x micro-batch {schedule.batch_micro} x accumulation {schedule.accumulation}"),
        ("learning rate", f"{schedule.lr:.4g}", "= optim.base_lr x batch.total / optim.lr_scale_batch"),
    ]  # fmt: skip


def _memory(plan: Plan) -> list[Row]:
    states, acts = plan.states, plan.activations
    clips = plan.setting.clips
    kind = plan.setting.attention + (", checkpointing" if plan.checkpointing else "")
    rows: list[Row] = [
        ("a GPU holds", "", ""),
        ("weights", size(states.weights), ""),
        ("gradients", size(states.gradients), "at the end of an accumulation"),
        ("fp32 masters", size(states.masters), ""),
        ("Adam's moments", size(states.moments), ""),
    ]
    if states.average:
        rows.append(("moving average", size(states.average), "optim.ema_decay"))
    rows += [
        ("= model states", size(states.device), ""),
        ("activations", size(acts.device), f"{clips} clips, {kind}: {size(acts.device / clips)} a clip"),
        *(
            (f"  {name}", size(value), "in its place" + ("; flash_attn keeps as much" if "sdpa" in name else ""))
            for name, value in plan.variants.items()
            if name != kind.replace("flash_attn", "sdpa")
        ),
        *((name, size(value), "") for name, value in plan.buffers.items()),
        ("clips", size(plan.clips_bytes), f"uint8, {ON_DEVICE} micro-batches: at work, ready, on its way"),
        ("peak in the backward", size(plan.peak_backward), ""),
        ("peak in the step", size(plan.peak_step), "no activations, gradients of a group in fp32"),
    ]
    host = states.host + acts.host
    if host:
        note = f"offloaded: {size(host * min(plan.question.gpus, plan.question.gpus_a_node))} a node"
        rows.append(("host memory a GPU", size(host), note))
    return rows


def _verdict(plan: Plan, change: Change | None, others: list[Change]) -> Iterator[str]:
    question = plan.question
    needed = f"{size(plan.peak)} + {size(question.reserve)} reserve (assumed: CUDA context, NCCL, allocator)"
    if question.memory is None:
        yield f"needs {needed} a GPU; --gpu-mem GB says whether it fits"
        return
    if plan.fits:
        yield f"fits: {needed} of {size(question.memory)}"
        return
    yield f"does not fit: {needed}, of {size(question.memory)}"
    if change is None:
        yield "no larger stage, checkpointing, smaller micro-batch or offload helps: more GPUs, or a smaller model"
        return
    yield f"  cheapest change: {' '.join(change.words)}"
    yield f"    {change.why}: {size(change.plan.peak)} + reserve"
    for other in others:
        yield f"  or: {' '.join(other.words)}  ({other.why}: {size(other.plan.peak)} + reserve)"


def _run(plan: Plan, length: RunLength) -> list[Row]:
    rows: list[Row] = []
    if length.steps is None:
        rows.append(("steps", "not known", plan.videos.source))
    else:
        warmup = "warm-up not known" if length.warmup_steps is None else f"{length.warmup_steps} of warm-up"
        rows.append(("steps", f"{length.steps}", f"{warmup}; videos: {plan.videos.source}"))
        again = "recomputation included" if plan.checkpointing else ""
        rows.append(("the run", f"{(length.flops or 0) / 1e18:.4g} EFLOP", again))
    rate = plan.question.rate
    if rate is None or plan.time is None:
        rows.append(("days", "not known", "give --gpu NAME or --tflops T"))
    else:
        source = f"{rate.source}; {rate.share:.0%} of it assumed ({compute.PUBLISHED_MFU})"
        rows.append(("rate of a GPU", f"{rate.flops / 1e12:.0f} TFLOP/s", source))
        links = f"collectives {plan.time.communication_s:.3f} s alone, by a model of assumed links (docs/plan.md)"
        rows.append(("a step", f"{plan.time.total_s:.3f} s", links))
        rows.append(("clips a second", f"{length.clips_a_second:.0f}", "all GPUs, if they are fed"))
        if length.days is not None and length.gpu_hours is not None:
            rows.append(
                ("days", f"{length.days:.2f}", f"{length.gpu_hours:.0f} GPU hours, without evaluations and saves")
            )
        else:
            rows.append(("days", "not known", "the steps are not known"))
    rows.append(("a checkpoint", size(plan.checkpoint), f"run folder {size(length.disk_bytes)}: {length.disk_remark}"))
    return rows


def _feeding(plan: Plan, length: RunLength) -> list[Row]:
    if length.cores is None or length.cores_shards is None:
        return [("loader cores a GPU", "not known", "they follow from clips a second")]
    low, high = length.cores
    workers = plan.recipe.data.num_workers
    remark = f"H.264 340x256, 15 to 20 videos a second a core; data.num_workers={workers}"
    if plan.recipe.task == "anomaly" or plan.recipe.data.train == "footage":
        remark = f"as H.264; frames in zips are JPEG, as packed ones are; data.num_workers={workers}"
    few, most = length.cores_shards
    return [
        ("loader cores a GPU", f"{low:.1f} to {high:.1f}", remark),
        ("  from packed shards", f"{few:.1f} to {most:.1f}", "about 8 times less (`dsvid data pack`)"),
    ]
