"""Lists of names alone, whose class is that of the list (``covid.txt``) or of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.ct.find import find_files
from ctmasknet.data.prepared import part_below
from ctmasknet.data.splits import check_split_name, read_list, split_named
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.classified import check_class_name
from ctmasknet.prepare.volumes import stem_of_file

#: Where a row is said, and its cells.
Rows = list[tuple[str, dict[str, str]]]


def parse_class_lists(values: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Read ``covid=lists/a.txt``, ``train:covid=a.txt`` where the list is of a split, or
    ``covid.txt``, whose name is the class.

    Returns:
        class -> (split or "", file) of its lists; the paper's classes in their order if they are
        among these, else as given.

    Raises:
        CTMaskNetError: a class or split that is none.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for value in values:
        key, equals, file = value.rpartition("=")
        split, colon, name = key.rpartition(":") if equals else ("", "", Path(file).stem)
        if colon:
            split = split_named(split)
            check_split_name(split)
        found.setdefault(name, []).append((split, file))
    if found.keys() <= set(IMAGE_CLASSES):
        return {name: found[name] for name in IMAGE_CLASSES if name in found}
    return found


def rows_of_class_lists(
    images: str | os.PathLike, class_lists: Mapping[str, Sequence[tuple[str, str | os.PathLike]]]
) -> tuple[list[str], Rows]:
    """The classes, and the rows for :func:`~ctmasknet.prepare.classified.take_rows`.

    Args:
        images: the folder below which the names are looked for: as a path, else as the name of one
            file in any folder, with or without an extension.
        class_lists: class -> (split or "", list of names) of each of its lists.

    Raises:
        CTMaskNetError: fewer than two classes, a list that cannot be read, a name that is of
            several files.
    """
    if len(class_lists) < 2:
        raise CTMaskNetError(
            "`class_list`: a classifier needs at least two classes; give a list of each"
        )
    finder = _Names(images)
    rows: Rows = []
    for name, lists in class_lists.items():
        check_class_name(name)
        for split, path in lists:
            rows += finder.rows(path, split, lambda file, of=name: of)
    return list(class_lists), rows


def rows_of_class_folders(
    images: str | os.PathLike,
    class_folders: Mapping[str, Sequence[str]],
    lists: Mapping[str, str | os.PathLike],
) -> tuple[list[str], Rows]:
    """As :func:`rows_of_class_lists`, of lists of each split: the class of a file is that of the
    class folder it is in.

    Raises:
        CTMaskNetError: also for a name that is in no class folder.
    """
    class_of = {
        PurePosixPath(part_below(images, part)): name
        for name, parts in class_folders.items()
        for part in parts
    }
    finder = _Names(images, list(class_of))

    def of(file: str) -> str | None:
        return next((class_of[p] for p in PurePosixPath(file).parents if p in class_of), None)

    rows: Rows = []
    for split, path in lists.items():
        check_split_name(split)
        rows += finder.rows(path, split, of)
    for name in class_folders:
        check_class_name(name)
    return list(class_folders), rows


class _Names:
    """Files by path, name or name without extension, below some folders of the images."""

    def __init__(self, images: str | os.PathLike, folders: Sequence[PurePosixPath] = ()):
        self.root = Path(images)
        if not self.root.is_dir():
            raise CTMaskNetError(f"{images}: no such folder; give that of the images with `images`")
        self.by_path: dict[str, list[str]] = {}
        self.by_name: dict[str, list[str]] = {}
        for found in find_files([self.root]):
            file = Path(found.path).relative_to(self.root).as_posix()
            if folders and not any(each in PurePosixPath(file).parents for each in folders):
                continue
            base = os.path.basename(file)
            self.by_path.setdefault(file, []).append(file)
            self.by_path.setdefault(stem_of_file(file), []).append(file)
            self.by_name.setdefault(base, []).append(file)
            self.by_name.setdefault(stem_of_file(base), []).append(file)

    def rows(
        self, path: str | os.PathLike, split: str, class_of: Callable[[str], str | None]
    ) -> Rows:
        """Of the list ``path``; ``class_of``: file -> class, None for none."""
        found: Rows = []
        for number, line in read_list(path):
            where = f"{path}:{number}"
            name = line.replace("\\", "/").removeprefix("./")
            files = [name] if os.path.exists(self.root / name) else self._named(name)
            if len(files) > 1:
                raise CTMaskNetError(
                    f"{where}: {line} may be {files[0]} or {files[1]}; write the folder, too"
                )
            file = files[0] if files else name
            of = class_of(file)
            if of is None:
                raise CTMaskNetError(
                    f"{where}: {line} is in no folder of `class_folder`; correct the list"
                )
            row = {"path": file, "class": of, "patient": "", "scan": "", "split": split}
            found.append((where, row))
        return found

    def _named(self, name: str) -> list[str]:
        table = self.by_path if "/" in name else self.by_path | self.by_name
        return table.get(name) or table.get(stem_of_file(name)) or []
