"""Tensors in memory that two processes map: what was received stays what it is for as long as it is looked at."""

from __future__ import annotations

import gc
import multiprocessing
import os

import pytest
import torch

from dsvid.data import handover
from dsvid.data.handover import Receiver, Sender, send_through, stack


@pytest.fixture
def ends():
    ours, theirs = multiprocessing.Pipe()
    yield Receiver(ours), Sender(theirs)
    ours.close()
    theirs.close()


def batch(number: int, size: int = 100) -> dict:
    return {
        "clip": torch.full((3, size), number, dtype=torch.uint8),
        "seed": torch.tensor([number, 2**62]),
        "lam": torch.tensor([0.25 * number]),
        "half": torch.tensor([[number]], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "bad": [{"path": "a b"}],
    }


def same(left: dict, right: dict) -> bool:
    return list(left) == list(right) and all(
        torch.equal(left[name], value) and left[name].dtype == value.dtype if isinstance(value, torch.Tensor)
        else left[name] == value
        for name, value in right.items()
    )  # fmt: skip


def test_what_arrives_is_what_was_sent(ends):
    receiver, sender = ends
    sender.send(("head", 1), batch(7))
    head, item = receiver.receive()
    assert head == ("head", 1) and same(item, batch(7))
    assert not same(item, batch(8))
    sender.send(2, ValueError("as it is"))
    head, item = receiver.receive()
    assert head == 2 and isinstance(item, ValueError)


def test_memory_is_used_again_only_when_nothing_refers_to_it(ends):
    receiver, sender = ends
    kept = []
    for number in range(4):
        sender.free(receiver.freed())
        sender.send(number, batch(number))
        kept.append(receiver.receive()[1])
    assert len(sender._slots) == 4
    assert all(same(item, batch(number)) for number, item in enumerate(kept))
    part = kept[2]["clip"][1, 5:9]  # a view of a view keeps the whole
    del kept
    gc.collect()
    assert sorted(receiver.freed()) == [1, 2, 4] and receiver.freed() == []
    sender.free([1, 2, 4])
    for number in range(10, 13):
        sender.send(number, batch(number))
        assert same(receiver.receive()[1], batch(number))
    assert len(sender._slots) == 4, "the memory of the first ones served again"
    assert part.tolist() == [2] * 4


def test_larger_batches_take_new_memory_and_leave_none_behind(ends):
    receiver, sender = ends
    for size in (100, 5000, 100000):
        sender.send(0, batch(1, size))
        assert same(receiver.receive()[1], batch(1, size))
        gc.collect()
        sender.free(receiver.freed())
    assert len(sender._slots) == len(receiver._slots) == 1
    sender.send(0, batch(1, 50))
    assert same(receiver.receive()[1], batch(1, 50)) and len(sender._slots) == 1


def test_no_file_handle_is_left():
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = multiprocessing.Pipe()
    receiver, sender = Receiver(ours), Sender(theirs)
    for number in range(30):
        sender.send(number, batch(number))
        last = receiver.receive()[1]
        sender.free(receiver.freed())
    # the pipe has two, and each side one for each of its two slots, which the last item and the next one take in turn
    assert len(os.listdir("/proc/self/fd")) == before + 2 + 2 * 2
    del receiver, sender
    ours.close()
    theirs.close()
    assert same(last, batch(29))
    del last
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_sender_that_has_gone(ends):
    receiver, sender = ends
    sender._connection.close()
    with pytest.raises((EOFError, OSError)):
        receiver.receive()


# ---- stacked in place ----------------------------------------------------------------------------------------------


def clips(number: int) -> list[torch.Tensor]:
    return [torch.full((4, 50), 10 * number + place, dtype=torch.uint8) for place in range(3)]


def test_what_was_stacked_is_sent_without_a_copy(ends):
    receiver, sender = ends
    for number in range(3):
        sender.free(receiver.freed())
        clip = sender.stack(clips(number))
        assert torch.equal(clip, torch.stack(clips(number)))
        # in the memory that is sent, whatever its place among the others
        sender.send(number, {"index": torch.tensor([number]), "clip": clip, "notes": []})
        clip[0, 0, 0] = 99
        item = receiver.receive()[1]
        assert item["clip"][0, 0, 0] == 99 and item["index"].tolist() == [number] and item["notes"] == []
        assert torch.equal(item["clip"][1:], torch.stack(clips(number))[1:]) and item["clip"].shape == (3, 4, 50)
        del item, clip
        gc.collect()
    assert len(sender._slots) == 1


def test_parts_of_what_was_stacked_are_copied_before_their_memory_is_used_again(ends):
    receiver, sender = ends
    for number in range(4):
        clip = sender.stack(clips(number))
        expected = {"clip": clip[1:].clone(), "more": clip.flip(0)}
        sender.send(number, {"clip": clip[1:], "more": clip.flip(0)})
        item = receiver.receive()[1]
        assert same(item, expected)
        del item
        gc.collect()
        sender.free(receiver.freed())
    assert len(sender._slots) == 2


def test_stacked_memory_that_is_not_sent_serves_the_next(ends):
    receiver, sender = ends
    before = len(os.listdir("/proc/self/fd"))
    sender.stack(clips(1))
    sender.stack(clips(2))  # the item failed, and another one was made
    sender.send(0, "an error")
    assert receiver.receive() == (0, "an error")
    clip = sender.stack(clips(3))
    sender.send(1, {"clip": clip})
    assert torch.equal(receiver.receive()[1]["clip"], torch.stack(clips(3)))
    assert len(sender._slots) == 1
    unsent = Sender(sender._connection)
    unsent.stack(clips(1))
    del unsent, clip
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the slot, mapped on both sides


def test_an_item_that_does_not_fit_behind_what_was_stacked(ends):
    receiver, sender = ends
    clip = sender.stack(clips(5))
    item = {"clip": clip, "large": torch.arange(2 * handover.ROOM, dtype=torch.int64)}
    expected = {name: value.clone() for name, value in item.items()}
    sender.send(0, item)
    assert same(receiver.receive()[1], expected)


def test_without_a_sender_it_is_torch_s(ends, monkeypatch):
    monkeypatch.setattr(handover, "_sending", None)
    assert torch.equal(stack(clips(1)), torch.stack(clips(1)))
    sender = send_through(ends[1]._connection)
    assert stack(clips(1)) is sender._stacked[1]
