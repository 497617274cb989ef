"""`dsvid consolidate` on real DeepSpeed files of every stage, and on damaged ones."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsvid import checkpoint
from dsvid.cli import main
from dsvid.errors import CheckpointError
from dsvid.models.spec import ModelSpec, build_model
from dsvid.weights.card import Card
from dsvid.weights.consolidate import consolidate
from dsvid.weights.export import write_dsvid
from dsvid.weights.load import load_model
from tests.distributed.conftest import ROOT, finish, launch, must_succeed

pytestmark = pytest.mark.long


@pytest.mark.parametrize("run", [f"{kind}-z{stage}" for kind in ("fp32", "bf16") for stage in range(4)])
def test_the_command_gives_the_weights_of_the_run(run: str, stages: Path, tmp_path: Path) -> None:
    assert main(["consolidate", str(stages / run), str(tmp_path / "w")]) == 0
    ours = load_file(tmp_path / "w" / "model.safetensors")
    theirs = load_file(stages / run / "weights" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["model"]["arch"] == "vit_micro" and config["trained"]["steps"] == 10


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_s_own_converter_agrees(stage: int, stages: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = stages / f"bf16-z{stage}" / "checkpoints"
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="step-00000010")
    ours = consolidate(folder / "step-00000010")
    assert {name.removeprefix("model.") for name in theirs} == set(ours)
    assert all(torch.equal(tensor, ours[name.removeprefix("model.")]) for name, tensor in theirs.items())


@pytest.fixture()
def copy(stages: Path, tmp_path: Path) -> Path:
    shutil.copytree(stages / "bf16-z2", tmp_path / "run")
    return tmp_path / "run"


def test_a_damaged_run_is_refused_and_nothing_is_written(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next((copy / "checkpoints" / "step-00000010").glob("*rank_1*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert main(["consolidate", str(copy / "checkpoints" / "step-00000010"), str(copy / "w")]) == 2
    assert shard.name in capsys.readouterr().err
    assert not (copy / "w").exists()


def test_a_missing_shard_is_named(copy: Path) -> None:
    folder = copy / "checkpoints" / "step-00000010"
    next(folder.glob("*rank_1*optim_states.pt")).unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        consolidate(folder)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("pwned"),))  # type: ignore[return-value]


def test_a_shard_that_would_run_code_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    folder = copy / "checkpoints" / "step-00000010"
    torch.save(
        {"module": {}, "param_shapes": [], "x": Evil()}, folder / "mp_rank_00_model_states.pt", pickle_module=pickle
    )
    with pytest.raises(CheckpointError, match="cannot be read"):
        consolidate(folder)
    assert not (copy / "pwned").exists()


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consolidate", str(tmp_path / "none"), str(tmp_path / "w")]) == 2
    assert "nothing there" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["consolidate", str(tmp_path / "empty"), str(tmp_path / "w")]) == 2


def test_a_destination_with_other_files_is_left_alone(
    stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").write_text("years")
    assert main(["consolidate", str(stages / "fp32-z2"), str(tmp_path / "w")]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert (tmp_path / "w" / "thesis.tex").read_text() == "years"


def test_the_engine_resumes_only_what_verifies(copy: Path) -> None:
    found = checkpoint.newest_verified(copy / "checkpoints")
    assert found is not None and found.step == 10
    (copy / "checkpoints" / "step-00000010" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="none of 1"):
        checkpoint.newest_verified(copy / "checkpoints")


# ---- frozen parameters and running averages ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks train an encoder whose first half rests, at each stage; z0.pt … z3.pt are what the engine holds."""
    out = tmp_path_factory.mktemp("frozen")
    command = [sys.executable, str(Path(__file__).with_name("partly_frozen.py")), str(out)]
    must_succeed(finish(launch(2, command, out)))
    return out


def rests(name: str) -> bool:
    return name.startswith(("blocks.0.", "blocks.1.", "patch_embed."))


SPEC = ModelSpec("classify", "vit_micro", 4, 16, num_classes=3)
TAGS = [f"{kind}z{stage}" for kind in ("", "fp32-") for stage in range(4)]


@pytest.mark.parametrize("tag", TAGS)
def test_what_rests_comes_whole_beside_what_was_trained(tag: str, frozen: Path) -> None:
    held = torch.load(frozen / f"{tag}.pt", weights_only=True)
    start = build_model(SPEC, seed=1).state_dict()
    ours = consolidate(frozen / tag)
    assert ours.keys() == held.keys() == start.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, held[name]), name
        if rests(name):
            as_held = start[name] if "fp32" in tag else start[name].bfloat16().float()
            assert torch.equal(tensor, as_held), name
        else:
            assert not torch.equal(tensor, tensor.bfloat16().float()), f"{name}: a rounded copy, not the master"


