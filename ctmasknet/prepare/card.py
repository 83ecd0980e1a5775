"""The card of a data set: what is in it, and what is wrong with it, as numbers and as text."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from ctmasknet.ct.pictures import read_grey
from ctmasknet.data.duplicates import (
    DEFAULT_DISTANCE,
    NearDuplicate,
    find_near_duplicates,
    near_duplicate_lines,
    perceptual_hash,
    pictures_of,
)
from ctmasknet.data.patients import overlap_lines, overlaps
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.data.statistics import lesion_statistics
from ctmasknet.errors import CTMaskNetError
from ctmasknet.workers import map_in_processes

_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
#: Entries of a list of problems that the text names.
_NAMED = 5


class _Look(NamedTuple):
    """What one picture shows; ``problem`` is set and the rest empty when it cannot be read."""

    file: str
    problem: str | None = None
    size: tuple[int, int] | None = None  # (H, W) px
    levels: np.ndarray | None = None  # (256,) pixels of each grey level
    digest: str = ""  # of the pixels
    hash: np.ndarray | None = None


def data_card(
    names: Sequence[str], *, distance: int = DEFAULT_DISTANCE, workers: int = 1
) -> dict[str, Any]:
    """Describe registered sets, usually the splits of one data set. Every picture is read.

    Args:
        names: registered sets of either task.
        distance: see :func:`ctmasknet.data.duplicates.find_near_duplicates`.
        workers: number of processes.

    Returns:
        ``sets``: for each name ``task``, ``patient_ids``, ``images``, ``patients`` and ``scans``
        (None where slices do not state theirs), ``slices_per_patient`` ({"min", "median", "max"};
        None likewise), ``classes`` (slices of each, or
        lesions of each), ``sizes`` ({"HxW" px: slices}), ``grey_levels`` ({"mean", "std",
        "percentiles", "histogram"}, 8-bit, of all pixels), and for lesion sets ``lesions``
        (:func:`ctmasknet.data.statistics.lesion_statistics`);
        ``problems``: ``damaged`` (messages), ``mixed_labels`` (scans whose slices have unlike
        classes), ``same_pixels`` (groups of files), ``unlike_sizes`` (annotation against file),
        ``shared_patients`` and ``not_compared`` (lines) and ``near_duplicates`` ({"distance",
        "pairs"}).

    Raises:
        CTMaskNetError: no name, an unknown or an empty set, or a distance out of range.
    """
    names = list(dict.fromkeys(names))
    if not names:
        raise CTMaskNetError("data sets: name at least one")
    dicts = {name: dataset_dicts(name) for name in names}
    files = list(dict.fromkeys(d["file_name"] for entries in dicts.values() for d in entries))
    looks = {look.file: look for look in map_in_processes(_look_at, files, workers, title="look")}
    found = overlaps(names)
    told = list(zip(found, overlap_lines(found), strict=True))
    return {
        "sets": {name: _describe(name, dicts[name], looks) for name in names},
        "problems": {
            "damaged": [look.problem for look in looks.values() if look.problem],
            "mixed_labels": _mixed_labels(dicts),
            "same_pixels": _same_pixels(looks.values()),
            "unlike_sizes": _unlike_sizes(dicts, looks),
            "shared_patients": [
                line for overlap, line in told if overlap.shared or overlap.spelled
            ],
            "not_compared": [line for overlap, line in told if not overlap.comparable],
            "near_duplicates": {
                "distance": distance,
                "pairs": [
                    pair._asdict() for pair in _near_duplicates(dicts, looks, distance, workers)
                ],
            },
        },
    }


def card_text(card: Mapping[str, Any]) -> str:
    """The card of :func:`data_card` as Markdown."""
    table = functools.partial(tabulate, tablefmt="pipe", disable_numparse=True)
    rows = []
    for name, one in card["sets"].items():
        a_patient = one["slices_per_patient"]
        slices = "-"
        if a_patient is not None:
            slices = f"{a_patient['min']} / {a_patient['median']:g} / {a_patient['max']}"
        rows.append(
            [
                name,
                f"{one['images']:,}",
                *("-" if one[kind] is None else f"{one[kind]:,}" for kind in ("patients", "scans")),
                slices,
                ", ".join(f"{key} {count:,}" for key, count in one["classes"].items()),
                _sizes_in_words(one["sizes"]),
            ]
        )
    heads = ["set", "slices", "patients", "scans", "slices a patient (min / median / max)"]
    parts = ["# Data set card", table(rows, headers=[*heads, "classes", "size, px (H x W)"])]
    rows = [
        [name, f"{grey['mean']:.1f}", f"{grey['std']:.1f}", *map(str, grey["percentiles"].values())]
        for name, one in card["sets"].items()
        if (grey := one["grey_levels"])
    ]
    if rows:
        heads = ["grey levels 0..255", "mean", "std", *(f"{p} %" for p in _PERCENTILES)]
        parts += ["## Intensities", table(rows, headers=heads)]
    rows = [
        [
            *(name, label, f"{item['instances']:,}", f"{item['images_without']:,}"),
            f"{np.mean(item['per_image']):.1f}",
            "-" if item["median_area_percent"] is None else f"{item['median_area_percent']:.2f}",
        ]
        for name, one in card["sets"].items()
        for label, item in one.get("lesions", {}).get("classes", {}).items()
    ]
    if rows:
        heads = ["lesions", "class", "instances", "slices without", "a slice"]
        parts += ["## Lesions", table(rows, headers=[*heads, "median area, % of the slice"])]
    return "\n\n".join([*parts, "## Problems", _problems_in_words(card["problems"])]) + "\n"


def _look_at(path: str) -> _Look:
    try:
        grey = read_grey(path)
    except CTMaskNetError as error:
        return _Look(path, problem=str(error))
    levels = np.bincount(grey.ravel(), minlength=256).astype(np.uint32)
    digest = hashlib.sha1(repr(grey.shape).encode() + grey.tobytes()).hexdigest()
    return _Look(path, None, grey.shape, levels, digest, perceptual_hash(grey))


def _describe(
    name: str, dicts: Sequence[Mapping[str, Any]], looks: Mapping[str, _Look]
) -> dict[str, Any]:
    metadata = MetadataCatalog.get(name)
    a_patient = None
    if all("patient" in d for d in dicts):
        a_patient = Counter(str(d["patient"]) for d in dicts)
    good = [look for d in dicts if (look := looks[d["file_name"]]).problem is None]
    found = {
        "task": "slices" if metadata.get("image_classes") else "lesions",
        "patient_ids": metadata.get("patient_ids"),
        "images": len(dicts),
        "patients": a_patient and len(a_patient),
        "scans": len({(d["patient"], d["scan"]) for d in dicts})
        if all("scan" in d and "patient" in d for d in dicts)
        else None,
        "slices_per_patient": a_patient
        and {
            "min": min(a_patient.values()),
            "median": float(np.median(list(a_patient.values()))),
            "max": max(a_patient.values()),
        },
        "sizes": dict(Counter("x".join(map(str, look.size)) for look in good).most_common()),
        "grey_levels": _grey_levels(good),
    }
    if found["task"] == "slices":
        counts = Counter(d["label"] for d in dicts)
        found["classes"] = {c: counts[k] for k, c in enumerate(metadata.image_classes)}
    else:
        found["lesions"] = lesion_statistics(name)
        classes = found["lesions"]["classes"]
        found["classes"] = {c: item["instances"] for c, item in classes.items()}
    return found


def _grey_levels(looks: Sequence[_Look]) -> dict[str, Any] | None:
    if not looks:
        return None
    histogram = sum(look.levels.astype(np.int64) for look in looks)
    levels, total = np.arange(256), histogram.sum()
    mean = float((levels * histogram).sum() / total)
    below = np.cumsum(histogram) / total
    return {
        "mean": mean,
        "std": float(np.sqrt((histogram * (levels - mean) ** 2).sum() / total)),
        "percentiles": {str(p): int(np.searchsorted(below, p / 100)) for p in _PERCENTILES},
        "histogram": histogram.tolist(),
    }


def _mixed_labels(dicts: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    problems = []
    for name, entries in dicts.items():
        classes = MetadataCatalog.get(name).get("image_classes")
        labels = defaultdict(set)
        for d in entries if classes else ():
            # Sets of other packages may name neither
            if "patient" in d and "scan" in d:
                labels[d["patient"], d["scan"]].add(d["label"])
        problems += [
            f"{name}: scan {scan} of patient {patient} is "
            + " and ".join(classes[label] for label in sorted(found))
            for (patient, scan), found in labels.items()
            if len(found) > 1
        ]
    return problems


def _same_pixels(looks) -> list[list[str]]:
    groups = defaultdict(list)
    for look in looks:
        if not look.problem:
            groups[look.digest].append(look.file)
    return [files for files in groups.values() if len(files) > 1]


def _unlike_sizes(
    dicts: Mapping[str, Sequence[Mapping[str, Any]]], looks: Mapping[str, _Look]
) -> list[str]:
    return [
        f"{d['file_name']}: {size[0]}x{size[1]} px, but {name} says {d['height']}x{d['width']}"
        for name, entries in dicts.items()
        for d in entries
        if (size := looks[d["file_name"]].size) and "height" in d
        if size != (d["height"], d["width"])
    ]


def _near_duplicates(
    dicts: Mapping[str, Sequence[Mapping[str, Any]]],
    looks: Mapping[str, _Look],
    distance: int,
    workers: int,
) -> list[NearDuplicate]:
    sets, hashes = {}, {}
    for name, entries in dicts.items():
        pictures = pictures_of(entries)
        sets[name] = {f: p for f, p in pictures.items() if not looks[f].problem}
        hashes[name] = np.array([looks[f].hash for f in sets[name]], np.uint64).reshape(-1, 4)
    pairs = find_near_duplicates(sets, distance, workers, within=True, hashes=hashes)
    # One file may be in several of the sets, such as the mask types of one split.
    return [pair for pair in pairs if pair.first_file != pair.second_file]


def _sizes_in_words(sizes: Mapping[str, int]) -> str:
    if len(sizes) <= 3:
        return ", ".join(sizes) or "-"
    sides = np.array([[int(side) for side in size.split("x")] for size in sizes])
    (h0, w0), (h1, w1) = sides.min(axis=0), sides.max(axis=0)
    return f"{len(sizes)} sizes, {h0}..{h1} x {w0}..{w1}"


def _problems_in_words(problems: Mapping[str, Any]) -> str:
    kinds = {
        "damaged": "damaged files",
        "mixed_labels": "scans of several classes",
        "same_pixels": "groups of files with the same pixels",
        "unlike_sizes": "files of another size than annotated",
        "shared_patients": "pairs of sets that share patients",
        "not_compared": "pairs of sets whose patients cannot be compared",
    }
    lines = []
    for key, title in kinds.items():
        found = problems[key]
        lines.append(f"- {title}: {len(found) or 'none'}")
        named = [item if isinstance(item, str) else " = ".join(item) for item in found[:_NAMED]]
        lines += [f"  - {item}" for item in named]
        if len(found) > _NAMED:
            lines.append(f"  - and {len(found) - _NAMED} more")
    near = problems["near_duplicates"]
    pairs = [NearDuplicate(**pair) for pair in near["pairs"]]
    first, *tables = near_duplicate_lines(pairs, near["distance"], _NAMED)
    blocks = ["```\n" + "\n\n".join(tables) + "\n```"] if tables else []
    return "\n".join([*lines, f"- {first}", *blocks])
