"""Volumes and their masks: other volumes, or folders of pictures, one a slice."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.dicom.reconstruction import series_facts
from ctmasknet.ct.find import find_files, kind_of, natural_key
from ctmasknet.ct.scan import CTScan, Rescale
from ctmasknet.data.label_masks import MASK_SUFFIXES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import IMAGE_SUFFIXES, PatientRule
from ctmasknet.prepare.mask_volumes import seg_series
from ctmasknet.prepare.masks.planes import ClassMasks
from ctmasknet.prepare.pairs.by_class import (
    files_of_classes,
    mask_of_classes,
    picture_folders,
    tell_missing,
)
from ctmasknet.prepare.pairs.kinds import MaskFile, VolumePair
from ctmasknet.prepare.pairs.matching import base_of, stem_of, study_of, unique_names
from ctmasknet.prepare.pairs.pictures import NAMES_TELL
from ctmasknet.prepare.pairs.stated import Pairing, settle_unlabelled
from ctmasknet.prepare.volumes import (
    Volume,
    chosen_series,
    find_volumes,
    volume_files,
    without_extension,
)

_LOGGER = logging.getLogger(__name__)


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
    pairing: Pairing = NAMES_TELL,
    axes: Axes | None = None,
    one_series: bool = False,
) -> list[VolumePair]:
    """Pair the volumes under ``images`` with the masks under ``masks``, in natural order.

    The two may be one folder. A DICOM-SEG belongs to the series it references. Any other mask, and
    a SEG whose series is not there (as when its volume was converted to NIfTI), belongs to the
    volume of the same relative path without extension, endings such as ``_mask`` or ``_ct`` aside;
    failing that, to the only volume of the folder of the same relative path, or to the only one of
    the same name in any folder, if it is a name with a number. Masks may also be
    pictures in a folder of the volume's name
    (:func:`slice_masks`). ``rescale`` and ``axes`` are for volumes as in
    :func:`ctmasknet.ct.read.read_scans`, ``one_series``: of a study with several
    series the one that counts is taken, of those with masks if any has one, and unless they are
    stated; ``pairing`` what the user states of masks.

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
    volumes = find_volumes(images, on_bad=report, on_lost=on_lost, rescale=rescale, axes=axes)
    used = {os.path.realpath(one.file) for volume in volumes for one in volume.scan.slices}
    files = [
        Path(file)
        for file in volume_files(masks)
        if os.path.realpath(file) not in used | bad.keys()
        and _is_mask(file, lost if one_folder else None, report)
    ]
    left_out = {stem_of(without_extension(file)) for file in bad.values()}
    if pairing.is_stated:
        volume_of = {_file_of(volume, images): volume for volume in volumes}
        stated = pairing.masks_of(list(volume_of), images, masks)
        volumes = [volume for file, volume in volume_of.items() if file in stated]
        mask_of = {volume_of[file].key: mask for file, mask in stated.items() if mask}
    elif pairing.classes:
        mask_of = _of_classes(volumes, files, masks, left_out, lost, report, pairing)
    else:
        mask_of = _matched(volumes, files, masks, left_out, lost, report)
        mask_of = {v.key: mask_of.get(v.key) or _picture_folder(masks, v) for v in volumes}
    if one_series and not pairing.is_stated:
        volumes = _one_series(volumes, mask_of)
    unlabelled = [volume.key for volume in volumes if not mask_of.get(volume.key)]
    if pairing.unlabelled != "error":
        settle_unlabelled(unlabelled, len(volumes) - len(unlabelled), images, pairing)
    pairs = []
    for volume in volumes:
        mask = mask_of.get(volume.key)
        if mask is None and pairing.unlabelled == "skip":
            continue
        if mask is None and pairing.unlabelled == "error":
            if on_bad is None:
                raise CTMaskNetError(_without_mask(volume, masks))
            for file in dict.fromkeys(one.file for one in volume.scan.slices):
                on_bad(file, _without_mask(volume, masks).partition(": ")[2])
            continue
        pairs.append(VolumePair(volume, mask, _patient(volume, rule)))
    used = set()
    for pair in pairs:
        one = pair.mask
        used.update(one.files.values() if isinstance(one, ClassMasks) else filter(None, [one]))
    _log_spare_pictures(masks, used)
    missing = sorted(set(rule.groups) - {volume.key for volume in volumes})
    if missing and not bad:
        raise CTMaskNetError(
            f"groups: {missing[0]} is no volume under {images}; correct the groups file"
        )
    return pairs


def _one_series(volumes: Sequence[Volume], mask_of: Mapping[str, MaskFile | None]) -> list[Volume]:
    facts = {volume.key: series_facts(volume.scan) for volume in volumes}
    labelled = {one.study for key, one in facts.items() if one is not None and mask_of.get(key)}
    rest = []
    for volume in volumes:
        one = facts[volume.key]
        if one is None or one.study not in labelled or mask_of.get(volume.key):
            rest.append(volume)
            continue
        _LOGGER.warning(
            "%s: series %s is not taken (%s): it has no mask, and another series of its study has",
            *(volume.scan.slices[0].file, one.series, one.said),
        )
    taken = set(map(id, chosen_series([volume.scan for volume in rest])))
    return [volume for volume in rest if id(volume.scan) in taken]


