"""Prepared data sets in Detectron2's catalogs.

A prepared set is ``<root>/<name>/annotations/<mask type>_<split>.json`` (lesions, COCO) or
``<root>/<name>/slices/<split>.json`` (slices with a class); ``datasets/README.md`` shows the trees.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.utils.colormap import colormap
from pycocotools.coco import COCO

from ctmasknet.classes import LESION_COLORS, MASK_TYPES, SPARE_COLORS
from ctmasknet.data import prepared as prepared_json
from ctmasknet.data.coco import checked_coco, coco_index, indexed, read_coco
from ctmasknet.data.prepared import datasets_root
from ctmasknet.data.sets.folds import fold_dicts, fold_named
from ctmasknet.data.sets.joined import JOIN, Part, joined_dicts, joined_metadata, names_of_parts
from ctmasknet.data.sets.own import check_own
from ctmasknet.data.splits import SPLITS, check_disjoint
from ctmasknet.errors import CTMaskNetError
from ctmasknet.registration import IMPORT_VARIABLE, import_registrations

logger = logging.getLogger(__name__)
_LESION_SETS = "|".join([*MASK_TYPES, "lesions"])
_LESIONS = re.compile(rf"({_LESION_SETS})_({'|'.join(SPLITS)})\.json")
#: What dataset dicts state of their slices and COCO's images do.
_OF_SLICES = ("patient", "scan", "spacing_mm", "position_mm")
#: What metadata of a set its folds have.
_OF_FOLDS = (
    *("evaluator_type", "image_classes", "image_root", "mask_type", "patient_ids", "thing_classes"),
    *("thing_colors", "thing_dataset_id_to_contiguous_id", "window_hu"),
)
#: Of each name registered here: JSON file, image root, and the file's stamp when its metadata were
#: read.
_registered: dict[str, tuple[str, str | None, prepared_json.Stamp | None]] = {}
#: Other sets -> the function whose dataset dicts were found right.
_checked: dict[str, Callable[[], list[dict[str, Any]]]] = {}
#: Joined sets -> their parts, as they were when they were joined.
_joined: dict[str, list[Part]] = {}


def register_cncb_lesions(
    name: str, json_file: str | os.PathLike, image_root: str | os.PathLike | None = None
) -> None:
    """Register a lesion set prepared by ``datasets/prepare_lesions.py``.

    Dataset dicts are Detectron2's for COCO plus ``patient``. Metadata: ``thing_classes``,
    ``thing_colors`` (RGB), ``json_file``, ``image_root``, ``mask_type``,
    ``patient_ids`` (name of the patients' numbering, None where the file states none),
    ``evaluator_type="ct_lesions"``, ``window_hu`` ([center, width], None for a set of pictures).

    Args:
        name: the name to register; an earlier set of that name from this module is replaced.
        json_file: COCO file.
        image_root: overrides ``info.image_root`` of the file.

    Raises:
        CTMaskNetError: the file is missing or broken, or the name belongs to a set of another
            package.
    """
    json_file = os.path.abspath(json_file)
    document = prepared_json.read_lesions(json_file)
    root = prepared_json.image_root(json_file, document, image_root)
    categories = sorted(document["categories"], key=lambda c: c["id"])
    names = [category["name"] for category in categories]
    metadata = {
        "evaluator_type": "ct_lesions",
        "image_root": root,
        "json_file": json_file,
        "mask_type": document["info"].get("mask_type", ""),
        "patient_ids": document["info"].get("patient_ids"),
        "thing_classes": names,
        "thing_colors": lesion_colors(names),
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
        "window_hu": document["info"].get("window_hu"),
    }
    load = functools.partial(prepared_json.load_lesions, json_file, root)
    _register(name, json_file, image_root, load, metadata)


def register_covidx_ct(
    name: str, json_file: str | os.PathLike, image_root: str | os.PathLike | None = None
) -> None:
    """Register a slice set prepared by ``datasets/prepare_slices.py``.

    Dataset dicts: ``file_name``, ``image_id`` (relative file), ``label``, ``patient``, ``scan``,
    ``slice``, ``body_box`` ([x0, y0, x1, y1] px or None). Metadata: ``image_classes``,
    ``slices_json``, ``image_root``, ``patient_ids``, ``evaluator_type="ct_slices"``, ``window_hu``.
    Arguments and errors as in :func:`register_cncb_lesions`.
    """
    json_file = os.path.abspath(json_file)
    document = prepared_json.read_slices(json_file)
    root = prepared_json.image_root(json_file, document, image_root)
    metadata = {
        "evaluator_type": "ct_slices",
        "image_classes": list(document["classes"]),
        "image_root": root,
        "patient_ids": document["info"].get("patient_ids"),
        "slices_json": json_file,
        "window_hu": document["info"].get("window_hu"),
    }
    load = functools.partial(prepared_json.load_slices, json_file, root)
    _register(name, json_file, image_root, load, metadata)


def register_prepared(root: str | os.PathLike | None = None) -> list[str]:
    """Register every prepared set under ``root`` (default $DETECTRON2_DATASETS, else
    ``./datasets``).

    A set already registered from the same unchanged file stays as it is; one of the same name from
    elsewhere is replaced. A broken file, and splits of one set that share a patient, are registered
    without metadata and reported in the log, so that they do not bar the other sets; using one
    raises the error.

    Returns:
        The names of the sets under ``root``, sorted.
    """
    found: dict[str, tuple[Path, Callable[..., None]]] = {}
    for path in sorted(datasets_root(root).glob("*/annotations/*.json")):
        if match := _LESIONS.fullmatch(path.name):
            found[f"{path.parent.parent.name}_{match[1]}_{match[2]}"] = path, register_cncb_lesions
    for path in sorted(datasets_root(root).glob("*/slices/*.json")):
        if path.stem in SPLITS:
            found[f"{path.parent.parent.name}_{path.stem}"] = path, register_covidx_ct
    changed = [name for name, (path, _) in found.items() if not _is_current(name, path)]
    for name in changed:
        path, register = found[name]
        try:
            register(name, path)
        except CTMaskNetError as error:
            if name in DatasetCatalog and name not in _registered:
                raise
            _make_unusable(name, path, error)
    if changed:
        _refuse_leaks({name: path for name, (path, _) in found.items()})
    return sorted(found)


def dataset_dicts(name: str) -> list[dict[str, Any]]:
    """The dataset dicts of a registered set; the prepared sets under the default root are
    registered on the way.

    Raises:
        CTMaskNetError: no such set (the message says what there is and which tool makes one), it is
            empty, or a set of a user's module lacks what it needs.
    """
    _look_up(name)
    if name not in DatasetCatalog:
        whole = fold_named(name)
        if whole:  # which says what is not there
            return dataset_dicts(whole.base)
        unknown = [part for part in name.split(JOIN) if part not in DatasetCatalog]
        joined, name = ("" if unknown == [name] else f" (part of {name})"), unknown[0]
        lesions = re.search(rf"_({_LESION_SETS})_({'|'.join(SPLITS)})$", name)
        tool = "prepare_lesions.py" if lesions else "prepare_slices.py"
        raise CTMaskNetError(
            f"data set {name}{joined}: not registered, and not under {datasets_root()} "
            "($DETECTRON2_DATASETS); known: "
            f"{', '.join(sorted(_registered)) or 'none'}; make it with datasets/{tool} or "
            "datasets/prepare_phantom.py, or name the module that registers it as DATASETS.IMPORT "
            f"on the command line or in {IMPORT_VARIABLE}"
        )
    foreign = None if name in _registered else MetadataCatalog.get(name).get("json_file")
    known = {image["id"] for image in read_coco(foreign)["images"]} if foreign else None
    dicts = DatasetCatalog.get(name)
    if name not in {*_registered, *_joined} and _checked.get(name) is not DatasetCatalog[name]:
        metadata = MetadataCatalog.get(name).as_dict()
        check_own(name, dicts, metadata)
        if metadata.get("thing_classes") and dicts and not foreign:
            lesion_truth(name)  # boxes and masks are looked at too
        _checked[name] = DatasetCatalog[name]
    if known is not None and not known.issuperset(
        entry["image_id"] for entry in dicts if "image_id" in entry
    ):
        raise CTMaskNetError(f"{foreign}: ids of images are no whole numbers; number them")
    if not dicts:
        source = _registered.get(name, (name,))[0]
        raise CTMaskNetError(f"data set {name}: {source} holds no image; prepare the set again")
    return dicts


def _look_up(name: str) -> None:
    """Register what there is, where a name is not known, and what joins or divides sets."""
    if fold := fold_named(name):
        _look_up(fold.base)
        if fold.base in DatasetCatalog and name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda: fold_dicts(fold, dataset_dicts(fold.base)))
            whole = MetadataCatalog.get(fold.base).as_dict()
            kept = {key: value for key, value in whole.items() if key in _OF_FOLDS}
            MetadataCatalog.get(name).set(**kept)
        return
    if name not in DatasetCatalog:
        register_prepared()
    if name not in DatasetCatalog:
        import_registrations()
    if name in _joined or (name not in DatasetCatalog and JOIN in name):
        _join(name)


def _join(name: str) -> None:
    """Register the joined set ``a+b``, anew where a part has changed; not where one is unknown.

    Raises:
        CTMaskNetError: the parts cannot be joined, or one cannot be used.
    """
    names = names_of_parts(name)
    for part in names:
        _look_up(part)
        if part in DatasetCatalog and not _states_classes(part):
            DatasetCatalog.get(part)  # states them now, as Detectron2's do, or raises what bars it
    if not all(part in DatasetCatalog for part in names):
        return
    parts = [Part(part, MetadataCatalog.get(part).as_dict(), source_of(part)) for part in names]
    if _joined.get(name) == parts:
        return
    metadata = joined_metadata(name, parts)
    _forget_joined(name)
    load = functools.partial(_load_joined, name, parts)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    _joined[name] = parts


def _states_classes(name: str) -> bool:
    metadata = MetadataCatalog.get(name)
    return bool(metadata.get("thing_classes") or metadata.get("image_classes"))


def _load_joined(name: str, parts: Sequence[Part]) -> list[dict[str, Any]]:
    return joined_dicts(name, parts, [dataset_dicts(part.name) for part in parts])


def _forget_joined(name: str) -> None:
    if _joined.pop(name, None) is not None:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def parts_of(name: str) -> list[str]:
    """The sets that a joined set ``a+b`` is of; of any other set its name alone.

    Raises:
        CTMaskNetError: the parts cannot be joined, or one cannot be used.
    """
    if JOIN in name:
        _look_up(name)
    return [part.name for part in _joined[name]] if name in _joined else [name]


def lesion_truth(name: str) -> COCO:
    """pycocotools' index of a registered lesion set: of its json, or where its metadata name none
    (``json_file``) of its dataset dicts.

    Raises:
        CTMaskNetError: a set without lesion classes, or as
            :func:`ctmasknet.data.coco.checked_coco`.
    """
    metadata = MetadataCatalog.get(name)
    if path := metadata.get("json_file"):
        return coco_index(path)
    if not metadata.get("thing_classes"):
        raise CTMaskNetError(f"{name}: has no lesions; name a set of datasets/prepare_lesions.py")
    try:
        document = convert_to_coco_dict(name)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CTMaskNetError(
            f"data set {name}: its annotations have no COCO form ({' '.join(str(error).split())}); "
            "correct the function that registers it"
        ) from error
    stated = {entry.get("image_id"): entry for entry in DatasetCatalog.get(name)}
    for image in document["images"]:  # Detectron2 leaves these out
        entry = stated.get(image["id"], {})
        image |= {key: entry[key] for key in _OF_SLICES if entry.get(key) is not None}
    return indexed(checked_coco(document, f"data set {name}"))


def known_sets(names: Iterable[str]) -> list[str]:
    """Those of the names that are registered, in their order; joined sets of known parts are.

    Raises:
        CTMaskNetError: parts that cannot be joined.
    """
    names = list(names)
    for name in names:
        if fold_named(name):
            _look_up(name)
        elif JOIN in name and name not in DatasetCatalog:
            _join(name)
    return [name for name in names if name in DatasetCatalog]


def patients_of(name: str) -> tuple[set[str] | None, str | None]:
    """The patients of a registered set (None where its slices name none, as other packages' may),
    and the name of their numbering (``patient_ids`` of its metadata; None where it states none).

    Raises:
        CTMaskNetError: no such set, or it cannot be used.
    """
    _look_up(name)
    if name not in _registered or not MetadataCatalog.get(name).get("image_root"):
        dicts = dataset_dicts(name)
        if not all("patient" in entry for entry in dicts):
            return None, None
        patients = {str(entry["patient"]) for entry in dicts}
    else:  # without building 100,000 dicts
        patients = prepared_json.patients(_registered[name][0])
    return patients, MetadataCatalog.get(name).get("patient_ids")


def source_of(name: str) -> str:
    """Folder of the prepared set; sets that stand in no such folder share the source ''."""
    fold = fold_named(name)
    name = fold.base if fold else name
    return _source(_registered[name][0]) if name in _registered else ""


def lesion_colors(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """RGB colour (0..255) of each lesion class; unknown names get spare ones, then Detectron2's."""
    more = map(tuple, colormap(rgb=True, maximum=255).astype(int).tolist())
    spare = itertools.chain(SPARE_COLORS, more)
    return [LESION_COLORS[n] if n in LESION_COLORS else next(spare) for n in names]


def _register(
    name: str,
    json_file: str,
    given_root: str | os.PathLike | None,
    load: Callable[[], list[dict[str, Any]]],
    metadata: dict[str, Any],
) -> None:
    if name in _registered:
        unregister(name)
    elif name in DatasetCatalog:
        raise CTMaskNetError(
            f"data set {name}: the name is taken by a set of another package; rename the folder"
        )
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    given = None if given_root is None else os.path.abspath(given_root)
    _registered[name] = (json_file, given, prepared_json.stamp(json_file))


def unregister(name: str) -> None:
    """Remove a set that this module registered from both catalogs; others are left alone."""
    _forget_joined(name)
    if _registered.pop(name, None) is not None:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def _is_current(name: str, path: Path) -> bool:
    path = os.path.abspath(path)
    return (
        name in DatasetCatalog
        and _registered.get(name) == (path, None, prepared_json.stamp(path))
        # What could not be used may be usable now that another file has changed.
        and bool(MetadataCatalog.get(name).get("image_root"))
    )


def _source(json_file: str | os.PathLike) -> str:
    path = Path(json_file)
    return str(path.parent.parent) if path.parent.name in ("annotations", "slices") else ""


def _refuse_leaks(found: Mapping[str, Path]) -> None:
    """Make the splits of one prepared set unusable that share a patient, and say so in the log.

    The preparation tools write no such splits; files that were changed by hand may hold them.
    """
    homes: dict[tuple[str | None, ...], dict[str, set[str]]] = {}
    for name, path in found.items():
        metadata = MetadataCatalog.get(name)
        if not metadata.get("image_root"):  # broken
            continue
        lesions = _LESIONS.fullmatch(path.name) if path.parent.name == "annotations" else None
        task = lesions[1] if lesions else "slices"
        splits = homes.setdefault((_source(path), task, metadata.get("patient_ids")), {})
        splits[name] = prepared_json.patients(os.path.abspath(path))
    for splits in homes.values():
        for pair in itertools.combinations(splits.items(), 2):
            try:
                check_disjoint(dict(pair))
            except CTMaskNetError as error:
                for name, _ in pair:
                    where = f"{found[name]}: {error}"
                    _make_unusable(name, found[name], CTMaskNetError(where))


def _make_unusable(name: str, path: Path, error: CTMaskNetError) -> None:
    """Register a set without metadata whose use raises ``error``."""
    logger.warning("data set %s cannot be used: %s", name, error)

    def refuse() -> list[dict[str, Any]]:
        raise CTMaskNetError(str(error))

    _register(name, os.path.abspath(path), None, refuse, {})
