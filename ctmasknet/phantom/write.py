"""Synthetic patients written in the raw layouts of the two real data sets.

Nothing downstream can tell the trees from the real ones but for the recipe ``phantom.json`` beside
the data, which says how they were made and lets a second call find its work done. A tree is whole,
or absent.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.data.patients import PHANTOM_RECIPE
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import (
    LOCK,
    check_room,
    check_writable,
    lock_folder,
    read_json,
    remove_unlocked,
    write_json,
    writing,
)
from ctmasknet.phantom.patient import SETTINGS, PhantomSlice, check_slices, phantom_patient
from ctmasknet.workers import map_in_processes

#: Folders made below the output folder.
LESION_TREE = "cncb_lesions_raw"
SLICE_TREE = "covidx_ct_raw"
#: Version of the phantoms: part of the recipe, to be raised when the same arguments give other
#: pictures.
_VERSION = 1
#: Patient numbers of the lesion set are 1 .. this, those of the slices lie above.
_LAST_LESION_PATIENT = 10_000
#: That a phantom's pictures take at least.
_BYTES_A_PX = 0.1
_CLASS_NAMES = ("Normal", "CP", "NCP")


def write_phantom_lesions(
    out: str | os.PathLike,
    *,
    seed: int,
    patients: int,
    slices: int,
    side_px: int,
    workers: int | None = None,
    overwrite: bool = False,
) -> dict:
    """Write COVID patients with label masks as
    ``<out>/cncb_lesions_raw/{image/P/S.jpg,mask/P/S.png}``.

    Args:
        slices: of each patient; about 30 % of them from the whole lung, so that some show no
            lesion.
        workers: processes; None takes all cores. The result does not depend on it.
        overwrite: replace a folder that holds something else.

    Returns:
        The summary: ``{"patients", "slices", "slices_without_lesion", "label_px": {name: px}}``.

    Raises:
        CTMaskNetError: impossible counts, or the folder exists and holds something else.
    """
    tasks = check_phantom_lesions(seed=seed, patients=patients, slices=slices)
    how = {"seed": seed, "side_px": side_px, "slices": slices}
    recipe = _recipe("lesions", how, patients=patients)
    work = partial(_write_lesion_patient, **how)

    def finish(folder: Path, results: list[dict]) -> dict:
        return {
            "patients": patients,
            "slices": patients * slices,
            "slices_without_lesion": sum(r["without"] for r in results),
            "label_px": _label_px(results),
        }

    return _write_tree(Path(out) / LESION_TREE, recipe, tasks, work, finish, workers, overwrite)


def check_phantom_lesions(*, seed: int, patients: int, slices: int) -> list[tuple[str, int]]:
    """Refuse what :func:`write_phantom_lesions` cannot make.

    Returns:
        (kind, number) of each patient.

    Raises:
        CTMaskNetError: impossible counts.
    """
    _at_least_one(**{"lesion patients": patients, "slices": slices})
    if patients > _LAST_LESION_PATIENT:
        raise CTMaskNetError(
            f"{patients} lesion patients: numbers end at {_LAST_LESION_PATIENT}; ask for fewer"
        )
    tasks = [("covid", 1 + i) for i in range(patients)]
    check_slices(tasks, seed, slices)
    return tasks


def write_phantom_slices(
    out: str | os.PathLike,
    *,
    seed: int,
    patients: Mapping[str, int],
    slices: int,
    side_px: int,
    workers: int | None = None,
    overwrite: bool = False,
    with_masks: bool = False,
) -> dict:
    """Write patients of the three classes as ``<out>/covidx_ct_raw/images/*.png`` with a list file
    a split.

    A line of ``<split>_COVIDx_CT.txt`` reads ``file class xmin ymin xmax ymax``; the box holds the
    body. Slices of pneumonia and COVID patients all show a lesion, as in COVIDx-CT. No patient is
    in two lists or in the lesion set.

    Args:
        patients: patients **a class** of each split, such as ``{"train": 60, "val": 12, "test":
            24}``.
        slices: of each patient.
        workers, overwrite: as for :func:`write_phantom_lesions`.
        with_masks: keep the exact label masks too, as ``masks/*.png`` of the same names.

    Returns:
        The summary: ``{"splits": {split: {"patients", "slices": {class: n}}}, "label_px": {name:
        px}}``.

    Raises:
        CTMaskNetError: impossible counts, or the folder exists and holds something else.
    """
    _at_least_one(slices=slices, **{f"{split} patients": n for split, n in patients.items()})
    kinds = [kind for n in patients.values() for kind in IMAGE_CLASSES for _ in range(n)]
    tasks = list(zip(kinds, itertools.count(_LAST_LESION_PATIENT + 1)))
    check_slices(tasks, seed, slices)
    how = {"seed": seed, "side_px": side_px, "slices": slices}
    recipe = _recipe("slices", how, patients=dict(patients), with_masks=with_masks)
    work = partial(_write_slice_patient, **how, with_masks=with_masks)

    def finish(folder: Path, results: list[dict]) -> dict:
        left = iter(results)
        for split, n in patients.items():
            own = itertools.islice(left, n * len(IMAGE_CLASSES))
            text = "".join(f"{line}\n" for result in own for line in result["lines"])
            (folder / f"{split}_COVIDx_CT.txt").write_text(text, encoding="utf-8")
        return {
            "splits": {
                split: {"patients": 3 * n, "slices": dict.fromkeys(IMAGE_CLASSES, n * slices)}
                for split, n in patients.items()
            },
            "label_px": _label_px(results),
        }

    return _write_tree(Path(out) / SLICE_TREE, recipe, tasks, work, finish, workers, overwrite)


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise CTMaskNetError(f"{name} = {count}: ask for at least 1")


def _recipe(what: str, how: Mapping[str, int], **more: Any) -> dict:
    return {"phantom": what, "version": _VERSION, **how, **SETTINGS, **more}


def _label_px(results: list[dict]) -> dict[str, int]:
    total = np.sum([result["label_px"] for result in results], axis=0).tolist()
    return dict(zip(("background", "lung", "ggo", "consolidation"), total, strict=True))


def _count_labels(drawn: list[PhantomSlice]) -> list[int]:
    return sum(np.bincount(one.mask.ravel(), minlength=4) for one in drawn).tolist()


def _write_lesion_patient(task: tuple[str, int], folder: Path, **how: int) -> dict:
    """Draw the patient of ``task`` (kind, number); ``how``: see :func:`phantom_patient`."""
    kind, patient = task
    drawn = phantom_patient(kind, patient=patient, infected_only=False, **how)
    for one in drawn:
        name = f"{patient}/{one.number}"
        _save_picture(folder / f"image/{name}.jpg", one.image, cv2.IMWRITE_JPEG_QUALITY, 95)
        _save_picture(folder / f"mask/{name}.png", one.mask)
    without = sum(int(one.mask.max() < 2) for one in drawn)
    return {"without": without, "label_px": _count_labels(drawn)}


def _write_slice_patient(
    task: tuple[str, int], folder: Path, *, with_masks: bool, **how: int
) -> dict:
    """As :func:`_write_lesion_patient`."""
    kind, patient = task
    label = IMAGE_CLASSES.index(kind)
    drawn = phantom_patient(kind, patient=patient, **how)
    lines = []
    for one in drawn:
        # One scan a patient; its number differs from the patient's so that a mix-up shows.
        name = f"{_CLASS_NAMES[label]}_{patient}_{patient + 20_000}_{one.number:04d}.png"
        _save_picture(folder / "images" / name, one.image, cv2.IMWRITE_PNG_COMPRESSION, 3)
        if with_masks:
            _save_picture(folder / "masks" / name, one.mask)
        lines.append(" ".join(map(str, (name, label, *one.body_box))))
    return {"lines": lines, "label_px": _count_labels(drawn)}


def _save_picture(path: Path, picture: np.ndarray, *options: int) -> None:
    """Encode first, then write: OpenCV's own writer reports a full disk as nothing but False."""
    good, data = cv2.imencode(path.suffix, picture, options)
    if not good:
        raise CTMaskNetError(f"{path}: OpenCV could not encode the picture; check its installation")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def _write_tree(
    target: Path,
    recipe: dict,
    tasks: Sequence,
    work: Callable[..., dict],
    finish: Callable[[Path, list[dict]], dict],
    workers: int | None,
    overwrite: bool,
) -> dict:
    """Draw all patients into a sibling of ``target``; put it in place when all is there.

    ``finish`` gets the folder and what ``work`` returned for every task; it returns the summary.
    What killed runs left goes.
    """
    check_writable(target.parent, folder=True)
    remove_unlocked(target.parent, f".{target.name}.*.tmp")
    if os.path.lexists(target):
        done = _stored(target)
        if done is not None and done["recipe"] == recipe:
            (target / LOCK).unlink(missing_ok=True)  # of a run that was killed once it was in place
            return done["summary"]
        if not overwrite:
            raise CTMaskNetError(
                f"{target}: exists and was not made with these arguments; "
                "choose another folder or give `overwrite`"
            )
    needed = _BYTES_A_PX * len(tasks) * recipe["slices"] * recipe["side_px"] ** 2
    check_room(target.parent, needed, "the phantoms", "ask for fewer patients or slices")
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        lock = lock_folder(folder)
    try:
        folder.chmod(0o755)
        if workers is None:
            workers = len(os.sched_getaffinity(0))
        _at_least_one(workers=workers)
        draw, bar = partial(work, folder=folder), {"title": target.name, "unit": "patient"}
        with writing(target):
            results = list(map_in_processes(draw, tasks, workers, chunksize=1, **bar))
            made = finish(folder, results)
            told = {"recipe": recipe, "summary": made, "files": _count_files(folder)}
            write_json(folder / PHANTOM_RECIPE, told, indent=1)
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            elif os.path.lexists(target):
                target.unlink()
            (folder / LOCK).unlink()  # before: whatever ends this now, a tree in its place has none
            folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.close()
    return made


def _count_files(folder: Path) -> int:
    """Files of a tree without its recipe and a lock."""
    names = [name for _, _, found in os.walk(folder) for name in found]
    return len(names) - names.count(PHANTOM_RECIPE) - names.count(LOCK)


def _stored(target: Path) -> dict | None:
    """The recipe file of a tree; None when there is none or files of the tree are missing."""
    try:
        stored = read_json(target / PHANTOM_RECIPE)
        whole = {"recipe", "summary"} <= stored.keys() and stored["files"] == _count_files(target)
        return stored if whole else None
    except (OSError, ValueError, AttributeError, KeyError):
        return None
