"""One rank: train a tiny encoder whose first blocks rest, at every ZeRO stage in bf16 and fp32, save DeepSpeed's files,
and beside them what the engine itself holds and answers; averages stand there as the masters with 1 added.
"""

import json
import sys
from pathlib import Path

import deepspeed
import torch
import torch.nn.functional as F

from dsvid import engine as ds
from dsvid.models.spec import ModelSpec, build_model
from dsvid.runtime import Ranks, pick_device, read_ranks

SPEC = ModelSpec("classify", "vit_micro", 4, 16, num_classes=3)
LARGE = ModelSpec("classify", "vit_small", 4, 16, num_classes=3)
PLAIN_LINEAR = F.linear


def rests(name: str) -> bool:
    return name.startswith(("blocks.0.", "blocks.1.", "patch_embed."))


def build(spec: ModelSpec, stage: int, half: bool) -> torch.nn.Module:
    if stage < 3:
        model = build_model(spec, seed=1)
    else:
        with deepspeed.zero.Init(config_dict_or_path=settings(stage, half)):
            model = build_model(spec, seed=None)
        whole = build_model(spec, seed=1).state_dict()
        ds.fill_parameters(model, lambda name, _: whole[name])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not rests(name))
    return model


def settings(stage: int, half: bool) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": half},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def whole_weights(model: torch.nn.Module, stage: int) -> dict[str, torch.Tensor]:
    """fp32 masters of what moves, the engine's own copy of what rests."""
    from deepspeed.utils import safe_get_full_fp32_param

    out = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and stage:
            out[name] = safe_get_full_fp32_param(parameter).clone()
        elif stage == 3:
            with deepspeed.zero.GatheredParameters([parameter]):
                out[name] = parameter.data.float().clone()
        else:
            out[name] = parameter.data.float().clone()
    return out


def averages(engine: object, stage: int) -> list[object]:
    optimizer = engine.optimizer  # type: ignore[attr-defined]
    if stage == 0:
        held = getattr(optimizer, "fp32_groups", None) or [group["params"] for group in optimizer.param_groups]
        return [[master.detach() + 1 for master in group] for group in held]
    name = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
    groups = [flat.detach() + 1 for flat in getattr(optimizer, name)]
    return groups if stage == 1 else [[flat] for flat in groups]  # both forms are understood


def main(out: Path) -> None:
    ranks = read_ranks()
    ds.start_distributed(pick_device(ranks), ranks)
    for half in (True, False):
        for stage in range(4):
            run(out, f"{'' if half else 'fp32-'}z{stage}", stage, half, ranks)
    for stage in (0, 2, 3):
        save_large(out, stage)


def run(out: Path, tag: str, stage: int, half: bool, ranks: Ranks) -> None:
    # stage 3 puts its own in its place, with other last bits, and leaves it to the engines after it
    F.linear = PLAIN_LINEAR
    model = build(SPEC, stage, half)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]  # two groups, as with and without decay
    parameters = dict(model.named_parameters())
    groups = [{"params": [parameters[name] for name in half]} for half in halves]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, config=settings(stage, half), optimizer=optimizer)
    for step in range(2):
        torch.manual_seed(10 * step + ranks.rank)
        loss = engine(torch.randn(2, 3, 4, 16, 16)).float().square().mean()
        engine.backward(loss)
        engine.step()
    engine.save_checkpoint(str(out), tag=tag, save_latest=False)
    torch.save({"groups": averages(engine, stage)}, out / tag / f"ema_rank_{ranks.rank:05d}.pt")
    held = whole_weights(engine.module, stage)
    if stage == 0 and half:
        for group, masters in zip(halves, engine.optimizer.fp32_groups, strict=True):
            held.update({name: master.detach().float() for name, master in zip(group, masters, strict=True)})
    engine.eval()
    torch.manual_seed(5)
    clips = torch.randn(3, 3, 4, 16, 16)
    with torch.no_grad():
        logits = engine(clips)
    if ranks.first:
        torch.save(held, out / f"{tag}.pt")
        torch.save({"clips": clips, "logits": logits}, out / f"{tag}-logits.pt")
        (out / tag / "manifest.json").write_text(json.dumps({"groups": halves}))
    torch.distributed.barrier()
    engine.destroy()


def save_large(out: Path, stage: int) -> None:
    """22 million numbers, for those who measure: one step at most, nothing held beside the files."""
    model = build(LARGE, stage, half=True)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, config=settings(stage, True), optimizer=optimizer)
    engine.backward(engine(torch.randn(2, 3, 4, 16, 16)).float().square().mean())
    engine.step()
    tag = f"large-z{stage}"
    engine.save_checkpoint(str(out), tag=tag, save_latest=False)
    if torch.distributed.get_rank() == 0:
        (out / tag / "manifest.json").write_text(json.dumps({"groups": [list(parameters)]}))
    torch.distributed.barrier()
    engine.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter: an abort now and then
