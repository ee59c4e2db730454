"""The parts of PNG and JPEG files, counted before Pillow reads them.

Pillow goes through chunks, segments and padding in Python, and through all pixels for each scan, however small these
are: some megabytes of empty ones take minutes.
"""

import io
import re
from typing import IO

from PIL.JpegImagePlugin import MARKER

MAX_PARTS = 2**16  # the largest PNG in chunks of 8 KiB, libpng's, has half as many
# In the data of a scan 0xff is followed by 0 where it is no mark; restarts, 0xd0 to 0xd7, belong to the scan.
_MARK = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_SCAN, _END = 0xDA, 0xD9
_BARE = {0x01, *range(0xD0, 0xDA)}  # marks without a length


def png_parts(stream: IO[bytes] | io.BytesIO) -> int:
    """Chunks of a PNG; of more than `MAX_PARTS` no more than one is counted."""
    size, place, parts = stream.seek(0, 2), 8, 0
    while place < size and parts <= MAX_PARTS:
        stream.seek(place)
        place += 12 + int.from_bytes(stream.read(4), "big")
        parts += 1
    return parts


def jpeg_parts(jpeg: bytes, *, most_scans: int) -> tuple[int, int]:
    """Segments, with bytes between them, and scans of a JPEG; of more than the limits no more than one is counted.

    What follows the end of the image, such as a film, is not looked at.
    """
    place, parts = 2, 0
    # As Pillow reads up to the first scan: byte for byte where there is no mark that it knows.
    while place + 2 <= len(jpeg) and parts <= MAX_PARTS:
        parts += 1
        code = jpeg[place + 1]
        if jpeg[place] != 0xFF or code in (0, 0xFF):
            place += 1
        elif code == _SCAN:
            break
        elif known := MARKER.get(0xFF00 | code):
            place += 2 + (_length(jpeg, place + 2) if known[2] else 0)
        else:
            return parts, 0  # Pillow gives up here
    scans = 0
    # From there on as libjpeg does.
    while parts <= MAX_PARTS and scans <= most_scans and (mark := _MARK.search(jpeg, place)):
        parts, place, code = parts + 1, mark.end(), mark[0][-1]
        if code == _END:
            break
        scans += code == _SCAN
        place += 0 if code in _BARE else _length(jpeg, place)
    return parts, scans


def _length(jpeg: bytes, place: int) -> int:
    """Bytes of a segment behind its mark; its own two count."""
    return max(2, int.from_bytes(jpeg[place : place + 2], "big"))
