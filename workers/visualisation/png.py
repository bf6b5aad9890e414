"""Write a PNG twice as fast as a library that tries all five filters on each row.

Source: Portable Network Graphics (PNG) Specification, third edition, W3C 2025.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

#: Smaller than Pillow's default makes them; the next levels take twice as long for a tenth less.
_LEVEL = 3
#: The filter that keeps what differs from the row above: little, in a figure of flat areas.
_UP = 2
_TRUE_COLOUR = 2
_INCHES_IN_METRE = 1 / 0.0254


def png(rgb: NDArray[np.uint8], dpi: float) -> bytes:
    """The file of a picture of opaque colours, shape (height, width, 3), with so many dots per inch."""
    height, width, _ = rgb.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _UP
    dots = rgb.reshape(height, 3 * width)
    rows[0, 1:] = dots[0]
    np.subtract(dots[1:], dots[:-1], out=rows[1:, 1:])  # modulo 256, as the filter is
    per_metre = round(dpi * _INCHES_IN_METRE)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, _TRUE_COLOUR, 0, 0, 0)),
            _chunk(b"pHYs", struct.pack(">2IB", per_metre, per_metre, 1)),
            _chunk(b"IDAT", zlib.compress(rows.data, _LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
