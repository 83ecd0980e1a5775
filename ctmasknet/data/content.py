"""What the images of a data set contain, as one hash."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ctmasknet.errors import CTMaskNetError

_THREADS = min(8, os.cpu_count() or 1)


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, computed again only when its size or time of change differ.

    Raises:
        CTMaskNetError: the file is missing or unreadable.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
        return _digest(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CTMaskNetError(
            f"{path}: cannot be read ({error.strerror}); check the folder of the images"
        ) from error


def content_sha256(
    dicts: Iterable[Mapping[str, Any]],
    fields: Sequence[str] = (),
    *,
    allow_unreadable: bool = False,
) -> str:
    """SHA-256 over the bytes of all images of a data set, in its order, wherever they lie.

    Args:
        dicts: the dataset dicts.
        fields: entries of them that count too, such as ``label``.
        allow_unreadable: an image that is missing or unreadable counts as just that.

    Raises:
        CTMaskNetError: an image is missing or unreadable.
    """
    dicts = list(dicts)
    digest_of = _sha256_or_none if allow_unreadable else file_sha256
    total = hashlib.sha256()
    # Reading and hashing both release the interpreter.
    with ThreadPoolExecutor(_THREADS) as pool:
        for entry, digest in zip(
            dicts, pool.map(digest_of, (entry["file_name"] for entry in dicts)), strict=True
        ):
            more = [entry.get(field) for field in fields]
            total.update(json.dumps([digest, *more]).encode())
    return total.hexdigest()


def _sha256_or_none(path: str) -> str | None:
    try:
        return file_sha256(path)
    except CTMaskNetError:
        return None


@functools.lru_cache(maxsize=200_000)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()
