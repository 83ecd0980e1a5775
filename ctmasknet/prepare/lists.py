"""COVIDx-CT list files: every slice's class, patient, scan and body box, and the image it names on
disk.

Two kinds of list are read. COVIDx-CT's own has ``file class xmin ymin xmax ymax`` on a line, the
box being the body crop in px; the authors' has the file name alone, whose class stands in the name.
Lists and folders may differ in how they write the class (``NCP_341_1834_0022.png`` against
``2_341_1834_0022.png``).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.data.prepared import SliceRecord, part_below
from ctmasknet.data.splits import SPLITS, check_disjoint, check_split_name, read_list
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import IMAGE_SUFFIXES, PatientRule, SliceName, parse_slice_name

_LINE_FORM = (
    "expected 'file class xmin ymin xmax ymax', such as 'NCP_96_1328_0032.png 2 9 94 512 405', "
    "or the file name alone"
)
_CNCB_NAME = re.compile(r"(Normal|CP|NCP|[012])_(\d+)_(\d+)_(.+)$")
_CNCB_TREE = re.compile(r"(?P<above>(?:.*/)?)(Normal|CP|NCP)/(\d+)/(\d+)/([^/]+)$")
_CNCB_LABELS = {"Normal": 0, "CP": 1, "NCP": 2}
_CNCB_FOLDERS = {"0": "Normal", "1": "CP", "2": "NCP"}
_NAMED = re.compile(
    rf"(.*(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))((?:\s.*)?)$", re.IGNORECASE
)
_IMAGE_FOLDERS = ("images", "2A_images", "3A_images", ".")


def read_slice_list(
    path: str | os.PathLike, patient_pattern: str | None = None
) -> list[SliceRecord]:
    """Read one list file; no image is looked at.

    Args:
        path: the list, UTF-8; empty lines are skipped.
        patient_pattern: for file names of another form than COVIDx-CT-1's: finds the patient in the
            name (:class:`~ctmasknet.names.PatientRule`); every line must then state its class.

    Returns:
        one record a line, in the list's order, ``file`` as the list names it.

    Raises:
        CTMaskNetError: missing or empty list; a line that does not parse, states a class outside
            0..2 or one its file name contradicts, has a malformed box, or names a slice for the
            second time. The message names file and line.
    """
    records, lines_of = [], {}
    rule = PatientRule(patient_pattern, published=parse_slice_name)
    for number, line in read_list(path):
        record = _parse_line(line, f"{path}:{number}", rule)
        key = _identity(record, patient_pattern)
        if key in lines_of:
            raise CTMaskNetError(
                f"{path}:{number}: slice {record.file} is named twice, first on "
                f"line {lines_of[key]}; remove one of the lines"
            )
        lines_of[key] = number
        records.append(record)
    return records


def read_slice_lists(
    lists: Mapping[str, str | os.PathLike], patient_pattern: str | None = None
) -> dict[str, list[SliceRecord]]:
    """Read the lists of several splits and make sure that no slice and no patient is in two of
    them.

    Args:
        lists: split (train, val or test) -> list file.
        patient_pattern: see :func:`read_slice_list`.

    Raises:
        CTMaskNetError: as :func:`read_slice_list`; an unknown split; a slice or a patient in two
            lists (named, with both lists).
    """
    for split in lists:
        check_split_name(split)
    records = {split: read_slice_list(path, patient_pattern) for split, path in lists.items()}
    first_split: dict[tuple, str] = {}
    for split, path in lists.items():
        for record in records[split]:
            first = first_split.setdefault(_identity(record, patient_pattern), split)
            if first != split:
                raise CTMaskNetError(
                    f"{path}: slice {record.file} is named by {lists[first]} too; "
                    "a slice belongs to one split"
                )
    check_disjoint(
        {f"{split} ({lists[split]})": {r.patient for r in records[split]} for split in lists}
    )
    return records


def find_standard_lists(source: str | os.PathLike) -> tuple[dict[str, Path], Path]:
    """Find ``{train,val,test}_COVIDx_CT.txt`` (or ``..._COVIDx-CT.txt``) in ``source``, and the
    images.

    Returns:
        split -> list file, for the lists that are there; and the folder of the images:
        ``source/images``, ``source/2A_images``, ``source/3A_images`` or ``source`` itself.

    Raises:
        CTMaskNetError: no such folder, no such list in it, or two lists of one split.
    """
    source = Path(source)
    if not source.is_dir():
        raise CTMaskNetError(
            f"{source}: no such folder; give the folder that holds the COVIDx-CT lists"
        )
    lists = {}
    for split in SPLITS:
        found = sorted(source.glob(f"{split}_COVIDx[_-]CT*.txt"))
        if len(found) > 1:
            raise CTMaskNetError(
                f"{source}: {found[0].name} and {found[1].name} are both lists of {split}; "
                f"choose one with `list` {split}=FILE"
            )
        if found:
            lists[split] = found[0]
    if not lists:
        raise CTMaskNetError(
            f"{source}: holds no {{train,val,test}}_COVIDx_CT.txt; put the lists there "
            "or name them with `list`"
        )
    return lists, next(source / name for name in _IMAGE_FOLDERS if (source / name).is_dir())


def resolve_images(
    records: Mapping[str, list[SliceRecord]],
    image_root: str | os.PathLike,
    on_missing: Callable[[str, str], None] | None = None,
) -> dict[str, list[SliceRecord]]:
    """Replace each record's file by the one that is on disk.

    A name that is not there as written is looked for by class, patient, scan and slice, so that
    lists with ``NCP_`` fit folders with ``2_`` and the other way round; by its stem, so that
    ``.png`` fits ``.jpeg``; and ``NCP_341_1834_0022.png`` as ``NCP/341/1834/0022.png``, as CNCB's
    archive has it. One directory listing a folder, no call a file. ``on_missing`` is called with
    (file, reason) for an image that is not there, which is then left out; None: an error.

    Raises:
        CTMaskNetError: no such folder; images that are missing (counted, the first named) or lie
            outside the folder; two files on disk that fit one name, or two names of one file.
    """
    root = Path(image_root)
    if not root.is_dir():
        raise CTMaskNetError(f"{root}: no such folder; give the folder of the images with `images`")
    folders: dict[str, PictureFolder] = {}
    resolved, missing, total = {}, [], 0
    taken: set[str] = set()
    for split, split_records in records.items():
        resolved[split] = []
        for record in split_records:
            listed = part_below(root, record.file) if "/" in record.file else record.file
            parent, _, name = listed.rpartition("/")
            if parent not in folders:
                folders[parent] = PictureFolder(root / parent)
            on_disk = folders[parent].find(name)
            total += 1
            if on_disk is None and (tree := _CNCB_NAME.match(name)):
                of_class = _CNCB_FOLDERS.get(tree[1], tree[1])
                inner = "/".join(filter(None, (parent, of_class, tree[2], tree[3])))
                if inner not in folders:
                    folders[inner] = PictureFolder(root / inner)
                parent, on_disk = inner, folders[inner].find(tree[4])
            if on_disk is None and on_missing is not None:
                on_missing(str(root / record.file), f"no such image ({split})")
            elif on_disk is None:
                missing.append((split, record.file))
            else:
                file = f"{parent}/{on_disk}" if parent else on_disk
                if file in taken:
                    raise CTMaskNetError(
                        f"{root / file}: two lines of the lists name this image, one of them as "
                        f"{record.file}; remove one"
                    )
                taken.add(file)
                resolved[split].append(record._replace(file=file))
    if missing:
        split, file = missing[0]
        raise CTMaskNetError(
            f"{root}: {len(missing)} of {total} listed images are missing, "
            f"the first is {file} ({split}); complete the folder or correct `images`"
        )
    return resolved


def choose_listed(
    records: Mapping[str, list[SliceRecord]],
    exclude: str | os.PathLike | None = None,
    only_slices: str | os.PathLike | None = None,
) -> dict[str, list[SliceRecord]]:
    """Leave scans out, and take of some classes the named slices only.

    Args:
        records: the slices of each split, as the lists name them.
        exclude: lines ``class scan``, such as ``NCP 1834`` (``cncb_exclude_list.txt``).
        only_slices: CSV file with a column ``imgpath`` of CNCB names, ``CP/10/3153/0172.png`` or
            ``CP_10_3153_0172.png``, such as ``lesions_slices.csv``. Classes without a line there
            keep all slices; so do patients of other sources than CNCB.

    Raises:
        CTMaskNetError: a missing file, a line of another form, or files that choose nothing.
    """
    if exclude is None and only_slices is None:
        return {split: list(each) for split, each in records.items()}
    cncb = {
        record.file: name
        for each in records.values()
        for record in each
        if (name := _cncb_slice(record.file)) is not None
    }
    left_out: set[str] = set()
    if exclude is not None:
        scans = set()
        for number, line in read_list(exclude):
            words = line.split()
            if len(words) != 2 or words[0] not in ("Normal", "CP", "NCP"):
                raise CTMaskNetError(
                    f"{exclude}:{number}: {line!r}: expected 'class scan' with the class Normal, "
                    "CP or NCP, such as 'NCP 1834'"
                )
            scans.add((_CNCB_LABELS[words[0]], words[1]))
        left_out |= {file for file, name in cncb.items() if (name.label, name.scan) in scans}
    if only_slices is not None:
        wanted = set()
        for number, row in read_csv_rows(only_slices, ("imgpath",), what="slices file"):
            name = _cncb_slice(row["imgpath"].replace("\\", "/").replace("/", "_"))
            if name is None:
                raise CTMaskNetError(
                    f"{only_slices}:{number}: {row['imgpath']!r}: expected a CNCB name, such as "
                    "CP/10/3153/0172.png"
                )
            wanted.add(name)
        named = {name.label for name in wanted}
        unwanted = {f for f, name in cncb.items() if name.label in named and name not in wanted}
        if not wanted.intersection(cncb.values()):
            raise CTMaskNetError(
                f"{only_slices}: names no slice of the lists; give the file of this set, or leave "
                "`only_slices` out"
            )
        left_out |= unwanted
    return {
        split: [record for record in each if record.file not in left_out]
        for split, each in records.items()
    }


def _cncb_slice(file: str) -> SliceName | None:
    """What a name of CNCB states; None for one of another source."""
    try:
        name = parse_slice_name(file)
    except CTMaskNetError:
        return None
    return None if name.label is None else name


def count_unlisted(resolved: Mapping[str, list[SliceRecord]], image_root: str | os.PathLike) -> int:
    """How many pictures lie beside those of the lists, in their folders, and are on no list."""
    listed = {record.file for records in resolved.values() for record in records}
    count = 0
    for parent in {os.path.dirname(file) for file in listed}:
        for entry in os.scandir(Path(image_root, parent)):
            file = f"{parent}/{entry.name}" if parent else entry.name
            count += file.lower().endswith(IMAGE_SUFFIXES) and file not in listed
    return count


class PictureFolder:
    """The files of one folder, found by exact name, by what the name states of the slice, or by its
    stem."""

    def __init__(self, path: Path):
        self.path = path
        self.names = {entry.name for entry in os.scandir(path)} if os.path.isdir(path) else set()
        self._by_slice: dict[SliceName | str, list[str]] | None = None

    def find(self, name: str) -> str | None:
        if name in self.names:
            return name
        if self._by_slice is None:
            self._by_slice = {}
            for other in sorted(self.names):
                # Other files may lie in the folder
                if other.lower().endswith(IMAGE_SUFFIXES):
                    self._by_slice.setdefault(os.path.splitext(other)[0], []).append(other)
                    with contextlib.suppress(CTMaskNetError):
                        self._by_slice.setdefault(parse_slice_name(other), []).append(other)
        try:
            fitting = self._by_slice.get(parse_slice_name(name), [])
        except CTMaskNetError:  # a name of another set
            fitting = []
        if not fitting and name.lower().endswith(IMAGE_SUFFIXES):
            fitting = self._by_slice.get(os.path.splitext(name)[0], [])
        if len(fitting) > 1:
            raise CTMaskNetError(
                f"{self.path}: {fitting[0]} and {fitting[1]} both fit the listed slice {name}; "
                "keep one of them"
            )
        return fitting[0] if fitting else None


def _identity(record: SliceRecord, patient_pattern: str | None) -> tuple:
    """Equal for two names of one slice: patient, scan, slice; with a pattern, which may not find
    all of these, the file's name."""
    return record[2:5] if patient_pattern is None else (record.file,)


