"""The folder of a reader who has everything that the documents name, as small as it can be."""

from __future__ import annotations

import csv
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dsvid.cli import main
from dsvid.data import ava_generated, traffic_generated
from dsvid.data.builtin import draw_scene, render, write_clip
from dsvid.models.spec import ModelSpec, build_model
from dsvid.weights.folder import write_folder
from tests.documents.commands import ROOT
from tests.documents.tables import FRAMES, SIZE
from tests.migrate.released import RELEASED

PRETRAINED = ("FILE", "videomae_vit_b_1600e.pth")
FINETUNED = ("FILE.pth", "vit_b_k400_ft.pth")


def make_folder(folder: Path) -> None:
    """A clone, lists, videos, data sets and weights; the runs are made by `running.make_runs`."""
    (folder / "dsvid").symlink_to(ROOT / "dsvid")
    for name in ("ds_configs", "hostfiles", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    _make_lists(folder)
    _make_weights(folder)
    _make_ava(folder)
    _make_traffic(folder)
    (folder / "finetune.sh").write_text(
        next(each.text for each in RELEASED if each.recipe == "finetune_videomaev2_base_k400")
    )


def use_this_host(folder: Path) -> None:
    """Every hostfile names this machine, with two slots: nothing has to be reached over ssh."""
    for path in (folder / "hostfiles").iterdir():
        path.write_text("localhost slots=2\n")


def take_apart_a_checkpoint(folder: Path) -> None:
    """FOLDER: a checkpoint as another DeepSpeed program leaves it, without dsvid's manifest."""
    (step,) = (folder / "runs" / "k400" / "checkpoints").glob("step-*")
    shutil.copytree(step, folder / "FOLDER")
    (folder / "FOLDER" / "manifest.json").unlink()


def _video(path: Path, number: int, frames: int = 20) -> Path:
    """A built-in clip of 80 x 80 pixels at 12 frames a second, shown again and again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = render(draw_scene(number, number % 8))
    write_clip(path, np.concatenate([pictures] * -(-frames // len(pictures)))[:frames])
    return path


def _make_lists(folder: Path) -> None:
    videos = [_video(folder / "videos" / f"v{number}.mp4", number) for number in range(8)]
    names = [path.relative_to(folder) for path in videos]
    for name, part in {"train": names[:4], "val": names[4:6], "test": names[6:]}.items():
        (folder / f"{name}.csv").write_text("".join(f"{path} {place}\n" for place, path in enumerate(part)))
    (folder / "videos.txt").write_text("".join(f"{path}\n" for path in names[:2]))
    classes = "".join(f"class {number}\n" for number in range(400))
    (folder / "classes.txt").write_text(classes)
    (folder / "k400_names.txt").write_text(classes)
    for name in ("video.mp4", "drive.mp4"):
        _video(folder / name, 9, frames=60)  # reconstruct --start 3 begins in it
    shutil.copyfile(folder / "video.mp4", folder / "VIDEO.mp4")
    rows = [f"{second},0.1,0.2,0.5,0.9" for second in (0, 1, 2)]
    (folder / "boxes.csv").write_text("second,x1,y1,x2,y2\n" + "\n".join(rows) + "\n")


def _make_weights(folder: Path) -> None:
    """Published files hold tensors only: the layout of VideoMAE, `model` before and `module` after fine-tuning."""
    pretrained = ModelSpec("pretrain", "vit_micro", FRAMES, SIZE, depth=1)
    state = build_model(pretrained, seed=0).state_dict()
    for name in PRETRAINED:
        torch.save({"model": state}, folder / name)
    for name in ("WEIGHTS", "FILE_OR_FOLDER"):
        write_folder(folder / name, state, {"model": pretrained.to_config()})
    classifier = build_model(ModelSpec("classify", "vit_micro", FRAMES, SIZE, depth=1, num_classes=400), seed=1)
    for name in FINETUNED:
        torch.save({"module": classifier.state_dict()}, folder / name)
    people = ModelSpec("detect", "vit_micro", FRAMES, SIZE, depth=1, num_classes=80, final_norm="tokens")
    torch.save({"module": build_model(people, seed=2).state_dict()}, folder / "vit_b_ava.pth")
    risk = ModelSpec("anomaly", "vit_micro", FRAMES, SIZE, depth=1, num_classes=2)
    torch.save({"module": build_model(risk, seed=3).state_dict()}, folder / "vit_s_dota.pth")


def _make_ava(folder: Path) -> None:
    """`data/AVA` as it is laid out for training, and the release's files under their own names where one works."""
    paths = ava_generated.make_set(folder / "data" / "AVA", {"train": 2, "val": 1}, seconds=3)
    names = {
        "train_gt": "ava_train_v2.2.csv", "val_gt": "ava_val_v2.2.csv", "val_annotations": "ava_val_v2.2_min.json",
        "val_excluded": "ava_val_excluded_timestamps_v2.2.csv", "video_list": "ava_file_names_trainval_v2.1.txt",
        "labels": "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    }  # fmt: skip
    for key, name in names.items():
        shutil.copyfile(paths[key], folder / name)
    shutil.copytree(paths["clips"], folder / "clips" / "trainval")
    truth = list(csv.reader(paths["val_gt"].read_text().splitlines()))
    (folder / "result.csv").write_text("".join(",".join([*row[:7], "0.9"]) + "\n" for row in truth))
    (folder / "detector.csv").write_text("".join(",".join(row[:6]) + ",1,0.95\n" for row in _once(truth)))


def _once(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """One row of each box, whatever its classes."""
    return list({tuple(row[:6]): row for row in rows}.values())


def _make_traffic(folder: Path) -> None:
    clips = {"train": 2, "val": 2}
    for root in (folder / "data" / "DoTA", folder / "DoTA"):
        traffic_generated.make_set(root, clips)
    archive = sorted((folder / "DoTA" / "frames").glob("*/images.zip"))[0]
    with zipfile.ZipFile(archive) as content:
        content.extractall(archive.parent / "images")
    archive.unlink()  # so there is one to pack
    traffic_generated.make_set(folder / "DADA2000", clips, layout="dada")
    assert main(["traffic", "split", "dada", str(folder / "DADA2000"), "--val", "0.2", "--seed", "0", "--force"]) == 0
    for root in (folder / "BDD100K", folder / "data" / "BDD100K"):
        names = [_video(root / "train" / f"{number}.mov", number, frames=40).name for number in range(2)]
        (root / "bdd100k_splits").mkdir()
        (root / "bdd100k_splits" / "all.txt").write_text("".join(f"train/{name}\n" for name in names))
    _index("bdd100k", folder / "data" / "BDD100K", folder / "bdd100k.csv")
    capdata = folder / "data" / "CAP-DATA"
    shutil.copytree(folder / "DADA2000" / "frames", capdata / "frames")
    found = sorted(path.parent.relative_to(capdata / "frames") for path in capdata.glob("frames/*/*/images.zip"))
    (capdata / "CAPDATA_my_split").mkdir()
    (capdata / "CAPDATA_my_split" / "training.txt").write_text("".join(f"{name}\n" for name in found))
    _index("capdata", capdata, folder / "capdata.csv")
    kinetics = folder / "Kinetics700"
    rows = ["label,youtube_id,time_start,time_end"]
    for number in range(2):
        _video(kinetics / "train" / "a label" / f"id{number}_{number:06d}_{number + 10:06d}.mp4", number)
        rows.append(f"a label,id{number},{number},{number + 10}")
    (kinetics / "annotations").mkdir()
    (kinetics / "annotations" / "train.csv").write_text("\n".join(rows) + "\n")
    (folder / "bad_ids.txt").write_text("id0\n")


def _index(layout: str, root: Path, target: Path) -> None:
    assert main(["traffic", "index", layout, str(root), "-o", str(target), "--jobs", "1"]) == 0
