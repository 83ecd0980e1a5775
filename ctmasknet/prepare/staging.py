"""The one writer of a prepared set: in a hidden folder inside its own, then moved to its place."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ctmasknet.data.bad_slices import REPORT, SOURCE, BadSlices
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import (
    check_room,
    lock_folder,
    missing_folders,
    remove_empty,
    remove_folder,
    remove_unlocked,
    write_json,
)

#: Folder of the copies that a preparation tool writes, in the data set's folder.
COPIES = "image"
_PREFIX = ".prepare-"
#: A PNG of a chest's slice takes 0.3 bytes a px and more; a copy of a picture about what that does.
_BYTES_A_PX, _SHARE_OF_A_PICTURE = 0.2, 0.5


class SetWriter:
    """Writes one prepared set: everything is staged, then takes its place.

    Attributes:
        image_root: folder of the images as the set names it: ``image`` for copies, else relative to
            the set's folder where it lies inside (a link counts as inside), else absolute.
        copies: folder that gets the copies; None where the images stay where they are.
    """

    def __init__(
        self, target: Path, staging: Path, images: Path, copied: bool, mark: str, bad: BadSlices
    ):
        """See :func:`writing_set`; ``staging`` is of :func:`staging_folder`."""
        self._target, self._staging, self._mark, self._bad = target, staging, mark, bad
        self._files: list[str] = []
        self.copies: Path | None = None
        folder, home = Path(os.path.abspath(images)), Path(os.path.abspath(target))
        inside = folder.is_relative_to(home)
        self.image_root = folder.relative_to(home).as_posix() if inside else str(folder)
        if copied:
            self.image_root, self.copies = COPIES, staging / COPIES
            self.copies.mkdir()

    def report_bad(self, sound: Iterable[str]) -> None:
        """Write the list of bad slices where these are skipped, once all were looked at.

        Args:
            sound: the files that slices were taken from.

        Raises:
            CTMaskNetError: more are bad than allowed.
        """
        self._bad.totals[SOURCE] = len(set(sound) | self._bad.files(SOURCE).keys())
        if self._bad.skip:
            self._bad.finish(self._target / REPORT)

    def write(self, file: str, document: Any, indent: int | None = None) -> None:
        """Stage a JSON file; ``file`` is its path in the set."""
        write_json(self._staging / file, document, indent)
        self._files.append(file)

    def put_in_place(self, outdated: Iterable[Path]) -> None:
        """Move everything into the set.

        Args:
            outdated: files of an earlier run that do not fit this one; they go unless written anew.
        """
        self._put_copies()
        for file in sorted(self._files):
            (self._target / file).parent.mkdir(exist_ok=True)
            os.replace(self._staging / file, self._target / file)
        for path in outdated:
            if path.relative_to(self._target).as_posix() not in self._files:
                path.unlink(missing_ok=True)
        if not self._bad.skip:
            self._bad.finish(self._target / REPORT)

    def _put_copies(self) -> None:
        """Without new ones, an earlier run's go, unless they are the images."""
        copies, new = self._target / COPIES, self.copies
        if new is not None:
            (new / self._mark).touch()
        elif not (copies / self._mark).is_file() or Path(self.image_root).parts[:1] == (COPIES,):
            return
        if copies.exists():
            copies.rename(self._staging / "replaced")
        if new is not None:
            new.rename(copies)


def least_bytes(
    shapes: Iterable[tuple[int, ...]] = (), pictures: Iterable[str | os.PathLike] = ()
) -> float:
    """What PNG copies need at least: of slices of volumes by their shapes (H, W), of pictures by
    their files."""
    size = sum(_BYTES_A_PX * math.prod(shape) for shape in shapes)
    for picture in pictures:
        with contextlib.suppress(OSError):  # whoever reads it says so
            size += _SHARE_OF_A_PICTURE * os.path.getsize(picture)
    return size


@contextlib.contextmanager
def writing_set(
    target: Path,
    images: str | os.PathLike,
    *,
    copied: bool,
    mark: str,
    bad: BadSlices,
    copies_bytes: float = 0.0,
) -> Iterator[SetWriter]:
    """Write the prepared set in the folder ``target``.

    Args:
        target: ``<root>/<name>``.
        images: folder of the images.
        copied: the set gets copies of its images.
        mark: name of a file that tells such copies from other folders, which are never replaced.
        bad: what is done with slices that cannot be used.
        copies_bytes: that the copies need at least.

    Raises:
        CTMaskNetError: copies would replace what no earlier run wrote, or the images themselves;
            they do not fit on the disk; something cannot be written.
    """
    images, copies = Path(images), (target / COPIES).resolve()
    if copied and copies.exists() and not (copies / mark).is_file():
        raise CTMaskNetError(
            f"{copies}: copies would replace this folder, which no earlier run made; give another "
            "`name` or move it away"
        )
    if copied and images.resolve().is_relative_to(copies):
        raise CTMaskNetError(f"{images}: lies in the folder of the copies; give another `name`")
    if copied:
        where = "choose another folder with `output_root`"
        check_room(target, copies_bytes, "the copies of its slices", where)
    with staging_folder(target) as staging:
        yield SetWriter(target, staging, images, copied, mark, bad)


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A temporary folder inside ``target``; it goes in any case, and so does a ``target`` left
    empty. What killed runs left of theirs goes as well.

    Raises:
        CTMaskNetError: something in ``target`` cannot be written (no permission, full disk), in the
            block too.
    """
    made = missing_folders(target)
    with _naming_what_cannot_be_written(target), contextlib.ExitStack() as at_end:
        at_end.callback(remove_empty, made)
        target.mkdir(parents=True, exist_ok=True)
        remove_unlocked(target, f"{_PREFIX}*")
        staging = Path(tempfile.mkdtemp(dir=target, prefix=_PREFIX))
        at_end.callback(remove_folder, staging)
        at_end.enter_context(lock_folder(staging))
        yield staging


@contextlib.contextmanager
def _naming_what_cannot_be_written(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not of the system
            raise
        raise CTMaskNetError(
            f"{error.filename or target}: cannot be written ({error.strerror}); choose another "
            "folder with `output_root`, or make room"
        ) from error
