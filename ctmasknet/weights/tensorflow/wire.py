"""Numbers and fields as protocol buffers and LevelDB write them."""

from __future__ import annotations

from typing import Any


class BrokenFileError(ValueError):
    """Bytes that are not what they should be; the message says what is wrong with them."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits at byte ``at`` of ``data``, and where it ends.

    Raises:
        BrokenFileError: the bytes end in it, or it is of more than 64 bits.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise BrokenFileError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise BrokenFileError("a number in it is of more than 64 bits")


def fields(data: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol buffer: number -> its values, whole numbers or bytes.

    Raises:
        BrokenFileError: ``data`` is none.
    """
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind in (1, 2, 5):
            if kind == 2:
                size, at = varint(data, at)
            else:
                size = 8 if kind == 1 else 4
            if size > len(data) - at:
                raise BrokenFileError("it ends within a field")
            value, at = data[at : at + size], at + size
            if kind != 2:
                value = int.from_bytes(value, "little")
        else:
            raise BrokenFileError(f"a field in it is of the unknown kind {kind}")
        found.setdefault(key >> 3, []).append(value)
    return found


def field_number(message: dict[int, list[Any]], field: int) -> int:
    """The last value of a field of whole numbers, signed; 0 where it is not there.

    Raises:
        BrokenFileError: it is bytes.
    """
    value = message.get(field, [0])[-1]
    if not isinstance(value, int):
        raise BrokenFileError(f"its field {field} is no number")
    return value - (1 << 64) if value >= 1 << 63 else value


def messages(message: dict[int, list[Any]], field: int) -> list[dict[int, list[Any]]]:
    """The values of a field of messages.

    Raises:
        BrokenFileError: one is none.
    """
    values = message.get(field, [])
    if not all(isinstance(value, bytes) for value in values):
        raise BrokenFileError(f"its field {field} is no message")
    return [fields(value) for value in values]