@pytest.mark.parametrize("tag", TAGS)
def test_the_exported_file_answers_as_the_engine_did(tag: str, frozen: Path, tmp_path: Path) -> None:
    """The same bits from the live engine and from a model made of the written folder, in the engine's precision.

    At stage 3 DeepSpeed adds a linear layer's bias after the product, not within: in fp32 a last bit may differ there.
    """
    write_dsvid(tmp_path / "w", consolidate(frozen / tag), SPEC, Card())
    model, _ = load_model(tmp_path / "w")
    answer = torch.load(frozen / f"{tag}-logits.pt", weights_only=True)
    dtype = torch.float32 if "fp32" in tag else torch.bfloat16
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each rank had
    try:
        with torch.no_grad():
            logits = model.to(dtype)(answer["clips"].to(dtype))
    finally:
        torch.set_num_threads(threads)
    assert answer["logits"].dtype == dtype
    if tag == "fp32-z3":
        torch.testing.assert_close(logits, answer["logits"], rtol=0, atol=2.4e-7)
    else:
        assert torch.equal(logits, answer["logits"]), (logits - answer["logits"]).abs().max()


@pytest.mark.parametrize("tag", TAGS)
def test_averages_take_the_masters_place(tag: str, frozen: Path) -> None:
    held = torch.load(frozen / f"{tag}.pt", weights_only=True)
    ours = consolidate(frozen / tag, weights="ema")
    assert ours.keys() == held.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, held[name] if rests(name) else held[name] + 1), name


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_missing_average_is_named(stage: int, frozen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "z"
    shutil.copytree(frozen / f"z{stage}", folder)
    (folder / "ema_rank_00000.pt").unlink()
    with pytest.raises(CheckpointError, match="ema_rank_00000.pt"):
        consolidate(folder, weights="ema")


def test_a_missing_part_of_what_rests_is_an_error(frozen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "z"
    shutil.copytree(frozen / "z3", folder)
    next(folder.glob("zero_pp_rank_1_*model_states.pt")).unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        consolidate(folder)


# ---- memory --------------------------------------------------------------------------------------------------------

# Peak anonymous memory above a process that has imported everything; what is mapped from files the kernel takes back.
MEASURE = """
import json, sys, threading
from pathlib import Path
import torch
from dsvid.models.spec import ModelSpec
from dsvid.weights.card import Card
from dsvid.weights.consolidate import consolidate
from dsvid.weights.export import export
from dsvid.weights.folder import check_finite
from dsvid.weights.stream import shapes_of

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def watch():
    while not done.wait(0.001):
        seen.append(anonymous())

torch.set_num_threads(1)
torch.isfinite(torch.ones(1 << 20)).all()
before, seen, done = anonymous(), [], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
source, layout, destination = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
state = consolidate(source)
check_finite(state, source)
export(layout, destination, state, ModelSpec(**json.loads(sys.argv[4])), Card(), overwrite=False)
done.set()
thread.join()
size = 4 * sum(torch.Size(shape).numel() for shape in shapes_of(state).values())
print(json.dumps([(max(seen) - before) / size, size, len(seen)]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what is anonymous")
@pytest.mark.parametrize(
    ("stage", "layout", "allowed"),
    [(0, "dsvid", 0.3), (2, "dsvid", 0.3), (3, "dsvid", 0.3), (3, "hf", 1.3), (2, "videomae", 1.3)],
)
def test_a_model_is_never_in_memory_whole_or_never_twice(
    stage: int, layout: str, allowed: float, frozen: Path, tmp_path: Path
) -> None:
    config = json.dumps(ModelSpec("classify", "vit_small", 4, 16, num_classes=3).to_config())
    words = [str(frozen / f"large-z{stage}"), layout, str(tmp_path / "w"), config]
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    peak, size, looks = json.loads(done.stdout)
    assert size > 80e6 and looks > 10
    assert peak < allowed, f"{peak:.2f} x the fp32 weights"


# ---- other layouts -------------------------------------------------------------------------------------------------


def test_a_run_without_averages_has_none_to_give(
    stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["consolidate", str(stages / "fp32-z2"), str(tmp_path / "w"), "--weights", "ema"]) == 2
    assert "no running averages" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["hf", "videomae"])
def test_positions_that_a_layout_does_not_have_are_refused(
    layout: str, stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["consolidate", str(stages / "fp32-z2"), str(tmp_path / "w"), "--to", layout]) == 2
    assert "sincos_separable" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("layout", ["hf", "videomae"])
def test_a_run_goes_straight_to_another_layout(layout: str, stages: Path, tmp_path: Path) -> None:
    shutil.copytree(stages / "bf16-z2", tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("sincos_separable", "sincos_flat"))
    assert main(["consolidate", str(tmp_path / "run"), str(tmp_path / "w"), "--to", layout]) == 0
    theirs = load_file(stages / "bf16-z2" / "weights" / "model.safetensors")
    if layout == "videomae":
        ours = torch.load(tmp_path / "w", weights_only=True)["model"]
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        return
    ours = load_file(tmp_path / "w" / "model.safetensors")
    assert torch.equal(ours["decoder.head.weight"], theirs["decoder.head.weight"])
    assert json.loads((tmp_path / "w" / "config.json").read_text())["architectures"] == ["VideoMAEForPreTraining"]
