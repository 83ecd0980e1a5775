"""From a folder to the page: everything is gathered here and the template only sets it."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import ctmasknet
from ctmasknet.console.progress import tracked
from ctmasknet.evaluation.pooling import normal_index
from ctmasknet.files import atomic_write, check_writable, writing
from ctmasknet.report.burden_section import burden_section
from ctmasknet.report.comparison import comparison_section, read_comparison
from ctmasknet.report.lesion_page import is_of_a_detector, lesion_page
from ctmasknet.report.neighbours import read_seen, slice_heading
from ctmasknet.report.pictures import (
    SliceFiles,
    SlicePictures,
    evidence_painter,
    recorded_axes,
    recorded_rescale,
    recorded_window,
)
from ctmasknet.report.sections import page_values, rendered
from ctmasknet.report.source import ReportSource, dataset_names, read_source
from ctmasknet.report.subgroup_section import subgroup_section
from ctmasknet.report.tables import (
    MAX_ROWS,
    PER_PATIENT,
    UnitsTable,
    choose_slices,
    threshold_data,
    units_table,
)
from ctmasknet.report.viewer.prediction import recorded_threshold

_LOGGER = logging.getLogger(__name__)


def write_report(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    pictures: Sequence[str | os.PathLike] = (),
    gallery: int = 24,
    config_file: str = "",
    weights: str | None = None,
    opts: Sequence[str] = (),
    comparison: str | os.PathLike | None = None,
    **source_options: Any,
) -> Path:
    """Write the report of an evaluation or prediction folder as one HTML file.

    Args:
        folder: see :func:`read_source`; or of a lesion detector's prediction, whose page has
            scans, problems and pictures alone.
        output: the file; written whole or not at all.
        images: folder below which the slices lie, where it is not ``folder``; relative names are
            relative to it.
        pictures: folders of pictures made before (``tools/explain.py``, ``tools/visualize.py``);
            a prediction folder's own are used without being named where no model draws.
        gallery: slices shown at most.
        config_file: configuration of the model that draws lesions.
        weights: its file; without either none draws.
        opts: its ``KEY VALUE`` overrides.
        comparison: ``comparison.json`` of ``tools/compare.py`` or its folder, to be shown too.
        source_options: ``dataset``, ``evaluation``, ``burden``, ``burden_truth`` of
            :func:`read_source`.

    Returns:
        The file.

    Raises:
        CTMaskNetError: see :func:`read_source`, :class:`SlicePictures`, :func:`evidence_painter`;
            an output that cannot be written.
    """
    output = Path(output)
    if is_of_a_detector(folder):
        check_writable(output)
        unused = {
            "config_file": config_file,
            "weights": weights,
            "opts": opts,
            "comparison": comparison,
        }
        unused |= source_options
        page, files = lesion_page(folder, images, pictures, gallery, unused)
        return _written(output, page, folder, files)
    source = read_source(folder, **source_options)
    compared = read_comparison(comparison) if comparison is not None else None
    # Tried before a model is loaded
    check_writable(output)
    seen = recorded_window(source.entries), source.folder, recorded_rescale(source.entries)
    files = SliceFiles(source.dataset, images, *seen, recorded_axes(source.entries))
    painter = None
    if config_file or weights or "MODEL.WEIGHTS" in opts:
        names, threshold = source.class_names, recorded_threshold(source.entries)
        painter = evidence_painter(config_file, opts, source.folder, names, weights, threshold)
    overlays = source.listing.parent if painter is None and source.listing is not None else None
    found = SlicePictures(
        [row.file for row in source.rows], files, folders=pictures, more=overlays, painter=painter
    )
    return _written(output, _render(source, found, gallery, compared), folder, files)


def _written(output: Path, page: str, folder: str | os.PathLike, files: SliceFiles) -> Path:
    """Write the page; say which slices could not be shown."""
    if files.elsewhere:
        _LOGGER.warning(
            "%s: %d of the slices lie neither here nor in `images`, and are shown without their "
            "picture, such as %s; name their folder as `images`",
            *(folder, len(files.elsewhere), min(files.elsewhere)),
        )
    with writing(output), atomic_write(output) as stream:
        stream.write(page)
    return output


def _render(
    source: ReportSource, pictures: SlicePictures, gallery: int, compared: Mapping[str, Any] | None
) -> str:
    """The page as text, with at most ``gallery`` slices."""
    assets = resources.files("ctmasknet.report") / "assets"
    names = ("report.css", "report.js", "zoom.js")
    style, *scripts = ((assets / name).read_text(encoding="utf-8").strip() for name in names)
    script = "\n".join(scripts)
    shown = _gallery(source, pictures, gallery)
    thresholds = threshold_data(source.rows, source.pooled, source.class_names, source.evaluation)
    table = units_table(source)
    levels = {
        name: level
        for name, level in (source.evaluation["levels"] if source.evaluation else {}).items()
        if level is not None
    }
    first_level = "slices"
    if "patients" in thresholds["levels"] and (not levels or "patients" in levels):
        first_level = "patients"
    normal = normal_index(source.class_names)
    values = {
        "title": f"Slice classifier: {source.dataset or source.folder.resolve().name}",
        "about": _about(source),
        "script": script,
        "script_sha256": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": style,
        "sections": _anchors(source, table, shown, compared),
        "comparison": compared and comparison_section(compared),
        "comparison_settings": compared and compared["settings"],
        "class_names": source.class_names,
        "pooling_name": source.pooling_name,
        "evaluation": source.evaluation,
        "levels": levels,
        "first_level": first_level,
        # The last class is the one most often asked for (covid); never normal
        "first_class": max(i for i in range(len(source.class_names)) if i != normal or i == 0),
        "threshold_data": thresholds,
        "thresholds": thresholds["thresholds"],
        "threshold_levels": list(thresholds["levels"]),
        "first_threshold": thresholds["thresholds"].index(0.5),
        "table": table,
        "burden": burden_section(source),
        "subgroups": subgroup_section(source),
        "series": source.series[:MAX_ROWS],
        "more_series": max(0, len(source.series) - MAX_ROWS),
        "problems": source.problems[:MAX_ROWS],
        "more_problems": max(0, len(source.problems) - MAX_ROWS),
        "predictions_name": source.predictions.name,
        "gallery": shown,
        "per_patient": PER_PATIENT,
        "seen": _first_pictures(shown, table),
        "record": json.dumps(source.record, indent=1, ensure_ascii=False) if source.record else "",
        "version": ctmasknet.__version__,
        **page_values(source, levels, first_level),
    }
    return rendered("report.html.j2", **values)


def _gallery(source: ReportSource, pictures: SlicePictures, count: int) -> list[dict[str, Any]]:
    groups = []
    seen = read_seen(source.listing) if count > 0 else {}
    every = list(choose_slices(source, count, seen))
    numbers = tracked(range(1, 1 + sum(len(chosen.rows) for chosen in every)), "pictures")
    for chosen in every:
        if source.evaluation and len(chosen.rows) < min(count, chosen.found):
            _LOGGER.info(
                "The gallery shows %d slices and not %d: of a patient, or a scan that names none, "
                "not more than %d, and of neighbours with one lesion the first",
                *(len(chosen.rows), count, PER_PATIENT),
            )
        items = []
        for row, number in zip(chosen.rows, numbers, strict=False):
            truth = None if row.label is None else source.class_names[row.label]
            pred = source.class_names[row.pred]
            items.append(
                {
                    "anchor": f"slice-{number}",
                    "row": row,
                    "heading": slice_heading(row.file, row.patient, row.scan, seen.get(row.file)),
                    "truth": truth,
                    "pred": pred,
                    "verdict": "" if truth is None else "right" if truth == pred else "wrong",
                    "scores": list(zip(source.class_names, row.scores, strict=True)),
                    "pictures": pictures.of(row),
                }
            )
        groups.append(
            {
                "heading": chosen.heading,
                "rule": chosen.rule,
                "found": chosen.found,
                # Three pictures beside each other take the width of the page
                "wide": any(len(item["pictures"]) > 2 for item in items),
                "slices": items,
            }
        )
    return groups


def _first_pictures(groups: Sequence[Mapping[str, Any]], table: UnitsTable) -> dict[str, str]:
    """Name in the table -> anchor of its first slice in the gallery."""
    first: dict[str, str] = {}
    for group in groups:
        for item in group["slices"]:
            row = item["row"]
            name = row.patient if table.kind == "patients" else row.file
            if name:
                first.setdefault(name, item["anchor"])
    return first


def _anchors(
    source: ReportSource, table: UnitsTable, gallery: Any, compared: Any
) -> list[tuple[str, str]]:
    """(anchor, title) of each section of the page."""
    found = [("summary", "At a glance")]
    if source.problems:
        found.append(("problems", "Problems of the input"))
    if source.evaluation:
        found.append(("detail", "Confusions, curves, calibration"))
    if subgroup_section(source):
        found.append(("subgroups", "By subgroup"))
    found.append(("threshold", "Move the threshold"))
    found.append(("patients", table.kind.capitalize()))
    if source.series:
        found.append(("series", "Several series of a study"))
    if source.burden:
        found.append(("burden", "Lesion burden"))
    if compared:
        found.append(("comparison", "Compared with other systems"))
    if gallery:
        found.append(("gallery", "Slices to look at"))
    return [*found, ("limits", "Limits"), ("origin", "Where the figures are from")]


def _about(source: ReportSource) -> str:
    patients = len(source.pooled["patients"])
    counted = f"{len(source.rows)} slices" + (f" of {patients} patients" if patients else "")
    # That of the run that made the predictions, where the record tells it from others
    dates = [
        entry["end"][:10]
        for entry in source.entries
        if isinstance(entry.get("end"), str)
        and source.dataset in (None, *dataset_names(entry, "test"))
    ]
    when = f", made {dates[-1]}" if dates else ""
    return f"Predictions for {counted}{when}; classes {', '.join(source.class_names)}."
