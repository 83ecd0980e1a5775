"""A study in a ``.zip``: unpacked into a temporary folder, which is there as long as its slices.

What comes out is what the unpacked folder would give, with the archive's path in place of the
folder's. Names that lead elsewhere, links, devices, zips within and bombs are refused.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import weakref
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ctmasknet.ct.scan import CHUNK_BYTES, CTScan, SliceSource, max_expanded_bytes, unpacking
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import has_control_character

#: Most files of an archive: so many, and one for so many bytes; how deep their folders may be.
_MAX_FILES, _BYTES_A_FILE, _MAX_DEPTH = 10_000, 500, 32
_MAX_NAME_BYTES = 255
#: Of Windows; one with an ending is one too.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)


def is_archive(file: str) -> bool:
    """Whether its name says so; many other files are zips inside."""
    return file.lower().endswith(".zip")


class Unpacked:
    """The files of an archive in a temporary folder, removed with the last that refers to it.

    Raises:
        CTMaskNetError: damaged, encrypted, names or sizes that are refused, no room.
    """

    def __init__(self, archive: str):
        self.archive, self.folder = archive, ""
        with unpacking(archive):
            self.folder = tempfile.mkdtemp(prefix="ctmasknet-")
        # A forked process must not remove what its parent reads
        self._finalizer = weakref.finalize(self, _remove, self.folder, os.getpid())
        try:
            _unpack(archive, Path(self.folder))
        except BaseException:
            self._finalizer()
            raise

    def __getstate__(self) -> dict[str, str]:
        """In another process it is borrowed: the one that unpacked it removes it."""
        return {"archive": self.archive, "folder": self.folder}

    def shown(self, text: str) -> str:
        """A path, or a message with paths, as of the archive."""
        return text.replace(self.folder, self.archive)

    def scan(self, found: CTScan) -> CTScan:
        """A scan that was read below :attr:`folder`, as of the archive."""
        slices = tuple(
            replace(
                one,
                file=self.shown(one.file),
                name=self.shown(one.name),
                scan=self.shown(one.scan),
                source=UnpackedSource(one.source, self),
            )
            for one in found.slices
        )
        problems = tuple(map(self.shown, found.problems))
        return replace(found, scan=self.shown(found.scan), slices=slices, problems=problems)


class UnpackedSource:
    """The source of a slice in an archive; has all attributes of the source that it holds, so
    ``file`` is the path of the file that is there."""

    def __init__(self, inner: SliceSource, unpacked: Unpacked):
        self._inner, self._unpacked = inner, unpacked

    def __getattr__(self, name: str):
        if name.startswith("_"):  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self._inner, name)

    def read_hu(self, frame: int | None) -> np.ndarray:
        return self._read(self._inner.read_hu, frame)

    def read_picture(self, frame: int | None) -> np.ndarray | None:
        return self._read(self._inner.read_picture, frame)

    def _read(self, read, frame: int | None) -> np.ndarray | None:
        try:
            return read(frame)
        except CTMaskNetError as error:
            raise type(error)(self._unpacked.shown(str(error))) from None


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: str, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            targets = _checked(archive, members)
            left = max_expanded_bytes(os.path.getsize(archive))
            if sum(member.file_size for member in members) > left:
                raise CTMaskNetError(f"{archive}: claims to expand further than any CT does")
            for member, parts in targets:
                target = folder.joinpath(*parts)
                with opened.open(member) as source:
                    with unpacking(archive):
                        target.parent.mkdir(parents=True, exist_ok=True)
                    left = _copy(archive, source, target, left)
    except CTMaskNetError:
        raise
    # A damaged archive raises what its parser stumbles on, as other decoders do
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CTMaskNetError(
            f"{archive}: damaged or unreadable ({reason}); restore the file or leave it out"
        ) from None


def _copy(archive: str, source, target: Path, left: int) -> int:
    with unpacking(archive):
        stream = target.open("xb")
    with stream:
        while piece := source.read(CHUNK_BYTES):
            left -= len(piece)
            if left < 0:
                raise CTMaskNetError(f"{archive}: expands further than any CT does; damaged")
            with unpacking(archive):
                stream.write(piece)
    return left


def _checked(
    archive: str, members: list[zipfile.ZipInfo]
) -> list[tuple[zipfile.ZipInfo, list[str]]]:
    """The files among the members, each with the parts of its path."""
    most = _MAX_FILES + os.path.getsize(archive) // _BYTES_A_FILE
    if len(members) > most:
        raise CTMaskNetError(
            f"{archive}: holds {len(members)} files, of its size at most {most} are read; leave it "
            "out, or unpack it"
        )
    targets, seen = [], set()
    for member in members:
        if member.is_dir():
            continue
        name = member.filename.replace("\\", "/")
        parts = name.split("/")
        kind = stat.S_IFMT(member.external_attr >> 16)
        fault = None
        if member.flag_bits & 1:
            fault = "is encrypted; unpack the archive with its password"
        elif kind not in (0, stat.S_IFREG):
            fault = "is a link or a device, not a file"
        elif has_control_character(member.orig_filename) or any(
            part in ("", ".", "..") or ":" in part or _DEVICE.fullmatch(part) for part in parts
        ):
            fault = "has a name that leads elsewhere, or that no file should have"
        elif len(parts) > _MAX_DEPTH or max(len(os.fsencode(p)) for p in parts) > _MAX_NAME_BYTES:
            fault = "has a name that is too long, or lies too deep"
        elif name.casefold() in seen:
            fault = "is there twice"
        if fault:
            shown = ascii(member.orig_filename[:80])
            raise CTMaskNetError(f"{archive}: its file {shown} {fault}; leave the archive out")
        seen.add(name.casefold())
        targets.append((member, parts))
    return targets
