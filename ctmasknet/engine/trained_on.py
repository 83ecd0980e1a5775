"""What weights were trained on: carried by checkpoints, held against sets to evaluate, and told to
whoever uses the weights.

A classifier's checkpoint also carries what its detector was trained on, so a patient who taught the
detector is not met again in the classifier's validation or test set. Ids are compared where both
sides state one numbering (:mod:`ctmasknet.data.patients`), and kept as hashes, so that a
checkpoint that is passed on shows no names. Numbers few enough to be tried out can still be told.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog

from ctmasknet.ct.appearance import GreyLevels, appearance, typical_levels
from ctmasknet.ct.pictures import read_picture
from ctmasknet.data.patients import (
    ADVICE,
    PHANTOM_IDS,
    WARN,
    Patients,
    first_few,
    log_not_comparable,
    phantom_recipe,
    report,
)
from ctmasknet.data.registry import dataset_dicts, parts_of
from ctmasknet.errors import CTMaskNetError

_LOGGER = logging.getLogger(__name__)
#: Hexadecimal digits of a patient's hash; 64 bits, so no two of a million patients share one.
_DIGITS = 16
#: For every set: ``dataset`` (name), ``task``, ``patient_ids`` (name of the numbering or None) and
#: ``patients`` (sorted hashes; none without a numbering), ``phantoms`` (their recipe stands
#: beside the pictures), ``grey_levels`` (of air, fat and muscle in them), and of a classifier
#: ``trainable`` (``MODEL.TRAINABLE``).
Record = list[dict[str, Any]]
#: Pictures of a set that its grey levels are measured on.
_MEASURED = 64


def training_record(names: Iterable[str], task: str, trainable: str = "") -> Record:
    """The record of a training on these registered sets, an entry for every part of joined ones.

    Args:
        names: of ``DATASETS.TRAIN``.
        task: ``segmentation`` or ``classification``.
        trainable: ``MODEL.TRAINABLE``, which says what a classification trains.
    """
    record = []
    for patients in map(Patients.of, _parts(names)):
        ids = patients.numbering
        hashes = sorted(_hash(ids, patient) for patient in patients.ids) if ids else []
        entry = {"dataset": patients.name, "task": task, "patient_ids": ids, "patients": hashes}
        root = MetadataCatalog.get(patients.name).get("image_root")
        entry["phantoms"] = bool(root) and phantom_recipe(root) is not None
        entry["grey_levels"] = list(_grey_levels(patients.name))
        if task == "classification":
            entry["trainable"] = trainable
        record.append(entry)
    return record


def _parts(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(part for name in names for part in parts_of(name)))


def _grey_levels(name: str) -> GreyLevels:
    """Of pictures spread evenly over a registered set; training names those it cannot read."""
    files = [entry["file_name"] for entry in dataset_dicts(name) if "file_name" in entry]
    count = min(_MEASURED, len(files))
    found = []
    for index in range(count):
        with contextlib.suppress(CTMaskNetError):
            found.append(appearance(read_picture(files[index * len(files) // count])).levels)
    return typical_levels(found)


def levels_trained_on(record: Record, task: str) -> GreyLevels:
    """The grey levels of the latest set that a record states them for, of one task."""
    for entry in reversed(record):
        levels = entry.get("grey_levels")
        if entry["task"] == task and isinstance(levels, list | tuple) and len(levels) == 3:
            numbers = [level for level in levels if level is not None]
            if all(type(level) in (int, float) and 0 <= level <= 255 for level in numbers):
                return GreyLevels(*levels)
    return GreyLevels(None, None, None)


def phantom_caution(record: Record) -> str | None:
    """What has to be said of weights that were trained on phantoms; None of others."""
    names = [
        entry["dataset"]
        for entry in record
        if entry.get("phantoms") or str(entry["patient_ids"] or "").startswith(PHANTOM_IDS)
    ]
    if not names:
        return None
    return (
        f"the weights were trained on phantoms ({first_few(dict.fromkeys(names))}), synthetic "
        "patients: what they say of people means nothing"
    )


def lesion_caution(record: Record) -> str | None:
    """What has to be said of the lesions of a classifier's detector; None where it is as it was
    trained on lesions."""
    tasks = [entry["task"] for entry in record]
    if "segmentation" not in tasks:
        return (
            "the weights do not state that their detector was trained on lesions; take lesions "
            "from a lesion detector's weights"
        )
    last = len(tasks) - 1 - tasks[::-1].index("segmentation")
    modes = [str(entry.get("trainable", "not stated")) for entry in record[last + 1 :]]
    bending = [mode for mode in dict.fromkeys(modes) if mode != "heads"]
    if not bending:
        return None
    return (
        f"the detector was trained with the class (MODEL.TRAINABLE {', '.join(bending)}), so its "
        "boxes and masks are evidence for the class and no measure of lesions; take lesions from a "
        "lesion detector's weights"
    )


def merged(*records: Record) -> Record:
    """All entries of several records, each once."""
    result: Record = []
    for record in records:
        result += [dict(entry) for entry in record if entry not in result]
    return result


def check_trained_on(
    path: str,
    record: Record | None,
    names: Sequence[str],
    on_shared: str,
    validation: Sequence[str] = (),
) -> None:
    """Check that weights were trained on no patient of the sets they are evaluated on.

    A set that the weights were trained on under this very name is no more than logged: whoever
    evaluates it wants to see how well it was learnt. It is no set to choose a model by.

    Args:
        path: the weights file, for messages.
        record: what it carries; None when it carries no record.
        names: registered sets to evaluate.
        on_shared: see :func:`ctmasknet.data.patients.check_patients_disjoint`.
        validation: those of the sets that a training chooses its best model by.

    Raises:
        CTMaskNetError: names the patient, both sets and what to do.
    """
    if record is None:
        if names:
            _LOGGER.info(
                "%s does not say which patients it was trained on; they are not compared with "
                "those of %s",
                path,
                ", ".join(names),
            )
        return
    validation = _parts(validation)
    for held_out in map(Patients.of, _parts(names)):
        own = [entry for entry in record if entry["dataset"] == held_out.name]
        if not any(_same_people(entry, held_out) for entry in own):
            for entry in record:
                _check_entry(path, entry, held_out, on_shared)
            continue
        chooses = held_out.name in validation
        report(
            f"{held_out.name} is a set that {path} was trained on, so its figures tell how well it "
            f"was learnt; name another set in DATASETS.{'VAL' if chooses else 'TEST'}, {ADVICE}",
            on_shared if chooses else WARN,
        )


def _same_people(entry: Mapping[str, Any], held_out: Patients) -> bool:
    """Whether sets of one name are one set, as far as their patients tell."""
    numbering = entry["patient_ids"]
    if numbering is None or numbering != held_out.numbering:
        return True
    known = set(entry["patients"])
    return any(_hash(numbering, patient) in known for patient in held_out.ids)


def _check_entry(path: str, entry: Mapping[str, Any], held_out: Patients, on_shared: str) -> None:
    numbering = entry["patient_ids"]
    if numbering is None or numbering != held_out.numbering:
        log_not_comparable(
            f"{entry['dataset']} (ids: {numbering or 'not stated'}; {path} was trained on it)",
            held_out.described,
        )
        return
    known = set(entry["patients"])
    shared = [patient for patient in held_out.ids if _hash(numbering, patient) in known]
    if shared:
        part = "the detector" if entry["task"] == "segmentation" else "the classifier"
        one = len(shared) == 1
        report(
            f"patient{'' if one else 's'} {first_few(shared)} of {held_out.name} "
            f"{'is' if one else 'are'} in {entry['dataset']} too (ids: {numbering}), on which "
            f"{part} in {path} was trained; prepare one of the two sets without "
            f"{'this patient' if one else 'these patients'} (or with `split_like` the other), "
            f"{ADVICE}",
            on_shared,
        )


def _hash(numbering: str, patient: str) -> str:
    return hashlib.sha256(f"{numbering}\n{patient}".encode()).hexdigest()[:_DIGITS]
