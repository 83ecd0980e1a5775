"""What a compressed frame claims about itself, which decoders allocate by."""

from __future__ import annotations

import re
import struct

_FILLING = re.compile(rb"\xff+")


def codestream_size(encoded: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, channels) that a JPEG, JPEG-LS or JPEG 2000 stream claims, else None."""
    begin = encoded.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000: start, then SIZ
    if begin >= 0 and not encoded.startswith(b"\xff\xd8"):
        right, bottom, left, top = struct.unpack(">4I", encoded[begin + 8 : begin + 24])
        return bottom - top, right - left, struct.unpack(">H", encoded[begin + 40 : begin + 42])[0]
    if not encoded.startswith(b"\xff\xd8"):
        return None
    place = 2
    while True:
        marker, length = struct.unpack(">HH", encoded[place : place + 4])
        if marker == 0xFFFF:  # any number of such bytes may fill up before a marker
            place = _FILLING.match(encoded, place).end() - 1
            continue
        # Start of frame: C0..CF but C4, C8 and CC, which mean other things; F7 is JPEG-LS.
        if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker & 0xF not in (4, 8, 12)):
            rows, columns, channels = struct.unpack(">HHB", encoded[place + 5 : place + 10])
            return rows, columns, channels
        place += 2 + length
