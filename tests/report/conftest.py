"""A run of 1,000 slices with validation and pictures, its report, and a browser to open it in."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.evaluation.lesions.burden_files import BURDEN_FORMAT
from ctmasknet.evaluation.predictions import write_predictions_csv
from ctmasknet.evaluation.report import evaluate_predictions
from ctmasknet.report import write_report
from tests.helpers.browser import browser  # noqa: F401
from tests.helpers.hostile_names import HOSTILE_PATIENT, HOSTILE_SLICE
from tests.helpers.small_world import SIDE, hu_volume, write_series


class _Page(HTMLParser):
    """Elements in order: (tag, attributes), the text of each, and tables by caption."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._caption: str | None = None
        self._rows: list[list[str]] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr" and self._caption is not None:
            self._rows.append([])
        elif tag in ("td", "th", "caption"):
            self._into = []

    def handle_endtag(self, tag):
        if tag in ("td", "th", "caption") and self._into is not None:
            cell = " ".join("".join(self._into).split())
            if tag == "caption":
                self._caption = cell
            else:
                self._rows[-1].append(cell)
            self._into = None
        elif tag == "table":
            self.tables[self._caption] = self._rows
            self._caption = None

    def handle_data(self, data):
        self.text += data
        if self._into is not None:
            self._into.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        """Attributes of all elements of a tag."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def parsed():
    """``parsed(html)``: its elements, text and tables."""
    return _Page


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, simulated_rows) -> Path:
    """OUTPUT_DIR of an evaluation of 1,000 slices, with validation, record and slices as files."""
    folder = tmp_path_factory.mktemp("run")
    rows = simulated_rows(220, seed=1)[:1000]
    # An error by far, of a patient of its own
    rows[-1] = replace(
        rows[-1],
        file=HOSTILE_SLICE,
        patient=HOSTILE_PATIENT,
        label=0,
        pred=2,
        logits=(-9.0, -9.0, 9.0),
        scores=tuple(expit((-9.0, -9.0, 9.0)).tolist()),
    )
    validation = simulated_rows(40, seed=2, prefix="v")
    inference = folder / "inference"
    for name, its in (("covidx_ct_test", rows), ("covidx_ct_val", validation)):
        write_predictions_csv(inference / name / "predictions.csv", its, IMAGE_CLASSES)
    training = {"train": [{"name": "covidx_ct_train"}], "val": [{"name": "covidx_ct_val"}]}
    tested = {"name": "covidx_ct_test", "images": 1000, "content_sha256": "c0ffee"}
    entries = [
        {"kind": "training", "datasets": training, "command": "python tools/train_net.py"},
        {
            "kind": "evaluation",
            "datasets": {"test": [tested]},
            "hardware": {"cpu": "abacus", "gpu": None},
        },
        {"kind": "evaluation", "datasets": {"test": [{"name": "covidx_ct_val"}]}},
    ]
    (folder / "run.json").write_text(json.dumps({"format": 1, "entries": entries}))
    evaluate_predictions(
        inference / "covidx_ct_test" / "predictions.csv",
        folder / "report",
        validation=inference / "covidx_ct_val" / "predictions.csv",
        n_boot=200,
    )
    rng = np.random.default_rng(0)
    for row in rows:
        if row.label != row.pred:
            # As hard to compress as a slice of a CT
            pixels = rng.normal(110, 25, (256, 256)).clip(0, 255).astype(np.uint8)
            (folder / "slices").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / "slices" / row.file)
    return folder


@pytest.fixture(scope="session")
def report_file(run_folder) -> Path:
    """The report of :func:`run_folder`."""
    options = {"images": run_folder / "slices"}
    return write_report(run_folder, run_folder / "report.html", **options)


@pytest.fixture(scope="session")
def unlabelled_folder(tmp_path_factory, simulated_rows) -> Path:
    """A prediction folder: no labels, no run.json; one patient is nameless."""
    folder = tmp_path_factory.mktemp("predicted")
    rows = [replace(row, label=None) for row in simulated_rows(12, seed=3)]
    rows = [replace(row, patient="", scan="") if row.patient == "0" else row for row in rows]
    write_predictions_csv(folder / "predictions.csv", rows, IMAGE_CLASSES)
    return folder


@pytest.fixture
def prediction(tmp_path):
    """A series of 4 slices, of which one has two lesions; its burden is stated, not measured."""
    from pycocotools import mask as coco_mask

    series = write_series(tmp_path / "ct", hu_volume(1, 4))
    files = [str(path) for path in sorted(series.iterdir())]
    names = {"patient": "P1", "scan": "1.2.3"}
    shape = {"height": SIDE, "width": SIDE}
    lines = [
        {
            "level": "slice",
            "file": file,
            **names,
            **shape,
            "spacing_mm": [0.7, 0.8],
            "position_mm": 2.5 * number,
            "pred": "covid",
            "scores": {"normal": 0.125, "covid": 0.875},
            "boxes": [],
        }
        for number, file in enumerate(files)
    ]
    scan = {"level": "scan", **names, "kind": "dicom", "slices": 4, "problems": ["a gap"]}
    scan |= {"pred": "covid", "scores": {"normal": 0.25, "covid": 0.75}, "cautions": ["a phantom"]}
    folder = tmp_path / "out"
    folder.mkdir()
    written = "".join(json.dumps(one) + "\n" for one in [*lines, scan])
    (folder / "predictions.jsonl").write_text(written)
    rle = coco_mask.frPyObjects([[2.0, 2.0, 8.0, 2.0, 8.0, 8.0]], SIDE, SIDE)[0]
    rle["counts"] = rle["counts"].decode()
    lesion = {"image_id": 2, "bbox": [2, 2, 6, 6], "area": 20, "iscrowd": 0, "segmentation": rle}
    lesions = [
        {"id": number, "category_id": kind, "score": score, **lesion}
        for number, (kind, score) in enumerate([(1, 0.9), (2, 0.9), (2, 0.5)], start=1)
    ]
    images = [{"id": n, "file_name": file, **shape} for n, file in enumerate(files, start=1)]
    categories = [{"id": 1, "name": "ggo"}, {"id": 2, "name": "other kind"}]
    document = {"images": images, "categories": categories, "annotations": lesions}
    (folder / "lesions.json").write_text(json.dumps(document))
    measured = {**names, "file": "", "slices": 4, "weighted_by": "mm3"}
    measured["percent"] = {"ggo": 1.25, "other kind": None, "any": 3.5}
    measured["ml"] = {"ggo": 10.5, "other kind": 2.25, "any": 12.75, "whole": 900.0}
    burden = {"format": BURDEN_FORMAT, "lesions": "lesions.json", "of": "lung"}
    burden |= {"classes": ["ggo", "other kind"], "outside_lung_px": 0, "cautions": []}
    burden |= {"slices": [], "scans": [measured], "patients": []}
    (folder / "burden").mkdir()
    (folder / "burden" / "burden.json").write_text(json.dumps(burden))
    return folder
