"""Tensors in memory that two processes map: what was received stays what it is for as long as it is looked at."""

from __future__ import annotations

import gc
import multiprocessing
import os

import pytest
import torch

from dsvid.data.handover import Receiver, Sender


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
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = multiprocessing.Pipe()
    receiver, sender = Receiver(ours), Sender(theirs)
    for number in range(30):
        sender.send(number, batch(number))
        last = receiver.receive()[1]
        gc.collect()
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
