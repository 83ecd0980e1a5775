"""Which reconstruction of a study counts.

A study holds the same breath several times: through a lung and a soft-tissue kernel, thick and
thin, as maximum or mean over some slices. Their slices are all predicted, but a patient's class is
that of one of them, or the study's reconstructions would weigh by their number. The rule: no
projection over several slices (MIP, MinIP, average); then a lung kernel before an unknown one
before one for soft tissue; then the thinnest; then the most slices; then the first UID.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence

from ctmasknet.ct.scan import CTScan

#: Kernels by their makers' names: words, GE's BONE and EDGE, Philips' one letter, Siemens' B, Br,
#: Bl, I or J with 50 and above, Canon's FC50 and FC80 families.
_LUNG_KERNEL = re.compile(
    r"lung|bone|edge|^(l|d|e|y[abcde])$|^bl\d|^[bijq][a-z]?(5\d|[6-9]\d)|^fc(5\d|8\d)", re.I
)
_SOFT_KERNEL = re.compile(
    r"stnd|stand|soft|detail|mediast|abdom|^(a|b|c|sa)$|^[bijq][a-z]?[1-4]\d|^fc[0-4]\d", re.I
)
#: Words of a series description, looked at where the kernel says nothing.
_LUNG_WORDS = re.compile(r"lung|pulm|poumon|pulmon|hrct|parench", re.I)
_SOFT_WORDS = re.compile(r"mediast|soft|weichteil|abdom|vasc|\bst\b", re.I)
_PROJECTED = re.compile(
    r"^(mip|minip|max_?ip|min_?ip|maximum|minimum|mean|average|avg|aip|projection image)$", re.I
)
_PROJECTED_WORDS = re.compile(r"(?<![a-z])(mip|minip|aip|average|avg)(?![a-z])", re.I)
_KINDS = ("lung", "unknown", "soft-tissue")


@dataclass(frozen=True)
class Reconstruction:
    """How a series was made of its scan, as its header states it.

    Attributes:
        kernel: ConvolutionKernel, the first of several; "" where none is stated.
        thickness_mm: SliceThickness; None where none is stated.
        image_type: values of ImageType and FrameType.
        description: SeriesDescription.
        number: SeriesNumber; "" where none is stated.
    """

    kernel: str = ""
    thickness_mm: float | None = None
    image_type: tuple[str, ...] = ()
    description: str = ""
    number: str = ""

    @property
    def name(self) -> str:
        """What people call the series, such as ``series 3, Thorax 5.0 B70f``; "" where its header
        names it by UIDs alone."""
        words = f"series {self.number}" if self.number else "", self.description
        text = ", ".join(word for word in words if word)
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:80]

    @property
    def kind(self) -> str:
        """What its kernel, else its description is for: ``lung``, ``soft-tissue``, ``unknown``."""
        for text, lung, soft in (
            (self.kernel, _LUNG_KERNEL, _SOFT_KERNEL),
            (self.description, _LUNG_WORDS, _SOFT_WORDS),
        ):
            if lung.search(text):
                return "lung"
            if soft.search(text):
                return "soft-tissue"
        return "unknown"

    @property
    def is_projection(self) -> bool:
        """Whether each slice is a maximum, minimum or mean over several."""
        stated = any(_PROJECTED.match(value) for value in self.image_type)
        return stated or bool(_PROJECTED_WORDS.search(self.description))


def reconstruction_of(header: Dataset) -> Reconstruction:
    """What a data set states, itself or in its functional groups (the shared ones, else those of
    the first frame)."""
    holders = [header]
    for key in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in _first(header, key):
            inner = ("CTReconstructionSequence", "PixelMeasuresSequence")
            for one in (*inner, "CTImageFrameTypeSequence"):
                holders += _first(group, one)

    def stated(key: str) -> list[str]:
        for holder in holders:
            value = holder.get(key)
            if value not in (None, ""):
                values = value if isinstance(value, MultiValue | list) else [value]
                return [str(each).strip() for each in values]
        return []

    try:
        thickness = float(*stated("SliceThickness")[:1])
    except ValueError:
        thickness = 0.0
    return Reconstruction(
        kernel=next(iter(stated("ConvolutionKernel")), ""),
        thickness_mm=thickness if 0 < thickness < 1e3 else None,
        image_type=(*stated("ImageType"), *stated("FrameType")),
        description=" ".join(stated("SeriesDescription")),
        number=next(iter(stated("SeriesNumber")), ""),
    )


def _first(dataset: Dataset, key: str) -> list[Dataset]:
    value = dataset.get(key)
    return list(value[:1]) if isinstance(value, DicomSequence) else []


@dataclass(frozen=True)
class SeriesFacts:
    """What the choice among the series of a study needs to know of one scan; plain values.

    Attributes:
        study: (patient, StudyInstanceUID).
        series: SeriesInstanceUID.
        kind: see :attr:`Reconstruction.kind`.
        is_projection: see :attr:`Reconstruction.is_projection`.
        thickness_mm: stated, else the distance of its slices; None where neither is known.
        slices: how many.
        said: kernel and thickness in words.
    """

    study: tuple[str, str]
    series: str
    kind: str
    is_projection: bool
    thickness_mm: float | None
    slices: int
    said: str

    @classmethod
    def from_json(cls, stated: dict[str, Any] | None) -> SeriesFacts | None:
        """Of ``dataclasses.asdict``; None of None."""
        if stated is None:
            return None
        values = {field.name: stated[field.name] for field in fields(cls)}
        return cls(**{**values, "study": tuple(stated["study"])})


def series_name(scan: CTScan) -> str:
    """See :attr:`Reconstruction.name`; "" of what is no DICOM series."""
    about = getattr(scan.slices[0].source, "about", None) if scan.slices else None
    return about.name if isinstance(about, Reconstruction) else ""


def series_facts(scan: CTScan) -> SeriesFacts | None:
    """Of a DICOM series that names its study; None of anything else."""
    source = scan.slices[0].source
    about = getattr(source, "about", None)
    if scan.kind != "dicom" or about is None or not all(source.series[1:]):
        return None
    thickness = about.thickness_mm
    if thickness is None and scan.affine is not None and len(scan.slices) > 1:
        thickness = float(abs(scan.affine[2, 2]))
    kernel = f"{about.kind} kernel{f' ({about.kernel})' if about.kernel else ''}"
    size = "thickness unknown" if thickness is None else f"{thickness:g} mm"
    return SeriesFacts(
        study=source.series[:2],
        series=source.series[2],
        kind=about.kind,
        is_projection=about.is_projection,
        thickness_mm=thickness,
        slices=len(scan.slices),
        said=f"{kernel}, {size}" + ", a projection over several slices" * about.is_projection,
    )


def choose_reconstructions(scans: Iterable[SeriesFacts | None]) -> list[tuple[bool, str]]:
    """Which scans count, by the rule above, among those of the same patient and study.

    Args:
        scans: None of what belongs to no study with several series; it counts.

    Returns:
        of each whether it counts, and why in one sentence; "" where there was no choice. Scans of
        one series (unlike grids, or folders apart) count together.
    """
    scans = list(scans)
    studies: dict[tuple[str, str], dict[str, list[SeriesFacts]]] = {}
    for one in scans:
        if one is not None:
            studies.setdefault(one.study, {}).setdefault(one.series, []).append(one)
    best = {study: min(map(_largest, its.values()), key=_order) for study, its in studies.items()}
    choices = []
    for one in scans:
        if one is None or len(studies[one.study]) == 1:
            choices.append((True, ""))
            continue
        chosen, count = best[one.study], len(studies[one.study])
        counts = one.series == chosen.series
        if counts:
            reason = f"of the {count} series of its study it counts for the patient: {one.said}"
        else:
            reason = (
                f"does not count for the patient ({one.said}): of the {count} series of its study "
                f"{chosen.series} does ({chosen.said})"
            )
        choices.append((counts, reason))
    return choices


def _largest(of_series: Sequence[SeriesFacts]) -> SeriesFacts:
    return max(of_series, key=lambda one: one.slices)


def _order(one: SeriesFacts) -> tuple:
    thickness = float("inf") if one.thickness_mm is None else one.thickness_mm
    return one.is_projection, _KINDS.index(one.kind), thickness, -one.slices, one.series
