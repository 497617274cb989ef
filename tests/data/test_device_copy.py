"""Batches are copied beside the step; whoever uses one waits for its copy. No GPU: a stand-in for CUDA's streams."""

from __future__ import annotations

import pytest
import torch

from dsvid.data.device_copy import DeviceCopy
from dsvid.errors import DataError
from tests.data.standin_streams import Streams

GPU = torch.device("cuda", 3)


@pytest.fixture
def streams(monkeypatch):
    return Streams(monkeypatch)


def batch() -> dict:
    return {"clip": torch.arange(6), "index": torch.tensor([4, 5]), "notes": ["one"]}


def test_a_batch_is_there_when_it_is_used_and_not_before(streams):
    copy = DeviceCopy(GPU)
    sent = copy.start(batch())
    assert streams.devices == [GPU]
    assert not torch.equal(sent.batch["clip"], torch.arange(6)), "the host does not wait for the copy"
    done = copy.finish(sent)
    assert torch.equal(done["clip"], torch.arange(6)) and done["notes"] == ["one"]
    assert streams.main.guarded == [id(done["clip"])]


def test_which_clips_they_are_can_be_read_while_the_device_hangs(streams):
    sent = DeviceCopy(GPU).start(batch())
    assert sent.batch["index"].tolist() == [4, 5]


def test_errors_go_as_they_are(streams):
    copy, error = DeviceCopy(GPU), DataError("a list")
    assert copy.finish(copy.start(error)) is error


def test_what_is_decoded_there_is_not_copied(streams):
    there = torch.empty(6, device="meta")
    copy = DeviceCopy(GPU, lambda item: {**item, "clip": there} if item["notes"] else DataError("a list"))
    done = copy.finish(copy.start(batch()))
    assert done["clip"] is there and done["index"].tolist() == [4, 5] and streams.main.guarded == [id(there)]
    error = copy.start({**batch(), "notes": []})
    assert isinstance(error, DataError) and copy.finish(error) is error
