"""What comes from outside can be hostile: weights and shards that run code, documents that blow up, names that lead
elsewhere. Nothing of it is executed, expanded, written or deleted; each is refused by name.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dsvid import checkpoint, engine, train
from dsvid.cli import main
from dsvid.data.manifest import read_list
from dsvid.errors import CheckpointError, DataError
from dsvid.publish import publish_file, publish_folder
from dsvid.runtime import Ranks
from dsvid.weights.card import read_card
from dsvid.weights.consolidate import consolidate
from dsvid.weights.load import load_model
from dsvid.weights.shards import open_shards
from dsvid.weights.source import open_weights

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dsvid"
ZERO2 = str(ROOT / "ds_configs" / "zero2.json")


# ---- files that would run code -------------------------------------------------------------------------------------


class Evil:
    """Makes a folder "pwned" where it is unpickled as pickle does it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("pwned",))


NAMED = f"{os.mkdir.__module__}.mkdir"


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "pwned").exists(), "the code in the file was run"


def evil_file(path: Path, content: dict[str, Any] | None = None, *, zipped: bool = True) -> Path:
    torch.save({**(content or {"model": {"a": torch.ones(2)}}), "x": Evil()}, path, pickle_module=pickle,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    return path


def test_the_evil_file_does_run_where_nobody_looks(tmp_path: Path) -> None:
    torch.load(evil_file(tmp_path / "evil.pth"), weights_only=False)
    assert (tmp_path / "pwned").is_dir()
    (tmp_path / "pwned").rmdir()


READERS: dict[str, Callable[[Path], object]] = {"open_weights": open_weights, "load_model": load_model}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("reader", READERS)
def test_weights_that_would_run_code_are_refused(reader: str, zipped: bool, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        READERS[reader](evil_file(tmp_path / "evil.pth", zipped=zipped))
    assert NAMED in str(caught.value) and "evil.pth" in str(caught.value)


def test_a_card_is_not_looked_for_in_them(tmp_path: Path) -> None:
    assert not read_card(evil_file(tmp_path / "evil.pth")).labels


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "evil.pth", "w"],
        ["features", "list.txt", "--weights", "evil.pth", "--out", "features"],
        ["eval", "--recipe", "demo_finetune", "--weights", "evil.pth"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_refuses_them(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil_file(tmp_path / "evil.pth")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    assert main(words) == 2
    assert NAMED in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_training_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(engine, "start_distributed", lambda *_, **__: None)  # one rank needs no process group
    path = evil_file(tmp_path / "evil.pth")
    words = ["--recipe", "demo_finetune", "--ds_config", ZERO2, "--out", str(tmp_path / "run"), f"model.init={path}"]
    assert train.main(words) == 2
    assert NAMED in capsys.readouterr().err


def small_checkpoint(folder: Path) -> Path:
    """A ZeRO-2 checkpoint of one rank with an average, as DeepSpeed lays it out."""
    folder.mkdir(parents=True)
    weights = torch.arange(6.0)
    model = {"module": {"model.a": weights.view(2, 3).bfloat16()}, "buffer_names": [], "shared_params": {},
             "param_shapes": [{"model.a": torch.Size([2, 3])}], "frozen_param_shapes": {}}  # fmt: skip
    state = {"state": {0: {"exp_avg": weights + 1}}, "param_groups": [{"lr": 1.0, "params": [0]}]}
    shard = {"zero_stage": 2, "partition_count": 1, "group_paddings": [0], "base_optimizer_state": state,
             "single_partition_of_fp32_groups": [weights]}  # fmt: skip
    torch.save(model, folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": shard}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save({"groups": [[weights + 2]]}, folder / "ema_rank_00000.pt")
    return folder


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt",
                                  "ema_rank_00000.pt"])  # fmt: skip
def test_shards_that_would_run_code_are_refused(name: str, tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "ck")
    assert torch.equal(consolidate(folder, "ema")["a"], torch.arange(2.0, 8.0).view(2, 3))
    evil_file(folder / name, torch.load(folder / name, weights_only=True))
    for reader in (lambda: consolidate(folder, "ema"), lambda: open_shards(folder).require("average")):
        with pytest.raises(CheckpointError) as caught:
            reader()
        assert NAMED in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("signed", [True, False])
def test_consolidating_them_is_refused_whoever_signed_them(
    signed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000001")
    evil_file(folder / "mp_rank_00_model_states.pt")
    (tmp_path / "run" / "recipe.yaml").write_text("task: pretrain\nmodel:\n  arch: vit_micro\n")
    if signed:
        sign(folder)
        words = [str(tmp_path / "run"), str(tmp_path / "w")]
    else:
        words = ["--unverified", str(folder), str(tmp_path / "w.safetensors")]
    assert main(["consolidate", *words]) == 2
    assert NAMED in capsys.readouterr().err
    assert not list(tmp_path.glob("w*"))


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt",
                                  "ema_rank_00000.pt", "rng_rank_00000.pt"])  # fmt: skip
def test_a_resume_refuses_them_whoever_signed_them(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_checkpoint(tmp_path / "checkpoints" / "step-00000001")
    evil_file(folder / name)
    sign(folder)
    found = checkpoint.newest_verified(tmp_path / "checkpoints")
    assert found is not None, "it fits its manifest"
    for name_of_step in ("read", "settle"):  # they need an engine, and open no file
        monkeypatch.setattr(checkpoint.partition, name_of_step, lambda *_, **__: None)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(
            SimpleNamespace(device=torch.device("cpu"), zero_optimization_stage=lambda: 2), found, ranks=Ranks(0, 1, 0),
            accumulation=1, more=lambda shards: shards.require("average"),
        )  # fmt: skip
    assert NAMED in str(caught.value) and name in str(caught.value)


def sign(folder: Path, **more: Any) -> None:
    """Give the folder a manifest that fits what is in it now, as whoever can write there could."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": checkpoint.hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != checkpoint.MANIFEST
    }
    facts = {"format": checkpoint.MANIFEST_VERSION, "step": 1, "world_size": 1, "stage": 2, "files": files, **more}
    facts["self_sha256"] = checkpoint.own_hash(facts)
    (folder / checkpoint.MANIFEST).write_text(json.dumps(facts))


def test_only_whoever_is_allowed_to_builds_objects() -> None:
    """No call in the package that runs what a file or a text says."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
            harmless = {
                "torch.load": given.get("weights_only") == "True",
                "np.load": given.get("allow_pickle") == "False",
                "yaml.load": len(node.args) > 1 and ast.unparse(node.args[1]) == "_StrictLoader",
            }
            forbidden = called in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "mktemp")
            forbidden |= called.endswith((".extractall", ".mktemp", ".unsafe_load", ".full_load"))
            if forbidden or given.get("shell") == "True" or not harmless.get(called, True):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {called}")
    assert not found


def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for content in ((1 << 60).to_bytes(8, "little") + b"{}", len(header).to_bytes(8, "little") + header + b"\0" * 64):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"w\.safetensors"):
            open_weights(path)


