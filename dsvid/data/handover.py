"""Tensors from one process to another in memory that both map: one copy on the way, and the same memory every time.

The memory is anonymous (memfd, Linux only): it needs no room in /dev/shm and is gone with the last process that maps
it. Knows nothing of clips. The sender asks for nothing back: the receiver says which slots nobody looks at any more.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 64  # bytes; whole cache lines
ROOM = 1 << 16  # bytes behind what was stacked, for the item's other tensors; memory that is not used costs nothing


@dataclass(frozen=True)
class _Place:
    """A tensor in a slot, in place of itself."""

    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]


def _place(start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> _Place:
    return _Place(start, math.prod(shape) * dtype.itemsize, str(dtype).removeprefix("torch."), shape)


# what this process has mapped of others, and the file descriptor that Python keeps for it
_mapped: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()


def drop_inherited() -> None:
    """In a forked process: let go of the memory that its parent shares with others; it is never looked at here."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor in _mapped.values():
        os.dup2(nothing, descriptor, inheritable=False)  # not closed: the number belongs to an object
    os.close(nothing)


_sending: Sender | None = None  # of this process


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """As torch.stack; in a process that hands items over, in the memory in which the next one goes."""
    return torch.stack(list(tensors)) if _sending is None else _sending.stack(tensors)


def send_through(connection: Connection) -> Sender:
    """The sender of this process, for which `stack` stacks from now on."""
    global _sending
    _sending = Sender(connection)
    return _sending


class Sender:
    """The writing side: slots of memory, each one item's tensors."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots: dict[int, mmap.mmap] = {}
        self._files: dict[int, int] = {}  # of slots that the other side has not mapped yet
        self._free: set[int] = set()
        self._dropped: list[int] = []
        self._count = 0
        self._stacked: tuple[int, Tensor] | None = None  # slot, and what lies at its start already
        weakref.finalize(self, _close_all, self._files).atexit = False

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """As torch.stack, in the memory in which the next item is sent: what it holds of that is not copied again."""
        self._release()
        place = _place(0, tensors[0].dtype, (len(tensors), *tensors[0].shape))
        slot = self._slot(place.size + ROOM)
        stacked = _view(np.frombuffer(self._slots[slot], dtype=np.uint8), place)
        torch.stack(list(tensors), out=stacked)
        self._stacked = slot, stacked
        return stacked

    def send(self, head: Any, item: Any) -> None:
        """Hand over `head` (small, any kind) and `item`; where that is a dict, its tensors go through a slot."""
        if not isinstance(item, dict):
            self._release()
            self._connection.send((head, item, None, 0, []))
            return
        tensors = {name: value for name, value in item.items() if isinstance(value, Tensor)}
        slot, places, aside = self._lay(tensors)
        whole: NDArray[np.uint8] = np.frombuffer(self._slots[slot], dtype=np.uint8)
        for name, value in tensors.items():
            to = _view(whole, places[name])
            if to.data_ptr() != value.data_ptr():
                to.copy_(value)
        self._free.update(aside)
        new = self._files.pop(slot, None)
        size = len(self._slots[slot]) if new is not None else 0
        self._connection.send((head, {**item, **places}, slot, size, self._dropped))
        self._dropped = []
        if new is not None:
            send_handle(self._connection, new, 0)
            os.close(new)

    def free(self, slots: list[int]) -> None:
        """Slots that the other side has let go of."""
        self._free.update(slots)

    def _lay(self, tensors: dict[str, Tensor]) -> tuple[int, dict[str, _Place], set[int]]:
        """The slot of an item, where its tensors lie in it, and slots to be freed when they have been copied.

        It is the slot in which one of them was stacked, where they fit into that.
        """
        (ready, stacked), self._stacked = self._stacked or (0, None), None
        first = [name for name, value in tensors.items() if value is stacked]
        places, size = {}, 0
        for name in [*first, *(name for name in tensors if name not in first)]:
            places[name] = _place(size, tensors[name].dtype, tuple(tensors[name].shape))
            size += -(-places[name].size // ALIGNMENT) * ALIGNMENT
        if first and size <= len(self._slots[ready]):
            return ready, places, set()
        # the item may hold parts of what was stacked: they are read until they are copied
        return self._slot(max(size, ALIGNMENT)), places, {ready} if ready else set()

    def _release(self) -> None:
        if self._stacked is not None:
            self._free.add(self._stacked[0])
            self._stacked = None

    def _slot(self, size: int) -> int:
        """A free slot of at least `size` bytes."""
        for slot in sorted(self._free):
            self._free.remove(slot)
            if len(self._slots[slot]) >= size:
                return slot
            del self._slots[slot]  # batches have become larger: this one is of no use any more
            if slot in self._files:
                os.close(self._files.pop(slot))
            else:
                self._dropped.append(slot)
        self._count += 1
        handle = os.memfd_create("dsvid-batch")
        self._files[self._count] = handle
        os.ftruncate(handle, size)
        self._slots[self._count] = mmap.mmap(handle, size)
        return self._count


def _close_all(files: dict[int, int]) -> None:
    for handle in files.values():
        os.close(handle)


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
        return head, {name: _view(whole, value) if isinstance(value, _Place) else value for name, value in item.items()}

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


def _view(whole: NDArray[np.uint8], place: _Place) -> Tensor:
    dtype: torch.dtype = getattr(torch, place.dtype)
    # from_numpy keeps the array alive as long as the storage
    flat = torch.from_numpy(whole)[place.start : place.start + place.size]
    return flat.view(dtype).view(place.shape)
