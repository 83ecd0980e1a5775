"""A prepared set is written in a hidden folder inside its own, then moved to its place whole."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ctmasknet.errors import CTMaskNetError

#: Folder of the copies that a preparation tool writes, in the data set's folder.
COPIES = "image"
_PREFIX = ".prepare-"
_LOCK = ".lock"


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A temporary folder inside ``target``; it goes in any case, and so does a ``target`` left
    empty. What killed runs left of theirs goes as well.

    Raises:
        CTMaskNetError: something in ``target`` cannot be written (no permission, full disk), in the
            block too.
    """
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    with _naming_what_cannot_be_written(target), contextlib.ExitStack() as at_end:
        at_end.callback(_remove_empty, made)
        target.mkdir(parents=True, exist_ok=True)
        _remove_left_over(target)
        staging = Path(tempfile.mkdtemp(dir=target, prefix=_PREFIX))
        at_end.callback(shutil.rmtree, staging)
        at_end.enter_context(_lock(staging))
        yield staging


def check_copies_allowed(target: Path, images: Path, mark: str) -> None:
    """Refuse copies in ``target/image`` that would replace what no earlier run wrote, or the images
    themselves.

    Args:
        target: folder of the data set.
        images: folder of the images that are copied.
        mark: name of the file that lies in such a folder of copies, see :func:`put_copies`.
    """
    copies = (target / COPIES).resolve()
    if copies.exists() and not (copies / mark).is_file():
        raise CTMaskNetError(
            f"{copies}: copies would replace this folder, which no earlier run made; give another "
            "--name or move it away"
        )
    if images.resolve().is_relative_to(copies):
        raise CTMaskNetError(f"{images}: lies in the folder of the copies; give another --name")


def put_copies(staging: Path, target: Path, mark: str, image_root: str) -> None:
    """Move ``staging/image`` to ``target/image``; without the former, an earlier run's goes.

    Args:
        staging: of :func:`staging_folder`.
        target: folder of the data set.
        mark: name of a file that tells copies from other folders.
        image_root: folder of the images as the set names it; an earlier run's copies stay where
            these are the images.
    """
    copies, new = target / COPIES, staging / COPIES
    if new.is_dir():
        (new / mark).touch()
    elif not (copies / mark).is_file() or Path(image_root).parts[:1] == (COPIES,):
        return
    if copies.exists():
        copies.rename(staging / "replaced")
    if new.is_dir():
        new.rename(copies)


@contextlib.contextmanager
def _naming_what_cannot_be_written(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not of the system
            raise
        raise CTMaskNetError(
            f"{error.filename or target}: cannot be written ({error.strerror}); choose another "
            "folder with --output-root, or make room"
        ) from error


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, that exist and hold nothing."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _lock(folder: Path) -> IO:
    """Lock a folder until the returned file is closed or this process ends.

    A POSIX record lock: processes that this one forks do not hold it, and may outlive it.
    """
    stream = open(folder / _LOCK, "wb")  # noqa: SIM115  (open as long as the lock shall last)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return stream


def _remove_left_over(target: Path) -> None:
    for folder in target.glob(f"{_PREFIX}*"):
        # An OSError: locked by a run that is still at it
        with contextlib.suppress(OSError), open(folder / _LOCK, "ab") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
