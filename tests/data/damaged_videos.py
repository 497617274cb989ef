"""A video of which some packets are destroyed."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def damaged(path: Path, lost: range, fps: int = 12) -> Path:
    """48 frames, each fourth a key frame; the packets `lost` hold zeros."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"g": "4", "bf": "0", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(48):
            picture = np.full((48, 64, 3), 5 * number, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for begin, size in (packets[number] for number in lost):
        content[begin : begin + size] = bytes(size)
    path.write_bytes(content)
    return path
