"""Which image and which mask belong together, whose they are, and the split that lists say.

Images are pictures or volumes; the mask of a volume is another, or a folder of pictures, one a
slice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctmasknet.ct.find import find_files, kind_of, natural_key
from ctmasknet.ct.scan import CTScan, Rescale
from ctmasknet.data.label_masks import MASK_SUFFIXES, files_by_key
from ctmasknet.data.splits import check_disjoint, check_split_name, read_list
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import IMAGE_SUFFIXES, PatientRule
from ctmasknet.prepare.mask_volumes import seg_series
from ctmasknet.prepare.volumes import (
    Volume,
    find_volumes,
    log_others,
    volume_files,
    without_extension,
)

_LOGGER = logging.getLogger(__name__)
#: What names of masks, and of images that lie beside them, have behind the name of the case.
_ENDINGS = re.compile(
    r"[_.-](?:masks?|seg|segmentation|labels?|gt|0000|ct|im|img|images?|org)$", re.IGNORECASE
)


@dataclass(frozen=True)
class LesionPair:
    """An image, its mask and its patient.

    ``key`` names the slice; ``file`` is the image's path relative to its folder.
    """

    key: str
    file: str
    image: Path
    mask: Path
    patient: str


@dataclass(frozen=True)
class VolumePair:
    """A volume, its mask and its patient.

    Attributes:
        volume: of the scan.
        mask: a NIfTI or DICOM-SEG file, or a folder with one picture a slice (see
            :func:`find_volume_pairs`).
        patient: whose it is.
    """

    volume: Volume
    mask: Path
    patient: str

    @property
    def key(self) -> str:
        return self.volume.key


def source_folders(
    source: str | os.PathLike | None,
    images: str | os.PathLike | None = None,
    masks: str | os.PathLike | None = None,
) -> tuple[Path, Path]:
    """The image and the mask folder: as given, else ``image`` or ``images``, ``mask`` or ``masks``
    in ``source``.

    Raises:
        CTMaskNetError: a folder is missing.
    """
    if source is not None and not Path(source).is_dir():
        raise CTMaskNetError(
            f"{source}: no such folder; `source` names the folder with image/ and mask/"
        )
    found = []
    for given, name in ((images, "image"), (masks, "mask")):
        if given is not None:
            folder = Path(given)
        elif source is None:
            raise CTMaskNetError(f"{name}s: give `source`, or both `images` and `masks`")
        else:
            folder = Path(source) / name
            if not folder.is_dir():
                folder = Path(source) / f"{name}s"
        if not folder.is_dir():
            wanted = given if given is not None else f"{source}/{name} (or {name}s)"
            raise CTMaskNetError(f"{wanted}: no such folder of {name}s; check the path")
        found.append(folder)
    return found[0], found[1]


def find_pairs(
    images: Path, masks: Path, rule: PatientRule, on_bad: Callable[[str, str], None] | None = None
) -> list[LesionPair]:
    """Pair the images under ``images`` with the masks under ``masks``, sorted by slice.

    A mask has the name of its image, endings such as ``_mask`` and ``_ct`` aside; failing that, the
    same in another folder, where no other image has it.

    Args:
        images, masks: the folders; they may be one.
        rule: what names mean.
        on_bad: called with (file, reason) for an image without mask or the reverse, which is then
            left out; None: an error.

    Raises:
        CTMaskNetError: an image without mask or the reverse, a slice named twice, a name that does
            not parse, a group for a slice that is not there, or no image at all.
    """
    one_folder = images.resolve() == masks.resolve()
    image_suffixes = tuple(s for s in IMAGE_SUFFIXES if not one_folder or s not in MASK_SUFFIXES)
    image_of = files_by_key(images, image_suffixes, rule)
    mask_of = files_by_key(masks, MASK_SUFFIXES, rule)
    if not image_of and not mask_of:
        raise CTMaskNetError(
            f"{images}: the data set is empty; no file ends in {', '.join(image_suffixes)}"
        )
    log_others(images, (each.path for each in find_files([images])), IMAGE_SUFFIXES)
    if not one_folder:
        log_others(masks, (each.path for each in find_files([masks])), MASK_SUFFIXES)
    image_keys = [key for key in image_of if key not in mask_of]
    for key, other in _paired(image_keys, [key for key in mask_of if key not in image_of]).items():
        mask_of[key] = mask_of.pop(other)
    lossy: dict[str, str] = {}
    if not one_folder:
        with contextlib.suppress(CTMaskNetError):
            lossy = files_by_key(masks, (".jpg", ".jpeg"), rule)
    alone = [
        (
            folder / file,
            f"its mask {masks / lossy[key]} is a JPEG, which cannot hold labels; store it as PNG"
            if wanted == "mask" and key in lossy
            else f"no {wanted} of the same name in {other}",
        )
        for folder, found, wanted, other, partners in (
            (images, image_of, "mask", masks, mask_of),
            (masks, mask_of, "image", images, image_of),
        )
        for key, file in found.items()
        if key not in partners
    ]
    if alone and on_bad is None:
        file, reason = alone[0]
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise CTMaskNetError(f"{file}: {reason}{more}; add the missing file or remove this one")
    for file, reason in alone:
        on_bad(str(file), reason)
    missing = sorted(set(rule.groups) - set(image_of))
    if missing:
        raise CTMaskNetError(
            f"groups: {missing[0]} is no image under {images}; correct the groups file"
        )
    return [
        LesionPair(
            key,
            image_of[key],
            images / image_of[key],
            masks / mask_of[key],
            rule.read(image_of[key]).patient,
        )
        for key in sorted(image_of.keys() & mask_of.keys(), key=lambda key: (natural_key(key), key))
    ]


def split_by_lists(
    pairs: Sequence[LesionPair | VolumePair],
    lists: Mapping[str, str | os.PathLike],
    key: Callable[[str], str],
    left_out: Collection[str] = (),
) -> dict[str, list[str]]:
    """The keys of each split as list files say. Pairs on no list are left out.

    Args:
        pairs: of the data set.
        lists: split -> list file.
        key: of the slice or volume that a line names, such as :meth:`PatientRule.key`.
        left_out: keys that lists may name too, which are of no pair.

    Raises:
        CTMaskNetError: a line that does not parse or names a file that is not there, a slice or
            volume named twice, a patient in two splits; the message says file and line.
    """
    pair_of = {pair.key: pair for pair in pairs}
    of_volumes = any(isinstance(pair, VolumePair) for pair in pairs)
    what, one = ("volume", "volume") if of_volumes else ("image", "slice")
    line_of: dict[str, str] = {}
    result: dict[str, list[str]] = {}
    for split, path in lists.items():
        check_split_name(split)
        result[split] = []
        for number, line in read_list(path):
            where = f"{path}:{number}"
            try:
                name = key(line)
            except CTMaskNetError as error:
                raise CTMaskNetError(f"{where}: {error}") from None
            if name not in pair_of and name in left_out:
                continue
            if name not in pair_of:
                raise CTMaskNetError(
                    f"{where}: {line} names no {what} of the data set; remove it or add the file "
                    f"({what}s are named such as {next(iter(pair_of), '110_104')})"
                )
            if name in line_of:
                raise CTMaskNetError(
                    f"{where}: the {one} {line} was already named at {line_of[name]}; remove one"
                )
            line_of[name] = where
            result[split].append(name)
        result[split].sort(key=natural_key)
    try:
        check_disjoint(
            {split: [pair_of[name].patient for name in names] for split, names in result.items()}
        )
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{', '.join(map(str, lists.values()))}: {error}") from None
    return result


def slice_masks(scan: CTScan, folder: Path, *, allow_spare: bool = False) -> list[Path | None]:
    """The mask picture of each slice of ``scan``; None where there is none.

    A picture is named by the number of its slice from the feet, from 0 (``0012.png``), or as the
    slice's DICOM file (``IM0012.png``).

    Args:
        scan: the volume.
        folder: of the pictures; those of the suffixes that masks may have count.
        allow_spare: pictures of no slice are no error, as long as none is found by its number. A
            slice that is missing does not change whose the others are then.

    Raises:
        CTMaskNetError: two pictures for one slice or two slices for one picture, by number and by
            file name; two pictures of one stem; a picture of no slice, for then slices are missing
            and the numbers may mean others.
    """
    by_stem: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in MASK_SUFFIXES:
            other = by_stem.setdefault(path.stem, path)
            if other != path:
                raise CTMaskNetError(f"{other} and {path}: both are masks of one slice; remove one")
    masks: list[Path | None] = []
    slice_of: dict[Path, int] = {}
    numbered = False
    for index, one in enumerate(scan.slices):
        stems = [f"{index:04d}"]
        if one.frame is None:
            stems.append(without_extension(os.path.basename(one.file)))
        found = [by_stem[stem] for stem in dict.fromkeys(stems) if stem in by_stem]
        if len(found) > 1:
            raise CTMaskNetError(
                f"{one.file}: {found[0].name} is its mask by its number from the feet, and "
                f"{found[1].name} by its file name, in {folder}; name masks by numbers that no "
                "DICOM file has"
            )
        if found and found[0] in slice_of:
            other = scan.slices[slice_of[found[0]]].file
            raise CTMaskNetError(
                f"{found[0]}: is the mask of {other} or of {one.file}, of one by its number from "
                "the feet, of the other by its file name; name masks by numbers that no DICOM file "
                "has"
            )
        for path in found:
            slice_of[path] = index
            numbered |= path.stem == stems[0]
        masks.append(found[0] if found else None)
    spare = [path for path in by_stem.values() if path not in slice_of]
    if spare and (numbered or not allow_spare):
        raise CTMaskNetError(
            f"{spare[0]}: is the mask of no slice of {scan.slices[0].file} and the "
            f"{len(scan.slices) - 1} others of its volume; restore the slice or remove the mask"
        )
    return masks


def find_volume_pairs(
    images: Path,
    masks: Path,
    rule: PatientRule,
    on_bad: Callable[[str, str], None] | None = None,
    rescale: Rescale | None = None,
) -> list[VolumePair]:
    """Pair the volumes under ``images`` with the masks under ``masks``, in natural order.

    The two may be one folder. A DICOM-SEG belongs to the series it references. Any other mask, and
    a SEG whose series is not there (as when its volume was converted to NIfTI), belongs to the
    volume of the same relative path without extension, endings such as ``_mask`` or ``_ct`` aside;
    failing that, to the only volume of the folder of the same relative path, or to the only one of
    the same name in any folder, if it is a name with a number. Masks may also be
    pictures in a folder of the volume's name
    (:func:`slice_masks`). ``rescale`` is for volumes as in
    :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        CTMaskNetError: two masks of one volume, a SEG whose name is that of another series than it
            references, an unknown patient; unless ``on_bad`` takes them: damaged files, volumes
            that cannot be used such as those not in HU, a volume without a mask or the reverse.
    """
    rule = replace(rule, groups={without_extension(k): who for k, who in rule.groups.items()})
    bad: dict[str, str] = {}

    def note(file: str, reason: str) -> None:
        bad.setdefault(os.path.realpath(file), os.path.relpath(file, images))
        on_bad(file, reason)

    report = note if on_bad else None
    one_folder = images.resolve() == masks.resolve()
    # In one folder what is no CT in HU is a mask, or ought to be CT
    lost: dict[str, str] = {}
    on_lost = (
        (lambda file, reason: lost.update({os.path.realpath(file): reason})) if one_folder else None
    )
    volumes = find_volumes(images, on_bad=report, on_lost=on_lost, rescale=rescale)
    used = {os.path.realpath(one.file) for volume in volumes for one in volume.scan.slices}
    files = [
        Path(file)
        for file in volume_files(masks)
        if os.path.realpath(file) not in used | bad.keys()
        and _is_mask(file, lost if one_folder else None, report)
    ]
    left_out = {_stem(without_extension(file)) for file in bad.values()}
    mask_of = _matched(volumes, files, masks, left_out, lost, report)
    pairs = []
    for volume in volumes:
        mask = mask_of.get(volume.key) or _picture_folder(masks, volume)
        if mask is None:
            if on_bad is None:
                raise CTMaskNetError(_without_mask(volume, masks))
            for file in dict.fromkeys(one.file for one in volume.scan.slices):
                on_bad(file, _without_mask(volume, masks).partition(": ")[2])
            continue
        pairs.append(VolumePair(volume, mask, _patient(volume, rule)))
    _log_spare_pictures(masks, {pair.mask for pair in pairs})
    missing = sorted(set(rule.groups) - {volume.key for volume in volumes})
    if missing and not bad:
        raise CTMaskNetError(
            f"groups: {missing[0]} is no volume under {images}; correct the groups file"
        )
    return pairs


def _is_mask(
    file: str, lost: Mapping[str, str] | None, on_bad: Callable[[str, str], None] | None
) -> bool:
    """Whether a file is a volume or DICOM-SEG; ``lost``: of other DICOM beside the masks, why it
    cannot be used where it ought to be CT; None: there is to be none."""
    try:
        if kind_of(file) in ("nifti", "itk") or seg_series(file) is not None:
            return True
        if lost is not None and (real := os.path.realpath(file)) in lost:
            raise CTMaskNetError(f"{file}: {lost[real]}")
        if lost is None:
            raise CTMaskNetError(f"{file}: DICOM, but no DICOM-SEG; remove it or restore the mask")
    except CTMaskNetError as error:
        if on_bad is None:
            raise
        on_bad(file, str(error).removeprefix(f"{file}: "))
    return False


def _matched(
    volumes: Sequence[Volume],
    files: Sequence[Path],
    root: Path,
    bad: set[str],
    lost: Mapping[str, str],
    on_bad: Callable[[str, str], None] | None,
) -> dict[str, Path]:
    """Key of a volume -> its mask file; masks of volumes in ``bad`` (stems) are left out, and why
    a file is no volume itself is in ``lost``, by its real path."""
    by_scan = {volume.scan.scan: volume.key for volume in volumes}
    by_stem = _unique((_stem(volume.key), volume.key) for volume in volumes)
    by_base = _unique((_base(volume.key), volume.key) for volume in volumes)
    folder = {volume.key: _folder_of(volume) for volume in volumes}
    by_folder = _unique((folder[volume.key], volume.key) for volume in volumes)
    kind_of_volume = {volume.key: volume.scan.kind for volume in volumes}
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda path: natural_key(str(path))):
        name = without_extension(file.relative_to(root).as_posix())
        series = seg_series(os.fspath(file)) or ""
        key = (
            by_scan.get(series)
            or (name if name in folder else None)
            or by_stem.get(_stem(name))
            or by_folder.get(name)
            or by_folder.get(os.path.dirname(name))
            or by_base.get(_base(name))
        )
        if key is None and (
            _stem(name) in bad
            or (_base(name) and _base(name) in map(_base, bad))
            or os.path.dirname(name) in map(os.path.dirname, bad)
        ):
            continue
        if key is None:
            reason = "no volume of the same name; add the volume or remove this mask"
            if why := lost.get(os.path.realpath(file)):
                reason = f"{why}; and as a mask it is of no volume"
            if on_bad is None:
                raise CTMaskNetError(f"{file}: {reason}")
            on_bad(os.fspath(file), reason)
            continue
        if series and series not in by_scan and kind_of_volume[key] == "dicom":
            raise CTMaskNetError(
                f"{file}: is the mask of the series {series}, which is not among the volumes, and "
                f"has the name of another, {key}; add that series or remove this mask"
            )
        if key in found:
            raise CTMaskNetError(
                f"{found[key]} and {file}: both are masks of the volume {key}; remove one"
            )
        found[key] = file
    return found


def _paired(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """Key of an image -> key of the mask that has its name but for the ending or, where these are
    unique on both sides, the folder."""
    found: dict[str, str] = {}
    for name in (_stem, _base):
        left = [key for key in images if key not in found]
        spare = [key for key in masks if key not in found.values()]
        image_of, mask_of = (_unique((name(key), key) for key in keys) for keys in (left, spare))
        found |= {image_of[each]: mask_of[each] for each in image_of.keys() & mask_of.keys()}
    return found


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """name -> key, of the names that one key alone has."""
    pairs = list(pairs)
    count = Counter(name for name, _ in pairs)
    return {name: key for name, key in pairs if name and count[name] == 1}


def _folder_of(volume: Volume) -> str:
    """Relative folder of its file; of a series, whose key is a folder, that folder."""
    alone = len({one.file for one in volume.scan.slices}) == 1
    return os.path.dirname(volume.key) if alone else volume.key


def _stem(name: str) -> str:
    return _ENDINGS.sub("", name)


def _base(name: str) -> str:
    """The stem without its folder; "" for words such as ``image`` that name no case."""
    base = os.path.basename(_stem(name))
    return base if re.search("[0-9]", base) else ""


def _picture_folder(masks: Path, volume: Volume) -> Path | None:
    folder = masks / volume.key
    if folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir()):
        return folder
    return None


def _log_spare_pictures(masks: Path, used: Collection[Path]) -> None:
    spare = [
        each.path
        for each in find_files([masks])
        if each.path.lower().endswith(IMAGE_SUFFIXES) and Path(each.path).parent not in used
    ]
    if spare:
        _LOGGER.warning(
            "%s: %d pictures left out, such as %s: of no volume's mask", masks, len(spare), spare[0]
        )


def _without_mask(volume: Volume, masks: Path) -> str:
    return (
        f"{volume.scan.slices[0].file}: no mask for the volume {volume.key} in {masks}; name it "
        f"{volume.key}.nii.gz, or put it into a folder of that name"
    )


def _patient(volume: Volume, rule: PatientRule) -> str:
    patient = rule.read_volume(volume.key, volume.scan.patient, volume.scan.scan).patient
    if not patient:
        raise CTMaskNetError(
            f"{volume.scan.slices[0].file}: states no patient; give `patient_pattern` or `groups`, "
            "or `patients` each-file where each volume is a patient of its own"
        )
    return patient
