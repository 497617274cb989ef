"""Bytes of a JPEG or PNG -> pixels, by the fastest decoder that is installed. Knows no files; errors are PictureError.

torchvision's decoders give the same pixels as Pillow's at 70-80 % of the time (measured: JPEG of 1280 x 720, 340 x 256
and 64 x 64 pixels) and let other threads run; without them, or for other kinds of pictures, Pillow reads.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 1 << 27  # 8 times 4K: a header that says more is a mistake that would cost the machine's memory
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_SOURCE_PLACE = re.compile(r"^\w+, \S+:\d+, ")  # torchvision puts a place in its own source first
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # JPEG markers without a length
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

Pixels = NDArray[np.uint8]
Decoder = Callable[[memoryview], Any]


class PictureError(ValueError):
    """The bytes are no picture, or a broken one; the text says which."""


def decode_picture(data: memoryview) -> Pixels:
    """RGB pixels uint8 [H, W, 3] of a picture's bytes (a writable buffer). Raises PictureError."""
    jpeg = bytes(data[:3]) == _JPEG
    png = not jpeg and bytes(data[:8]) == _PNG
    if jpeg or png:
        _check_size(*(jpeg_size(data) if jpeg else struct.unpack(">II", data[16:24]) if len(data) > 24 else (0, 0)))
        decoder = _torchvision_decoder(jpeg)
        if decoder is not None:
            try:
                pixels: NDArray[Any] = decoder(data)
            except RuntimeError as error:
                raise PictureError(_SOURCE_PLACE.sub("", str(error).splitlines()[0])) from error
            if pixels.dtype == np.uint8:  # else 16 bits a channel: Pillow's conversion holds
                return pixels
    return decode_by_pillow(data)


def decode_by_pillow(data: memoryview) -> Pixels:
    """The same by Pillow alone."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            _check_size(*picture.size)
            pixels: Pixels = np.asarray(picture.convert("RGB"))
            return pixels
    except PictureError:
        raise
    except Exception as error:  # UnidentifiedImageError, OSError, SyntaxError, DecompressionBombError, struct.error
        text = "not a picture" if "cannot identify" in str(error) else f"{type(error).__name__}: {error}"
        raise PictureError(text) from error


def decode_jpegs(pictures: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """RGB pixels uint8 [N, H, W, 3] on `device` of N JPEGs of one size, each its bytes as uint8 on the CPU.

    On CUDA nvJPEG decodes, on the CPU `decode_picture`. Raises PictureError.
    """
    import torch

    if device.type == "cpu":
        return torch.from_numpy(np.stack([decode_picture(picture.numpy().data) for picture in pictures]))
    try:
        from torchvision.io import ImageReadMode

        # one call for all: nvJPEG decodes batches; nothing comes back where one of them is bad
        planes = torch.ops.image.decode_jpegs_cuda(list(pictures), ImageReadMode.RGB.value, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # ImportError, AttributeError (no such operator), RuntimeError
        raise PictureError(_SOURCE_PLACE.sub("", f"{error or type(error).__name__}".splitlines()[0])) from error
    return torch.stack([plane.permute(1, 2, 0) for plane in planes])


def decoder_name() -> str:
    """`torchvision` or `Pillow`: which one reads JPEG."""
    return "Pillow" if _torchvision_decoder(True) is None else "torchvision"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PictureError(f"{width} x {height} pixels, more than {MAX_PIXELS}")


def jpeg_size(data: memoryview) -> tuple[int, int]:
    """(width, height) of the frame header; (0, 0) where none is found, which the decoder will name."""
    at, end = 2, len(data)
    while at + 9 < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _FRAME_HEADERS:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


@lru_cache(maxsize=2)
def _torchvision_decoder(jpeg: bool) -> Decoder | None:
    """torchvision's decoder, or None where it is missing, built without the format or does not fit this torch."""
    try:
        import torch
        from torchvision.io import ImageReadMode  # which registers the operators

        # the operator itself: torchvision's function around it takes 5 % as long as a picture of 340 x 256 pixels
        own = (torch.ops.image.decode_jpeg if jpeg else torch.ops.image.decode_png).default
        mode = ImageReadMode.RGB.value

        def decode(data: memoryview) -> Any:
            return own(torch.frombuffer(data, dtype=torch.uint8), mode, False).permute(1, 2, 0).numpy()

        probe = io.BytesIO()
        Image.new("RGB", (8, 8)).save(probe, "JPEG" if jpeg else "PNG")
        decode(memoryview(bytearray(probe.getvalue())))
    except Exception:  # ImportError, RuntimeError (no such operator), OSError, ...
        return None
    return decode
