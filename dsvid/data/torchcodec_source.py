"""A video read by torchcodec, on the CPU or by a GPU's decoder (never run); what comes out lies on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsvid.data.decode import ON_GPU, Frames, check_range, import_torchcodec


class TorchcodecSource:
    """As `decode.ClipSource`. Of `decoder` torchcodec_cuda the GPU is the one that is current in this thread."""

    note: str | None = None

    def __init__(self, path: str, decoder: str) -> None:
        self.path = path
        # with its number: without one torchcodec takes the first
        device = f"cuda:{torch.cuda.current_device()}" if decoder == ON_GPU else "cpu"
        # exact: it reads all packets first, as the index of PyAV does
        self._decoder: Any = import_torchcodec().VideoDecoder(
            path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact", device=device
        )
        self.frames = int(self._decoder.metadata.num_frames)
        fps = float(self._decoder.metadata.average_fps or 0)
        self.fps = fps if 0 < fps < 1e4 else None

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        """See ClipSource."""
        wanted = np.asarray(indices, dtype=np.int64)
        check_range(wanted, self.frames, self.path)
        pictures: Frames = self._decoder.get_frames_at(wanted.tolist()).data.cpu().numpy()
        return pictures

    def close(self) -> None:
        """Free the decoder."""
        self._decoder = None
