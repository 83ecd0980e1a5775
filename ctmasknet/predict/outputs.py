"""From finished shards to the files a prediction leaves: ``predictions.jsonl``,
``predictions.csv``, ``scans.csv``, ``patients.csv``, and ``lesions.json`` in COCO's format, which
``COCO(file)`` of pycocotools reads. One slice is in memory at a time; logits of all slices are held
for the patients, 4 bytes a slice and class.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ctmasknet.ct.appearance import GreyLevels
from ctmasknet.ct.dicom.reconstruction import SeriesFacts, choose_reconstructions
from ctmasknet.data.bad_slices import BadSlices
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.pooled_files import write_pooled_csv
from ctmasknet.evaluation.pooling import PooledPrediction
from ctmasknet.evaluation.predictions import SlicePrediction, write_predictions_csv
from ctmasknet.files import atomic_write, plain, writing
from ctmasknet.predict.manifest import REMEDY
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.results import ScanDoubts, line_form, numbers
from ctmasknet.predict.shards import Shards
from ctmasknet.schema import Form, anything, checked, listing, names_of, record, text, whole_from_0


def _write_coco(
    path: Path,
    slices: Callable[[], Iterator[dict[str, Any]]],
    lesion_classes: Sequence[str],
    cautions: Sequence[str],
) -> None:
    """Images, categories and annotations, ids from 1; written as it goes, for it may be large.

    Annotations have ``score``, so they also are COCO results. ``bbox`` is (x, y, width, height) px,
    ``segmentation`` an RLE; boxes without masks have none. ``slices`` gives the lines of
    :func:`ctmasknet.predict.results.slice_record` and is called twice.
    """
    info: dict[str, Any] = {
        "description": "lesions predicted by ctmasknet; research, not diagnosis"
    }
    if cautions:
        info["cautions"] = list(cautions)
    categories = [{"id": number, "name": name} for number, name in enumerate(lesion_classes, 1)]
    keys = ("height", "width", "patient", "scan", "spacing_mm", "position_mm")
    images = (
        {"id": number, "file_name": line["file"], **{key: line[key] for key in keys}}
        for number, line in enumerate(slices(), start=1)
    )
    with atomic_write(path) as stream:
        stream.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)}')
        for key, values in (("images", images), ("annotations", _lesions(slices()))):
            stream.write(f',\n"{key}": [')
            for number, value in enumerate(values):
                stream.write((",\n" if number else "\n") + json.dumps(value))
            stream.write("]")
        stream.write("}\n")


def _lesions(slices: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    count = 0
    for number, line in enumerate(slices, start=1):
        for lesion in line["lesions"]:
            count += 1
            x0, y0, x1, y1 = lesion["box_px"]
            found = {
                "id": count,
                "image_id": number,
                "category_id": lesion["class"] + 1,
                "bbox": numbers([x0, y0, x1 - x0, y1 - y0]),
                "area": (x1 - x0) * (y1 - y0),
                "score": lesion["score"],
                "iscrowd": 0,
            }
            if "rle" in lesion:
                rle = {"size": [line["height"], line["width"]], "counts": lesion["rle"]}
                found |= {"segmentation": rle, "area": int(coco_mask.area(rle))}
            yield found


#: Problems, and studies whose chosen reconstruction, are told on the terminal, at most.
MAX_SHOWN = 5
_SLICE_KEYS = ("file", "patient", "scan", "height", "width", "spacing_mm", "position_mm")


@dataclass
class Summary:
    """Counts of what was predicted; ``classes`` by level and class, ``slices_with`` by lesion.

    ``skipped`` slices and files could not be read. ``left_out`` files, of folders that were cut,
    are no axial CT. ``averaged`` says which models and looks are (see
    :func:`ctmasknet.modeling.averaged.averaging_text`). ``problems`` of scans are counted, and the
    first few shown. ``cautions`` have to be told with the results. ``reconstructions`` are the
    series that count for their patients where a study holds several, each with the reason.
    """

    slices: int = 0
    scans: int = 0
    patients: int = 0
    skipped: int = 0
    left_out: int = 0
    lesions: int = 0
    pooling: str = ""
    averaged: str = ""
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    slices_with: dict[str, int] = field(default_factory=dict)
    problems: int = 0
    shown_problems: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    reconstructions: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, stated: Any, path: Path) -> Summary:
        """Of ``dataclasses.asdict``; what an earlier version did not count has its default.

        Raises:
            CTMaskNetError: it is of another form; names ``path``, the file that states it.
        """
        what, remedy = "the state of a prediction", "choose another `output`"
        found = checked(path, stated, record({}, _SUMMARY_FORMS), what, remedy)
        return cls(**{name: value for name, value in found.items() if name in _SUMMARY_FORMS})

    @property
    def bad_share(self) -> float:
        """Share of slices and files that could not be read, 0..1."""
        return self.skipped / max(1, self.skipped + self.slices)


_SUMMARY_FORMS = {
    **dict.fromkeys(
        ("slices", "scans", "patients", "skipped", "left_out", "lesions", "problems"), whole_from_0
    ),
    **{"pooling": text, "averaged": text, "classes": names_of(names_of(whole_from_0))},
    **{"slices_with": names_of(whole_from_0)},
    **dict.fromkeys(("cautions", "reconstructions", "shown_problems"), listing(text)),
}


@dataclass
class _Group:
    """What is collected of a scan or patient; ``logits`` are those of all slices in a row."""

    logits: array = field(default_factory=lambda: array("f"))
    slices: int = 0
    scans: int = 0
    not_counted: int = 0
    with_lesion: Counter = field(default_factory=Counter)


class Outputs:
    """Writes every output from the shards, in the order of the inputs.

    Args:
        shards: of all processes; those not there yet are waited for.
        units: how many.
        output: the folder.
        predictor: of the run.
        score_threshold: a slice has a lesion when one scores more.
        averaged: which models and looks are, in words.
    """

    def __init__(
        self,
        shards: Shards,
        units: int,
        output: Path,
        predictor: CTPredictor,
        score_threshold: float,
        averaged: str = "",
    ):
        self._shards, self._units, self._output = shards, units, output
        self._image_classes = list(predictor.image_classes)
        self._lesion_classes = list(predictor.lesion_classes)
        self._box_classes = list(predictor.box_classes)
        self._cautions = list(predictor.all_cautions)
        self._expected_levels, self._sees_scans = predictor.expected_levels, predictor.sees_scans
        self._pooler, self._lesions = predictor.pooler, predictor.lesions
        self._threshold, self._averaged = score_threshold, averaged

    def write(self, bad: BadSlices) -> Summary:
        """Write all files, each whole or not at all.

        Args:
            bad: is told of the slices and files that could not be read.

        Raises:
            CTMaskNetError: no slice was found at all; a file cannot be written.
        """
        if not any(unit["scans"] or unit["bad"] for unit in self._found()):
            raise CTMaskNetError(
                "`input`: no CT slice was found in it; give folders that hold some"
            )
        series = [one.get("series") for unit in self._found() for one in unit["scans"]]
        self._choices = choose_reconstructions(map(SeriesFacts.from_json, series))
        with writing(self._output, REMEDY):
            pooled: dict[str, list[dict[str, Any]]] = {"scans": [], "patients": []}
            summary = self._write_jsonl(self._output / "predictions.jsonl", pooled)
            if self._image_classes:
                path = self._output / "predictions.csv"
                with_counts = not all(counts for counts, _ in self._choices)
                write_predictions_csv(
                    path, self._rows(), self._image_classes, with_counts=with_counts
                )
                for level, found in pooled.items():
                    self._write_pooled(level, found, with_counts)
            if self._lesions:
                path = self._output / "lesions.json"
                _write_coco(path, self._slice_lines, self._lesion_classes, self._cautions)
        if summary.skipped:
            self._tell(bad)
        bad.totals["inputs"] = summary.slices + summary.skipped
        return summary

    def _write_pooled(self, level: str, found: list[dict[str, Any]], with_counts: bool) -> None:
        """Write the table of scans or patients; those without a slice have no class."""
        named = [one for one in found if "pred" in one]
        items = [
            PooledPrediction(
                patient=one["patient"],
                scan=one.get("scan", ""),
                label=None,
                mixed=False,
                pred=self._image_classes.index(one["pred"]),
                scores=tuple(one["scores"].values()),
                slices=one["slices"],
            )
            for one in named
        ]
        counts = None
        if with_counts and level == "scans":
            counts = [one.get("counts", True) for one in named]
        label = self._pooler.label
        write_pooled_csv(self._output, level, items, self._image_classes, label, counts)

    def _write_jsonl(self, path: Path, pooled: dict[str, list[dict[str, Any]]]) -> Summary:
        """Write it; ``pooled`` is given its scans and patients."""
        pooling = self._pooler.label if self._pooler else ""
        summary = Summary(pooling=pooling, averaged=self._averaged, cautions=self._cautions)
        levels = ("slices", "scans", "patients") if self._pooler else ()
        counts = {level: Counter() for level in levels}
        patients: dict[str, _Group] = {}
        with_lesion: Counter = Counter()
        scans = pooled["scans"]
        with atomic_write(path) as stream:

            def write(value: dict[str, Any]) -> None:
                json.dump(plain(value), stream)
                stream.write("\n")

            # Once is enough: the check sums of what is read again hold
            lesion_classes = self._lesion_classes if self._lesions else ()
            form = line_form(self._image_classes, lesion_classes, self._box_classes)
            for scan, lines, (counts_for_patient, why) in self._scans(form):
                group, doubts = _Group(), ScanDoubts()
                skipped, extra = 0, {}
                no_volume: list[str] = []
                for line in lines:
                    if "bad" in line:
                        skipped += 1
                    elif "file" not in line:
                        extra = {"masks": line["masks"]}
                        no_volume += [p for p in line["problems"] if p not in no_volume]
                    else:
                        record = self._slice_object(line)
                        write(record)
                        # A run that began before slices were looked at has no levels
                        levels = line.get("grey_levels")
                        levels = None if levels is None else GreyLevels(*levels)
                        doubts.add(line["file"], line.get("problems", ()), levels)
                        seen = {
                            lesion["class"]
                            for lesion in line.get("lesions", ())
                            if lesion["score"] > self._threshold
                        }
                        owner = patients.setdefault(line["patient"], _Group())
                        for one in (group, owner) if counts_for_patient else (group,):
                            one.slices += 1
                            one.with_lesion.update(seen)
                            if "logits" in line:
                                one.logits.extend(line["logits"])
                        if "pred" in record:
                            counts["slices"][record["pred"]] += 1
                        with_lesion.update(seen)
                        summary.lesions += len(line.get("lesions", ()))
                shown = doubts.problems(self._expected_levels, self._sees_scans)
                problems = [*scan["problems"], *shown, *no_volume]
                if group.slices and counts_for_patient:
                    owner.scans += 1
                elif group.slices:
                    owner.not_counted += 1
                summary.slices += group.slices
                summary.skipped += skipped
                summary.problems += len(problems)
                called = " ".join(
                    filter(None, (scan["patient"], scan["series_name"] or scan["scan"]))
                )
                room = MAX_SHOWN - len(summary.shown_problems)
                summary.shown_problems += [f"{called}: {one}" for one in problems[:room]]
                about = {"skipped": skipped, "problems": problems, **extra}
                if why:
                    about |= {"counts": counts_for_patient, "reconstruction": why}
                    summary.reconstructions += [f"{called}: {why}"] * counts_for_patient
                names = {key: scan[key] for key in ("patient", "scan", "kind")}
                names |= {"series": scan["series_name"]} if scan["series_name"] else {}
                scans.append(self._pooled("scan", names, group, about, counts.get("scans")))
            for value in scans:
                write(value)
            for patient, group in patients.items():
                if patient:
                    names, about = {"patient": patient}, {"scans": group.scans}
                    if group.not_counted:
                        about["scans_not_counted"] = group.not_counted
                    found = self._pooled("patient", names, group, about, counts.get("patients"))
                    pooled["patients"].append(found)
                    write(found)
        summary.scans = len(scans)
        summary.patients = sum(bool(patient) for patient in patients)
        for unit in self._found():
            summary.skipped += len(unit["bad"])
            summary.left_out += unit["left_out"]
        summary.classes = {
            level: {name: found[name] for name in self._image_classes}
            for level, found in counts.items()
        }
        if self._lesions:
            summary.slices_with = self._by_lesion(with_lesion)
        return summary

    def _found(self) -> Iterator[dict[str, Any]]:
        """What was found in each unit, as soon as it is there."""
        return map(self._shards.unit, range(self._units))

    def _scans(
        self, form: Form = anything
    ) -> Iterator[tuple[dict[str, Any], Iterator[dict[str, Any]], tuple[bool, str]]]:
        """Every scan's description, lines, and whether and why it counts for its patient."""
        before = 0
        for number, unit in enumerate(self._found()):
            for index, lines in self._shards.scan_lines(number, form):
                yield unit["scans"][index], lines, self._choices[before + index]
            before += len(unit["scans"])

    def _slice_lines(self) -> Iterator[dict[str, Any]]:
        for _, lines, _ in self._scans():
            yield from (line for line in lines if "file" in line and "bad" not in line)

    def _slice_object(self, line: dict[str, Any]) -> dict[str, Any]:
        value = {key: line[key] for key in _SLICE_KEYS}
        if "logits" in line:
            value["pred"] = self._image_classes[line["pred"]]
            found = [key for key in ("logits", "scores", "calibrated_scores") if key in line]
            value |= {key: self._by_class(line[key]) for key in found}
        value["boxes"] = [
            {**box, "class": self._box_classes[box["class"]]} for box in line["boxes"]
        ]
        if "lesions" in line:
            value["lesions"] = len(line["lesions"])
        value |= {key: line[key] for key in ("overlay", "problems") if key in line}
        return {"level": "slice", **value}

    def _pooled(
        self,
        level: str,
        names: dict[str, str],
        group: _Group,
        about: dict[str, Any],
        counts: Counter | None,
    ) -> dict[str, Any]:
        value: dict[str, Any] = {"level": level, **names, "slices": group.slices, **about}
        if self._pooler is not None and group.logits:
            logits = np.asarray(group.logits).reshape(-1, len(self._image_classes))
            scores = self._pooler(logits)
            value["pooling"] = self._pooler.label
            value["pred"] = self._image_classes[int(np.argmax(scores))]
            value["scores"] = self._by_class(scores)
            calibrated = self._pooler.calibrated(f"{level}s", scores)
            if calibrated is not None:
                value["calibrated_scores"] = self._by_class(calibrated)
            counts[value["pred"]] += 1
        if self._cautions:
            value["cautions"] = self._cautions
        if self._lesions:
            value["slices_with"] = self._by_lesion(group.with_lesion)
        return value

    def _by_class(self, values: Sequence[float] | np.ndarray) -> dict[str, float]:
        return dict(zip(self._image_classes, numbers(values), strict=True))

    def _by_lesion(self, counts: Counter) -> dict[str, int]:
        return {name: counts[index] for index, name in enumerate(self._lesion_classes)}

    def _rows(self) -> Iterator[SlicePrediction]:
        keys = ("file", "patient", "scan", "pred", "logits", "scores")
        for _, lines, (counts, _) in self._scans():
            for line in lines:
                if "file" in line and "bad" not in line:
                    stated = {key: line[key] for key in keys}
                    yield SlicePrediction(label=None, counts=counts, **stated)

    def _tell(self, bad: BadSlices) -> None:
        for number, unit in enumerate(self._found()):
            for file, reason in unit["bad"]:
                bad.add(file, reason, "inputs")
            for _, lines in self._shards.scan_lines(number):
                for line in lines:
                    if "bad" in line:
                        bad.add(line["file"], line["bad"], "inputs")