def _is_mask(
    file: str, lost: Mapping[str, str] | None, on_bad: Callable[[str, str], None] | None
) -> bool:
    """Whether a file is a volume or DICOM-SEG; ``lost``: of other DICOM beside the masks, why it
    cannot be used where it ought to be CT; None: there is to be none."""
    try:
        if kind_of(file) in ("nifti", "itk", "array") or seg_series(file) is not None:
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


def _of_classes(
    volumes: Sequence[Volume],
    files: Sequence[Path],
    root: Path,
    bad: set[str],
    lost: Mapping[str, str],
    on_bad: Callable[[str, str], None] | None,
    pairing: Pairing,
) -> dict[str, MaskFile]:
    """As :func:`_matched`, of masks of one class each, which may be folders of pictures."""
    named = files_of_classes((file.relative_to(root).as_posix() for file in files), pairing.classes)
    taken = {file for of_class in named.values() for file in of_class}
    others = [file for file in files if file.relative_to(root).as_posix() not in taken]
    if others:
        _LOGGER.warning(
            "%s: %d volumes left out, such as %s: their names say no class of `mask_classes`",
            *(root, len(others), others[0]),
        )
    found: dict[str, dict[str, Path]] = {}
    for name, of_class in named.items():
        name_of = {root / file: without for file, without in of_class.items()}
        of = _matched(volumes, list(name_of), root, bad, lost, on_bad, name_of)
        for volume in volumes:
            word = pairing.classes[name]
            mask = of.get(volume.key) or next(
                filter(_holds_pictures, picture_folders(root, volume.key, word)), None
            )
            if mask is not None:
                found.setdefault(volume.key, {})[name] = mask
    masks = {key: mask_of_classes(each) for key, each in found.items()}
    tell_missing(masks.values(), pairing.classes, root)
    return masks


def _matched(
    volumes: Sequence[Volume],
    files: Sequence[Path],
    root: Path,
    bad: set[str],
    lost: Mapping[str, str],
    on_bad: Callable[[str, str], None] | None,
    name_of: Mapping[Path, str] | None = None,
) -> dict[str, Path]:
    """Key of a volume -> its mask file; masks of volumes in ``bad`` (stems) are left out, and why
    a file is no volume itself is in ``lost``, by its real path. ``name_of``: the relative paths
    that the files go by; default: their own."""
    by_scan = {volume.scan.scan: volume.key for volume in volumes}
    by_stem = unique_names((stem_of(volume.key), volume.key) for volume in volumes)
    by_base = unique_names((base_of(volume.key), volume.key) for volume in volumes)
    by_study = unique_names((study_of(volume.key), volume.key) for volume in volumes)
    folder = {volume.key: _folder_of(volume) for volume in volumes}
    by_folder = unique_names((folder[volume.key], volume.key) for volume in volumes)
    kind_of_volume = {volume.key: volume.scan.kind for volume in volumes}
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda path: natural_key(str(path))):
        name = without_extension(name_of[file] if name_of else file.relative_to(root).as_posix())
        series = seg_series(os.fspath(file)) or ""
        key = (
            by_scan.get(series)
            or (name if name in folder else None)
            or by_stem.get(stem_of(name))
            or by_folder.get(name)
            or by_folder.get(os.path.dirname(name))
            or by_study.get(study_of(name))
            or by_base.get(base_of(name))
        )
        if key is None and (
            stem_of(name) in bad
            or (base_of(name) and base_of(name) in map(base_of, bad))
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


def _folder_of(volume: Volume) -> str:
    """Relative folder of its file; of a series, whose key is a folder, that folder."""
    alone = len({one.file for one in volume.scan.slices}) == 1
    return os.path.dirname(volume.key) if alone else volume.key


def _file_of(volume: Volume, images: Path) -> str:
    """Its relative path; of a series that of its folder."""
    files = {one.file for one in volume.scan.slices}
    if len(files) > 1:
        return volume.key
    return Path(os.path.relpath(next(iter(files)), images)).as_posix()


def _picture_folder(masks: Path, volume: Volume) -> Path | None:
    folder = masks / volume.key
    return folder if _holds_pictures(folder) else None


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())


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
        f"{volume.key}.nii.gz, put it into a folder of that name, or say with `unlabelled` "
        "skip or normal what images without a mask are"
    )


def _patient(volume: Volume, rule: PatientRule) -> str:
    patient = rule.read_volume(volume.key, volume.scan.patient, volume.scan.scan).patient
    if not patient:
        raise CTMaskNetError(
            f"{volume.scan.slices[0].file}: states no patient; give `patient_pattern` or `groups`, "
            "or `patients` each-file where each volume is a patient of its own"
        )
    return patient