def _parse_line(line: str, where: str, rule: PatientRule) -> SliceRecord:
    line = line.replace("\\", "/")
    # Names may hold blanks: the rest begins behind the last ending of a picture
    named = _NAMED.match(line)
    fields = [named[1], *named[2].split()] if named else line.split()
    if len(fields) not in (1, 2, 6):
        raise CTMaskNetError(f"{where}: {line!r} has {len(fields)} fields; {_LINE_FORM}")
    # As CNCB's archive has it, whatever the pictures lie like
    file = _CNCB_TREE.sub(r"\g<above>\2_\3_\4_\5", fields[0])
    stated = _stated_label(fields[1], where) if len(fields) > 1 else None
    try:
        name = rule.read(file)
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{where}: {error}") from None
    named = stated if name.label is None else name.label
    if named is None:
        raise CTMaskNetError(
            f"{where}: {line!r} states no class; expected 'file class' and the box"
        )
    if stated is not None and stated != named:
        raise CTMaskNetError(
            f"{where}: {file} is {IMAGE_CLASSES[named]} by its name but class {stated} "
            f"({IMAGE_CLASSES[stated]}) in the list; correct one of them"
        )
    box = _parse_box(fields[2:], where, line) if len(fields) == 6 else None
    return SliceRecord(file, named, name.patient, name.scan, name.slice, box)


def _stated_label(text: str, where: str) -> int:
    if text not in ("0", "1", "2"):
        raise CTMaskNetError(
            f"{where}: class {text!r} is none of 0 (normal), 1 (pneumonia), 2 (covid); {_LINE_FORM}"
        )
    return int(text)


def _parse_box(fields: list[str], where: str, line: str) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = map(int, fields)
    except ValueError:
        raise CTMaskNetError(
            f"{where}: {line!r}: the box is not four whole numbers; {_LINE_FORM}"
        ) from None
    if x0 < 0 or y0 < 0 or x1 <= x0 or y1 <= y0:
        raise CTMaskNetError(
            f"{where}: box {x0} {y0} {x1} {y1} is malformed; expected xmin ymin xmax ymax in px "
            "with 0 <= xmin < xmax and 0 <= ymin < ymax"
        )
    return x0, y0, x1, y1
