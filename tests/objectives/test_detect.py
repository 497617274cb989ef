"""The detection objective: its loss by hand, no influence of batch mates, images and batches without boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dsvid.data import ava_generated
from dsvid.data.ava import AvaSample, class_columns, detection_rows, train_samples, val_samples
from dsvid.data.ava_annotations import KeyFrame, read_annotations, read_person_boxes
from dsvid.data.ava_clips import MEAN, STD, AvaView, collate, eval_view, read_clip, train_view
from dsvid.data.ava_files import ImageNumbers, read_boxes
from dsvid.metrics.ava import BoxRows, score_detections
from dsvid.models import roi
from dsvid.models.detector import box_features, box_logits
from dsvid.models.spec import ModelSpec, build_model
from dsvid.objectives.detect import DetectObjective, detection_loss

SPEC = ModelSpec(
    task="detect", arch="custom", num_frames=4, input_size=32, num_classes=6, dim=24, depth=2, heads=2, patch=8,
    mlp_hidden=48, head_init_scale=50.0, drop_path=0.3,
)  # fmt: skip


def make(**options: object) -> DetectObjective:
    model = build_model(SPEC, seed=0)
    with torch.no_grad():  # far from the small initial values, so that differences show
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return DetectObjective(model, SPEC.grid, mean=MEAN, std=STD, **options)


def view(width: int, height: int, boxes: int, seed: int = 0) -> AvaView:
    rng = np.random.default_rng(seed)
    clip = torch.from_numpy(rng.integers(0, 256, size=(4, height, width, 3), dtype=np.uint8))
    low = rng.random((boxes, 2)) * (width / 2, height / 2)
    box = np.concatenate([low, low + 2 + rng.random((boxes, 2)) * 12], axis=1).astype(np.float32)
    sample = AvaSample(
        KeyFrame("v", 0, width, height), box, rng.integers(0, 2, size=(boxes, 6), dtype=np.uint8),
        rng.random(boxes).astype(np.float32),
    )  # fmt: skip
    return eval_view(clip, sample, short=min(width, height))


def batch_of(*views: AvaView, seeds: bool = False) -> dict[str, torch.Tensor]:
    batch = collate(views, 8)
    return {**batch, "seed": torch.arange(len(views))} if seeds else batch


def test_the_loss_is_the_seed_s_by_hand() -> None:
    objective = make().eval()
    one, two = view(32, 32, 2), view(32, 32, 3, seed=1)
    batch = batch_of(one, two)
    output = objective(batch)
    video = (batch["clip"].permute(0, 4, 1, 2, 3) / 255 - torch.tensor(MEAN).view(1, 3, 1, 1, 1)) / STD[0]
    features = objective.model.forward_map(video)
    boxes = torch.from_numpy(np.concatenate([one.boxes, two.boxes]))
    logits = box_logits(objective.model.head, box_features(features, boxes, torch.tensor([0, 0, 1, 1, 1]), 8))
    labels = torch.from_numpy(np.concatenate([one.labels, two.labels])).float()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels) * 5
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-5) and output.logs["boxes"] == 5
    scores = objective.scores(batch)
    assert scores.shape == (2, 3, 6) and not scores[0, 2].any()
    assert torch.allclose(scores[1], logits[2:].sigmoid() * torch.from_numpy(two.scores)[:, None], atol=1e-5)


def test_results_do_not_depend_on_batch_mates() -> None:
    wide, square, tall = view(53, 32, 2), view(32, 32, 3, seed=1), view(32, 60, 2, seed=2)
    objective = make().eval()
    with torch.no_grad():
        together = objective.scores(batch_of(wide, square, tall))
        for place, each in enumerate((wide, square, tall)):
            alone = objective.scores(batch_of(each))
            assert torch.allclose(alone[0], together[place, : len(each.boxes)], atol=1e-5)
        seed = make(batch_padding=True).eval()
        alone, beside = (seed.scores(batch_of(*views))[0] for views in ((square,), (square, wide)))
        assert (alone - beside).abs().max() > 1e-3  # the fault that the switch brings back


def test_what_lies_outside_of_a_clip_is_zero_after_the_norm() -> None:
    """As the seed pads: zeros behind the normalisation, within the last patches too."""
    objective = make(batch_padding=True).eval()
    views = view(53, 32, 2), view(32, 45, 2, seed=1)
    batch = batch_of(*views)
    video = torch.zeros(2, 3, 4, 48, 56)
    for place, each in enumerate(views):
        clip = (each.clip.permute(3, 0, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1, 1)) / STD[0]
        video[place, :, :, : clip.shape[2], : clip.shape[3]] = clip
    with torch.no_grad():
        ((_, features),) = objective._feature_maps(batch)
        assert torch.allclose(features, objective.model.forward_map(video), atol=1e-5)
        for place, each in enumerate(views):  # what was there before does not count
            batch["clip"][place] = 77
            batch["clip"][place, :, : each.clip.shape[1], : each.clip.shape[2]] = each.clip
        ((_, again),) = objective._feature_maps(batch)
    assert torch.equal(again, features)


def test_images_without_boxes_add_nothing() -> None:
    objective = make().eval()
    full, none = view(32, 32, 2), view(32, 32, 0)
    assert objective(batch_of(full, none)).loss.item() == pytest.approx(objective(batch_of(full)).loss.item(), rel=1e-5)
    assert objective.scores(batch_of(full, none))[1].abs().max() == 0


@pytest.mark.parametrize("backend", ["torchvision", "plain torch"])
def test_a_batch_without_boxes_has_loss_0_and_every_parameter_a_gradient(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "plain torch":
        monkeypatch.setattr(roi, "_torchvision", lambda: None)
    assert roi.roi_backend() == backend
    objective = make().train()
    output = objective(batch_of(view(32, 32, 0), view(53, 32, 0), seeds=True))
    output.loss.backward()
    assert output.loss.item() == 0 and output.logs["boxes"] == 0
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_a_clip_of_weight_0_does_not_count() -> None:
    objective = make().eval()
    batch = batch_of(view(32, 32, 2), view(32, 32, 3, seed=1))
    weighted = objective({**batch, "weight": torch.tensor([1.0, 0.0])})
    assert weighted.logs["boxes"] == 2
    assert weighted.loss.item() == pytest.approx(objective(batch_of(view(32, 32, 2))).loss.item(), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_gradient_is_that_of_the_published_run_however_clips_are_shared_out(parts: int) -> None:
    """Mean over micro-batches of any size = the seed's on ranks of two clips each."""
    views = [view(32, 32, 1 + number, seed=number) for number in range(4)]
    seed, ours = make().eval(), make(loss_clips=2).eval()
    for two in (views[:2], views[2:]):
        (seed(batch_of(*two)).loss / 2).backward()
    size = len(views) // parts
    for begin in range(0, len(views), size):
        (ours(batch_of(*views[begin : begin + size])).loss / parts).backward()
    for one, other in zip(seed.parameters(), ours.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


def test_drop_path_depends_on_the_clip_s_seed_alone() -> None:
    objective = make().train()
    wide, square = view(53, 32, 2), view(32, 32, 2, seed=1)
    both = objective({**batch_of(wide, square), "seed": torch.tensor([7, 8])}).loss
    apart = [
        objective({**batch_of(each), "seed": torch.tensor([seed])}).loss for each, seed in ((wide, 7), (square, 8))
    ]
    assert both.item() == pytest.approx(sum(apart).item(), rel=1e-5)


def test_boxes_that_do_not_count_leave_the_loss_alone() -> None:
    logits, labels = torch.randn(3, 6), torch.randint(0, 2, (3, 6))
    whole = detection_loss(logits, labels, torch.ones(3), 1.0)
    parts = [detection_loss(logits[k : k + 1], labels[k : k + 1], torch.ones(1), 1.0) for k in range(3)]
    assert whole.item() == pytest.approx(sum(parts).item(), rel=1e-6)
    assert detection_loss(logits, labels, torch.tensor([0.0, 1, 0]), 2.0).item() == pytest.approx(2 * parts[1].item())


def test_the_log_names_the_attention_and_the_roi_align() -> None:
    lines = make().attention_choices()
    assert any("RoIAlign" in line for line in lines) and any("encoder" in line for line in lines)


def test_it_learns_which_box_is_bright() -> None:
    """A class that only the box tells: one of two boxes of a clip is bright."""
    torch.manual_seed(0)
    objective = make().train()
    views = []
    for number in range(16):
        each = view(32, 32, 2, seed=number)
        each.clip.fill_(60)
        place = number % 2 * 16
        each.clip[:, 4:20, place : place + 12] = 230
        each.boxes[:] = [[0, 4, 12, 20], [16, 4, 28, 20]]
        each.labels[:] = 0
        each.labels[number % 2, 2] = 1
        views.append(each)
    batch = batch_of(*views, seeds=True)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        objective(batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits, clip, place = objective.eval()._box_logits(batch, torch.ones(16, 2, dtype=torch.bool))
    right = (logits[:, 2] > 0) == (clip % 2 == place)
    assert right.float().mean() > 0.95


def test_from_files_to_a_score_and_the_same_in_any_batch(tmp_path: Path) -> None:
    """The generated set through every part: files, samples, clips, views, batches, model, rows, mAP."""
    paths = ava_generated.make_set(tmp_path, {"train": 1, "val": 2}, seconds=3)
    columns = class_columns(list(ava_generated.NAMES))
    annotations = read_annotations(paths["val_annotations"])
    samples = val_samples(annotations, read_person_boxes(paths["people"]), columns)
    spec = replace(SPEC, num_frames=8, input_size=40, num_classes=len(columns))
    objective = DetectObjective(build_model(spec, seed=0), spec.grid, mean=MEAN, std=STD).eval()
    clips = [read_clip(paths["clips"], samples[number].frame, frames=8, rate=1) for number in range(len(samples))]
    views = [eval_view(clip, samples[number], short=40) for number, clip in enumerate(clips)]
    results = []
    for size in (1, 3):
        numbers = ImageNumbers()
        truth = read_boxes(paths["val_gt"], numbers)
        parts = []
        for begin in range(0, len(views), size):
            with torch.no_grad():
                scores = objective.scores(collate(views[begin : begin + size], 8)).numpy()
            for number, each in enumerate(scores, begin):
                sample = samples[number]
                image = numbers.number(sample.frame.video, sample.frame.micros)
                parts.append(detection_rows(sample, each[: len(sample.boxes)], image, columns))
        rows = BoxRows(*(np.concatenate([getattr(p, name) for p in parts]) for name in BoxRows.__dataclass_fields__))
        results.append((rows, score_detections(truth.rows, rows, list(columns), listed=truth.images)))
    assert len(results[0][0]) == len(columns) * len(samples.boxes) and results[0][1].truths.sum() == len(truth.rows)
    assert np.abs(results[0][0].score - results[1][0].score).max() <= 1.1e-5
    assert 0 < results[0][1].mean < 0.9

    sample = train_samples(read_annotations(paths["train_annotations"]), columns)[0]
    clip = read_clip(paths["clips"], sample.frame, frames=8, rate=1)
    trained = train_view(clip, sample, np.random.default_rng(0), short=48, side=40)
    objective.train()({**collate([trained], 8), "seed": torch.tensor([5])}).loss.backward()
    assert objective.model.head.weight.grad.abs().sum() > 0
