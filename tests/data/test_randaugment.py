"""RandAugment of clips against timm's own classes on single pictures."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from dsvid.data import randaugment
from dsvid.data.randaugment import parse_policy
from dsvid.errors import RecipeError

HPARAMS = {"translate_const": 100, "interpolation": Image.Resampling.BICUBIC}
VIDEOMAE = "rand-m7-n4-mstd0.5-inc1"


def clip_of(frames: int = 3, height: int = 40, width: int = 56) -> torch.Tensor:
    small = np.random.default_rng(0).integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return torch.from_numpy(np.repeat(np.repeat(small, 8, 1), 8, 2))


@pytest.mark.parametrize("text", ["rand-m9", "rand-m9-inc1", "rand-m5-t3a", "rand-m5-t3aw", "rand-tweights"])
@pytest.mark.parametrize("magnitude", [0.0, 3.7, 7.0, 10.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_operation_equals_timms_on_every_frame(text, magnitude, sign, monkeypatch):
    clip = clip_of()
    # timm negates where the number drawn is above one half
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign < 0 else 0.1)
    for name in parse_policy(text).names:
        theirs = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=HPARAMS)
        values = randaugment.arguments(name, magnitude, sign)
        ours = randaugment.apply(clip, [(name, values)])
        assert ours.dtype == torch.uint8 and ours.shape == clip.shape
        for frame, out in zip(clip, ours, strict=True):
            if values == (0,) and name.startswith("Posterize"):
                assert not out.any(), "no bit kept is black; timm fails there with Pillow 13"
                continue
            wanted = torch.from_numpy(np.array(theirs(Image.fromarray(frame.numpy()))))
            assert torch.equal(out, wanted), f"{name} at {magnitude}"


@pytest.mark.parametrize(
    "text",
    [VIDEOMAE, "rand-m6-n3-mstd0.5-inc1", "rand", "rand-n1-m3-p0.7-mmax20", "rand-mstd101-inc0", "rand-m4-n3-tweights"],
)
def test_a_policy_is_read_as_timm_reads_it(text):
    ours, theirs = parse_policy(text), auto_augment.rand_augment_transform(text, dict(HPARAMS))
    assert ours.names == tuple(op.name for op in theirs.ops)
    assert ours.operations == theirs.num_layers
    weights = theirs.choice_weights
    assert (ours.weights is None) == (weights is None)
    assert weights is None or np.allclose(ours.weights, weights)
    op = theirs.ops[0]
    assert (ours.magnitude, ours.probability) == (op.magnitude, op.prob)
    assert (ours.magnitude_std, ours.magnitude_max) == (op.magnitude_std, op.magnitude_max or 10)


def test_a_draw_serves_all_frames_and_is_a_function_of_the_generator():
    policy = parse_policy(VIDEOMAE)
    frame = clip_of(1)[0]
    clip = torch.stack([frame] * 4)
    before = random.getstate(), np.random.get_state()[1].copy()
    changed = 0
    for seed in range(40):
        out = policy(clip, np.random.default_rng(seed))
        assert all(torch.equal(out[0], other) for other in out)
        assert torch.equal(out, policy(clip, np.random.default_rng(seed)))
        changed += not torch.equal(out, clip)
    assert 30 <= changed < 40
    assert before[0] == random.getstate() and (before[1] == np.random.get_state()[1]).all()


def test_operations_come_with_their_probability_magnitude_and_sign():
    policy = parse_policy(VIDEOMAE)
    counts, degrees, lengths = collections.Counter(), [], []
    for seed in range(3000):
        steps = policy.draw(np.random.default_rng(seed))
        lengths.append(len(steps))
        counts.update(name for name, _ in steps)
        degrees += [values[0] for name, values in steps if name == "Rotate"]
    assert abs(np.mean(lengths) - 2) < 0.06 and max(lengths) == 4  # four operations, half of them used
    assert counts.keys() == set(policy.names)
    assert max(counts.values()) < 1.5 * min(counts.values())
    assert abs(np.mean(np.sign(degrees))) < 0.12
    assert abs(np.mean(np.abs(degrees)) - 21) < 0.3 and abs(np.std(np.abs(degrees)) - 1.5) < 0.2


@pytest.mark.parametrize(
    ("text", "part", "fix"),
    [
        ("rand-m7-nn4", "nn4", "'n'"),
        ("rand-m7-std0.5", "std0.5", "'mstd'"),
        ("rand-m7-w0", "w0", "tweights"),
        ("rand-m7-tweight", "tweight", "'tweights'"),
        ("rand-m7--n2", "found:", "expected"),
        ("augmix-m5", "augmix", "rand-m7-n4"),
        ("rand-p2", "range", "p from 0 to 1"),
    ],
)
def test_an_unknown_part_is_an_error_with_the_nearest_known(text, part, fix):
    with pytest.raises(RecipeError, match=part) as caught:
        parse_policy(text)
    assert text in str(caught.value) and fix in str(caught.value)
