"""A progress bar over files, with a line for each that went wrong; no bar where there is no terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import TracebackType
from typing import Any

SHOWN = 20  # faults that are told, where not all of them are


class FaultBar:
    """`tell` for every file."""

    def __init__(self, total: int, unit: str, before: str = "", *, initial: int = 0, most: int | None = SHOWN) -> None:
        from tqdm import tqdm

        # disable=None: a bar only on a terminal
        self._bar: Any = tqdm(total=total, initial=initial, unit=unit, disable=None)
        self._before, self._left = before, most

    def __enter__(self) -> FaultBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def tell(self, *faults: str) -> None:
        """One file more, and what is wrong with it; empty texts are nothing."""
        self._bar.update()
        for fault in filter(None, faults):
            if self._left is None or self._left > 0:
                self._bar.write(self._before + fault)
            if self._left is not None:
                self._left -= 1


@contextmanager
def without_a_reader() -> Iterator[None]:
    """Work goes on when nobody reads its output any more (`| head`): what is printed then is dropped."""
    with redirect_stdout(_Forgiving(sys.stdout)) as stream:
        yield
        stream.flush()  # here, and not at the end of the interpreter, which would complain


class _Forgiving(io.TextIOBase):
    """A text stream whose reader may go."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._until_it_goes():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._until_it_goes():
            self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @contextmanager
    def _until_it_goes(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
