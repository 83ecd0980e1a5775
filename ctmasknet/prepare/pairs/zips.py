"""Images and masks in zips: one zip of all, or a folder in which each study is a zip."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ctmasknet.ct.archive import Unpacked, is_archive
from ctmasknet.ct.find import find_files
from ctmasknet.ct.scan import unpacking
from ctmasknet.data.bad_slices import BadSlices
from ctmasknet.errors import CTMaskNetError

_LOGGER = logging.getLogger(__name__)


def zip_of(path: str | os.PathLike) -> Path | None:
    """The zip that a path names or leads into (``study.zip/image``); None: it names none."""
    path = Path(path)
    for part in (path, *path.parents):
        if is_archive(part.name) and part.is_file():
            return part
    return None


class UnzippedFolders:
    """Folders with zips as trees in a temporary folder, in which each zip is a folder of its
    name."""

    def __init__(self, temporary: Path):
        self._temporary = temporary
        self._unpacked: dict[Path, Unpacked] = {}
        self._trees: dict[Path, Path] = {}

    def folder(self, path: Path) -> Path:
        """What stands for a folder, a zip or a folder in a zip; a folder without zips is itself.

        Raises:
            CTMaskNetError: a zip that is refused, or without that folder.
        """
        if (archive := zip_of(path)) is not None:
            inner = self._tree(archive) / path.relative_to(archive)
            if not inner.is_dir():
                raise CTMaskNetError(f"{path}: no such folder in the zip; correct the path")
            return inner
        if any(is_archive(found.path) for found in find_files([path])):
            return self._tree(path)
        return path

    def shown(self, text: str) -> str:
        """A path, or a message with paths, as the user has them."""
        for root, tree in self._trees.items():
            text = text.replace(str(tree), str(root))
        for archive, unpacked in self._unpacked.items():
            text = text.replace(unpacked.folder, str(archive))
        return text

    def _tree(self, root: Path) -> Path:
        if root in self._trees:
            return self._trees[root]
        if root.is_file():
            self._trees[root] = Path(self._unzipped(root))
            return self._trees[root]
        tree = self._trees[root] = self._temporary / str(len(self._trees))
        for found in find_files([root]):
            link = tree / Path(found.path).relative_to(root)
            target = Path(found.path).absolute()
            if is_archive(found.path) and target.is_file():
                # What is refused is told, or left out, when its turn comes
                with contextlib.suppress(CTMaskNetError):
                    target = Path(self._unzipped(Path(found.path)))
            with unpacking(found.path):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
        return tree

    def _unzipped(self, archive: Path) -> str:
        if archive not in self._unpacked:
            unpacked = self._unpacked[archive] = Unpacked(str(archive))
            for found in find_files([unpacked.folder]):
                if is_archive(found.path):
                    _LOGGER.warning("%s: a zip within a zip, left out; unpack it", found.path)
                    os.unlink(found.path)
        return self._unpacked[archive].folder


class _Shown(logging.Filter):
    """Lets what is logged name files as the user has them."""

    def __init__(self, shown: Callable[[str], str]):
        super().__init__()
        self._shown = shown

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._shown(record.getMessage()), ()
        return True


def unzipping(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Lets ``prepare(images, masks, output, *, bad, copied, ...)`` take zips and folders with zips,
    whose pictures are copied."""

    @functools.wraps(prepare)
    def run(images: Path, masks: Path, output: Path, **options: Any) -> Any:
        bad = options.pop("bad", None) or BadSlices({})
        with unzipped() as zips:
            folders = zips.folder(images), zips.folder(masks)
            bad.shown = zips.shown
            copied = options.pop("copied", False) or folders[0] != images
            return prepare(*folders, output, bad=bad, copied=copied, **options)

    return run


@contextlib.contextmanager
def unzipped() -> Iterator[UnzippedFolders]:
    """Unpack zips as long as this lasts; errors and what is logged name files as the user does."""
    folder = Path(tempfile.mkdtemp(prefix="ctmasknet-"))
    folders = UnzippedFolders(folder)
    seen = _Shown(folders.shown)
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(seen)
    try:
        yield folders
    except CTMaskNetError as error:
        raise type(error)(folders.shown(str(error))) from error.__cause__
    finally:
        for handler in handlers:
            handler.removeFilter(seen)
        shutil.rmtree(folder, ignore_errors=True)
