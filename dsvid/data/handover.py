"""Tensors from one process to another in memory that both map: one copy on the way, and the same memory every time.

The memory is anonymous (memfd, Linux only): it needs no room in /dev/shm and is gone with the last process that maps
it. Knows nothing of clips. The sender asks for nothing back: the receiver says which slots nobody looks at any more.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 64  # bytes; whole cache lines


@dataclass(frozen=True)
class _Laid:
    """A tensor in a slot, in place of itself."""

    start: int
    dtype: str
    shape: tuple[int, ...]


# what this process has mapped of others, and the file descriptor that Python keeps for it
_mapped: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()


def drop_inherited() -> None:
    """In a forked process: let go of the memory that its parent shares with others; it is never looked at here."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor in _mapped.values():
        os.dup2(nothing, descriptor, inheritable=False)  # not closed: the number belongs to an object
    os.close(nothing)


class Sender:
    """The writing side: slots of memory, each one batch's tensors."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots: dict[int, mmap.mmap] = {}
        self._free: set[int] = set()
        self._dropped: list[int] = []
        self._count = 0

    def send(self, head: Any, item: Any) -> None:
        """Hand over `head` (small, any kind) and `item`; where that is a dict, its tensors go through a slot."""
        if not isinstance(item, dict):
            self._connection.send((head, item, None, 0, []))
            return
        laid: dict[str, Any] = {}
        tensors: list[tuple[_Laid, Tensor]] = []
        size = 0
        for name, value in item.items():
            if isinstance(value, Tensor):
                place = _Laid(size, str(value.dtype).removeprefix("torch."), tuple(value.shape))
                tensors.append((place, value))
                size += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
                laid[name] = place
            else:
                laid[name] = value
        slot, new = self._slot(max(size, ALIGNMENT))
        memory = self._slots[slot]
        for place, value in tensors:
            _view(np.frombuffer(memory, dtype=np.uint8), place).copy_(value)
        self._connection.send((head, laid, slot, len(memory) if new is not None else 0, self._dropped))
        self._dropped = []
        if new is not None:
            send_handle(self._connection, new, 0)
            os.close(new)

    def free(self, slots: list[int]) -> None:
        """Slots that the other side has let go of."""
        self._free.update(slots)

    def _slot(self, size: int) -> tuple[int, int | None]:
        """A free slot of at least `size` bytes, and the file of one that is new."""
        for slot in sorted(self._free):
            self._free.remove(slot)
            if len(self._slots[slot]) >= size:
                return slot, None
            del self._slots[slot]  # batches have become larger: this one is of no use any more
            self._dropped.append(slot)
        self._count += 1
        handle = os.memfd_create("dsvid-batch")
        os.ftruncate(handle, size)
        self._slots[self._count] = mmap.mmap(handle, size)
        return self._count, handle


class Receiver:
    """The reading side. Tensors of an item stay what they are as long as anything refers to them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots: dict[int, mmap.mmap] = {}
        self._freed: deque[int] = deque()

    def receive(self) -> tuple[Any, Any]:
        """(head, item). Raises EOFError or OSError where the other side has gone, also in the middle of a message."""
        head, item, slot, size, dropped = self._connection.recv()
        for old in dropped:
            self._slots.pop(old, None)
        if slot is None:
            return head, item
        if size:
            self._slots[slot] = _map(recv_handle(self._connection), size)
        # one array for all tensors of the item: when the last of them goes, so does the array, and the slot is free
        whole: NDArray[np.uint8] = np.frombuffer(self._slots[slot], dtype=np.uint8)
        weakref.finalize(whole, self._freed.append, slot).atexit = False
        return head, {name: _view(whole, value) if isinstance(value, _Laid) else value for name, value in item.items()}

    def freed(self) -> list[int]:
        """The slots that nobody looks at any more, each once."""
        slots = []
        while self._freed:
            slots.append(self._freed.popleft())
        return slots


def _map(handle: int, size: int) -> mmap.mmap:
    """The memory behind a file, which is closed. Raises RuntimeError where the system refuses."""
    try:
        memory = mmap.mmap(handle, size)
    except OSError as error:
        raise RuntimeError(f"a batch of {size / 1e6:.1f} MB cannot be mapped: {error}") from error
    finally:
        own = os.fstat(handle)
        os.close(handle)
    memory.madvise(mmap.MADV_DONTFORK)  # a process that is forked later would keep it for as long as it lives
    _mapped[memory] = next(number for number in _descriptors() if os.path.samestat(_stat(number), own))
    return memory


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def _stat(descriptor: int) -> os.stat_result:
    try:
        return os.fstat(descriptor)
    except OSError:  # that of the listing itself
        return os.stat_result([0] * 10)


def _view(whole: NDArray[np.uint8], place: _Laid) -> Tensor:
    dtype: torch.dtype = getattr(torch, place.dtype)
    count = int(np.prod(place.shape, dtype=np.int64))
    # from_numpy keeps the array alive as long as the storage
    flat = torch.from_numpy(whole)[place.start : place.start + count * dtype.itemsize]
    return flat.view(dtype).view(place.shape)