@pytest.mark.parametrize("shape", [[1 << 50], [-2, -3], [2, 4], [1 << 62, 4]])
@pytest.mark.parametrize("key", ["param_shapes", "frozen_param_shapes"])
def test_a_shape_that_lies_asks_for_no_memory(key: str, shape: list[int], tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "ck")
    path = folder / "mp_rank_00_model_states.pt"
    content = torch.load(path, weights_only=True)
    if key == "param_shapes":
        content[key] = [{"model.a": torch.Size(shape)}]
    else:
        content[key] = {"model.b": torch.Size(shape)}
        content["module"]["model.b"] = torch.ones(2)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"model\.[ab]"):
        dict(consolidate(folder))


# ---- documents that blow up ----------------------------------------------------------------------------------------

LARGE = 100 << 20
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "tag": "a: !!python/object/apply:os.mkdir [pwned]\n",
    "object": "a: !!python/object/new:os.system [mkdir pwned]\n",
    "bomb": BOMB,
    "twice": "task: pretrain\ntask: classify\n",
    "deep": "[" * 200_000,
    "indented": "".join(" " * i + "a:\n" for i in range(600)),
    "digits": "a: " + "9" * 200_000,
    "base60": "a: 1" + ":59" * 60_000,
    "many": "a: [" + "[]," * 60_000 + "]",
    "date": "a: 2020-13-45",
    "key": "? [a]\n: 1\n",
    "binary": "a: \0",
}
JSON = {
    "twice": '{"format": "dsvid-weights", "format": "dsvid-weights", "files": {}, "model_type": 1, "0": "x", "0": "y"}',
    "deep": '{"a": ' + "[" * 200_000,
    "digits": '{"a": ' + "9" * 200_000 + "}",
    "many": "[" + "{}," * 80_000 + "{}]",
    "text": "{a: 1}",
    "list": "[[]]",
}
# One line of Python for each reader of a document: what it does with the file `path` (alone in its folder).
DOCUMENTS = {
    "recipe.yaml": "load_recipe(str(path))",
    "run/recipe.yaml": "same_run(path)",
    "ds.json": "load_ds_config(path)",
    "json/run/ds_config.json": "same_run(path)",
    "manifest.json": "verify(path.parent)",
    "shards/manifest.json": "open_shards(path.parent)",
    "config.json": "read_config(path.parent)",
    "card/config.json": "read_card(path.parent)",
    "head_map.json": "read_head_map(path, 3, 3)",
}
MEASURE = """
import json, sys, time, traceback
from pathlib import Path
import torch, yaml
from dsvid.checkpoint import RunFolder, verify
from dsvid.deepspeed_json import load_ds_config
from dsvid.errors import DsvidError
from dsvid.monitor import trim_metrics
from dsvid.recipe import load_recipe
from dsvid.weights.card import read_card, read_labels
from dsvid.weights.fit import read_head_map
from dsvid.weights.folder import read_config
from dsvid.weights.shards import open_shards

recipe = load_recipe("demo_pretrain")

def same_run(path):
    RunFolder(path.parent).prepare(recipe, {}, "auto")

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

for name, call in json.loads(Path(sys.argv[1]).read_text()):
    path, before, start = Path(name), peak(), time.process_time()
    try:
        eval(call)
        error = "accepted"
    except DsvidError as failure:
        error = "refused: " + str(failure)
    except BaseException as failure:
        error = traceback.format_exc()[-400:]
    print(json.dumps([name, error, time.process_time() - start, peak() - before]), flush=True)
"""


