"""Batches on their way to a GPU, copied beside the step that computes there. Knows no order and no workers.

Needs CUDA; the tests run it against a stand-in for CUDA's streams, and it has not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Micro-batches on the device: the one at work, one that is ready (`in_thread` holds no more), one that is copied.
ON_DEVICE = 3
# The watchdog names the last clips while the device hangs: their numbers stay where they can be read.
ON_HOST = frozenset(("index",))


class Sent(NamedTuple):
    """A batch whose copies were begun, and the event that follows them."""

    batch: dict[str, Any]
    copied: Any


class DeviceCopy:
    """`start` in a thread of its own, a batch or two ahead; `finish` where the batch is used.

    `decode` makes the batch first, in that thread and on the stream of the copies.
    """

    def __init__(self, device: torch.device, decode: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.device = device
        self._decode = decode
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, item: Any) -> Any:
        """Begin to copy the tensors of a batch; what is no batch (an error) goes as it is."""
        if not isinstance(item, dict):
            return item
        torch.cuda.set_device(self.device)  # a thread's own: else pinning would take memory of the first GPU
        with torch.cuda.stream(self._stream):
            made = self._decode(item) if self._decode else item
            if not isinstance(made, dict):
                return made
            batch = {name: self._begun(name, value) for name, value in made.items()}
            return Sent(batch, self._stream.record_event())

    def finish(self, item: Any) -> Any:
        """The batch, for the stream that is current here: it waits for the copies, the host does not."""
        if not isinstance(item, Sent):
            return item
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(item.copied)
        for name, value in item.batch.items():
            if isinstance(value, Tensor) and name not in ON_HOST:
                value.record_stream(stream)  # else its memory could be given away while this stream still reads it
        return item.batch

    def _begun(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return value
        pinned = value.pin_memory()  # only from such memory does a GPU copy by itself
        return pinned if name in ON_HOST else pinned.to(self.device, non_blocking=True)
