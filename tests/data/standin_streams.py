"""A stand-in for CUDA's streams: copies happen only when somebody waits for the event behind them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class Stream:
    """What was begun on it and not waited for, and which tensors it was told to guard."""

    def __init__(self) -> None:
        self.begun: list[Callable[[], Any]] = []
        self.guarded: list[int] = []

    def record_event(self) -> list[Callable[[], Any]]:
        """Everything begun until now."""
        event, self.begun = self.begun, []
        return event

    def wait_event(self, event: list[Callable[[], Any]]) -> None:
        """Let it have happened."""
        for run in event:
            run()


class Streams:
    """`main`: the stream of whoever trains; `devices`: what threads have set as theirs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.main = Stream()
        self.current = self.main
        self.devices: list[torch.device] = []
        self.pinned: set[int] = set()
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.main)
        monkeypatch.setattr(torch.cuda, "set_device", self.devices.append)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.pin(tensor))
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **how: self.copy(tensor, **how))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: stream.guarded.append(id(tensor)))

    @contextmanager
    def on(self, stream: Stream) -> Any:
        """What is begun inside is begun on `stream`."""
        before, self.current = self.current, stream
        yield
        self.current = before

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy that is known as pinned."""
        pinned = tensor.clone()
        self.pinned.add(id(pinned))
        return pinned

    def copy(self, tensor: torch.Tensor, *, non_blocking: bool) -> torch.Tensor:
        """Begin a copy; its content is wrong until it was waited for."""
        assert non_blocking and id(tensor) in self.pinned, "a copy that would stop the host"
        assert self.current is not self.main, "a copy in front of the step"
        copied = torch.full_like(tensor, 77)
        self.current.begun.append(lambda: copied.copy_(tensor))
        return copied
