"""Memory that was freed stays with the process: for programs that need blocks of the same sizes again and again."""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2  # glibc's numbers of its options


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks; does nothing elsewhere, and where MALLOC_* variables say something.

    It hands blocks above 32 MB (in a young process: 128 kB) back to the kernel and faults them in again at the next
    use: keeping them made a training step on the CPU 1.2 to 1.3 times faster.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**29)):
            mallopt(option, value)