def measure(jobs: list[tuple[str, str]], tmp_path: Path) -> list[tuple[str, str, float, int]]:
    """What became of each reader's call, its CPU seconds, and by how much the process's peak grew."""
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "jobs.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large"
    with path.open("w") as out:
        for _ in range(LARGE // (9 << 10) + 1):
            out.write('{"a": 1},' * 1024)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
def test_hostile_documents_are_refused_at_once(tmp_path: Path, large: Path) -> None:
    good = ROOT / "dsvid" / "recipes" / "demo_pretrain.yaml"
    jobs = []
    for document, call in DOCUMENTS.items():
        for evil, text in {**(YAML if document.endswith("yaml") else JSON), "large": ""}.items():
            path = tmp_path / evil / document
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.name == "run":  # the other one of the two, and a line that says that the run has begun
                (path.parent / "metrics.jsonl").write_text("{}\n")
                if document.endswith("json"):
                    shutil.copy(good, path.parent / "recipe.yaml")
            if evil == "large":
                os.link(large, path)
            else:
                path.write_text(text)
            jobs.append((str(path), call))
    outcomes = measure(jobs, tmp_path)
    assert len(outcomes) == len(jobs)
    wrong = [
        outcome
        for outcome in outcomes
        if not outcome[1].startswith("refused: ") or outcome[2] > 1 or outcome[3] > 200 << 20
    ]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
def test_what_is_not_refused_costs_little(tmp_path: Path, large: Path) -> None:
    """Labels may be many, and metrics.jsonl is trimmed line by line, however long one is."""
    for name in ("labels.json", "labels.txt", "metrics.jsonl"):
        os.link(large, tmp_path / name)
    deep = tmp_path / "deep.jsonl"
    deep.write_text('{"step": 1}\n' + "[" * 100_000 + '\n3\n{"step": "x"}\n{"step": 9}\n{"step": 2}')
    calls = {"labels.json": "read_labels(path)", "labels.txt": "read_labels(path)",
             "metrics.jsonl": "trim_metrics(path, 5)", "deep.jsonl": "trim_metrics(path, 5)"}  # fmt: skip
    outcomes = measure([(str(tmp_path / name), call) for name, call in calls.items()], tmp_path)
    assert [outcome[1].partition(":")[0] for outcome in outcomes] == ["refused", "refused", "accepted", "accepted"]
    assert all(seconds < 2 and grown < 200 << 20 for _, _, seconds, grown in outcomes), outcomes
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert deep.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_pipe_is_no_document(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_card_of(tmp_path)


def read_card_of(folder: Path) -> object:
    from dsvid.weights.folder import read_config

    return read_config(folder)


@pytest.mark.parametrize("line", ["a.mp4 " + "9" * 5000, "a.mp4\0 3", "a.mp4 ٣", '"a.mp4 3'])
def test_hostile_lines_of_a_list_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=r"list\.txt"):
        read_list(tmp_path / "list.txt")


def test_a_name_longer_than_the_file_system_s_is_just_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x" * 5000 + " 3\n")
    assert len(read_list(tmp_path / "list.txt")) == 1


# ---- names that lead elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "a/../../secret", "sub/secret", "..\\secret"])
def test_a_manifest_cannot_name_a_file_outside(name: str, tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "checkpoints" / "step-00000001")
    (tmp_path / "secret").write_text("secret")
    sign(folder, files={name: {"bytes": 6, "sha256": "0" * 64}})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.verify(folder)
    assert "outside its folder" in str(caught.value), "it was looked at"


def test_a_link_in_a_checkpoint_is_no_file_of_it(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "checkpoints" / "step-00000001")
    sign(folder)
    checkpoint.verify(folder)
    path = folder / "ema_rank_00000.pt"
    path.rename(tmp_path / "elsewhere.pt")
    path.symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(CheckpointError, match="ema_rank_00000"):
        checkpoint.verify(folder)


def test_a_file_beside_those_of_the_manifest_is_not_read(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "checkpoints" / "step-00000001")
    (folder / "ema_rank_00000.pt").rename(tmp_path / "kept")
    sign(folder)
    evil_file(folder / "ema_rank_00000.pt")
    for reader in (checkpoint.verify, open_shards):
        with pytest.raises(CheckpointError, match="does not list"):
            reader(folder)


@pytest.mark.parametrize("tag", ["../other", "/tmp", "..", ".", "", "a/b"])
def test_a_pointer_of_another_program_leads_into_its_folder_only(
    tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_checkpoint(tmp_path / "other")
    (tmp_path / "cks").mkdir()
    (tmp_path / "cks" / "latest").write_text(tag)
    assert main(["consolidate", "--unverified", str(tmp_path / "cks"), "w.safetensors"]) == 2
    assert "names no folder beside it" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()


# ---- what is written and deleted -----------------------------------------------------------------------------------


def test_foreign_files_in_a_run_folder_stay(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        sign(small_checkpoint(checkpoints / f"step-{step:08d}"), step=step)
    (checkpoints / ".tmp-step-00000004").mkdir()
    foreign = ["step-notes", "step-", ".tmp-mine", "notes", "step-00000001.bak"]
    for name in foreign:
        (checkpoints / name).mkdir()
        (checkpoints / name / "thesis.tex").write_text("years")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_text("years")
    (checkpoints / "step-00000000").symlink_to(tmp_path / "elsewhere")
    checkpoint._prune(checkpoints, 2, 0, "step-00000003")
    left = {path.name for path in checkpoints.iterdir()}
    assert left - {"step-00000000"} == {*foreign, "step-00000002", "step-00000003"}
    assert all((checkpoints / name / "thesis.tex").is_file() for name in foreign)
    assert (tmp_path / "elsewhere" / "data").is_file()
    found = checkpoint.newest_verified(checkpoints)
    assert found is not None and found.step == 3


def test_what_is_half_written_is_the_owner_s_alone_and_under_a_name_nobody_can_guess(tmp_path: Path) -> None:
    names, modes = set(), set()

    def look(_: object) -> None:
        (scratch,) = [path for path in tmp_path.iterdir() if path.name.startswith(".w-")]
        names.add(scratch.name)
        modes.add(stat.S_IMODE(scratch.stat().st_mode) & 0o077)

    for _ in range(2):
        publish_file(tmp_path / "w", look)
    (tmp_path / "w").unlink()
    for _ in range(2):
        publish_folder(tmp_path / "w", look)
    assert len(names) == 4 and modes == {0}
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_link_at_the_destination_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("years")
    (tmp_path / "w.safetensors").symlink_to(tmp_path / "victim")
    publish_file(tmp_path / "w.safetensors", lambda out: out.write(b"new"))
    assert (tmp_path / "victim").read_text() == "years"
    assert not (tmp_path / "w.safetensors").is_symlink()


def test_a_weight_folder_is_not_written_over_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    assert main(["convert", "w.safetensors", "mine", "--overwrite"]) == 2
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
