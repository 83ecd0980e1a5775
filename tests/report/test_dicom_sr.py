"""Measurement reports of a prediction: their figures are those of the burden."""

import json

import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.burden_files import BURDEN_FORMAT
from ctmasknet.report.dicom_sr import write_structured_reports
from tests.helpers.small_world import SIDE, hu_volume, write_series

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (the extra seg)")
RLE = {"size": [SIDE, SIDE], "counts": "0d1"}


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


def figures(path):
    """(label, meaning of the measurement, unit) -> value."""
    report = highdicom.sr.srread(path)
    groups = report.content.get_image_measurement_groups()
    return {
        (group.tracking_identifier, one.name.meaning, one.unit.value): one.value
        for group in groups
        for one in group.get_measurements()
    }


def test_volumes_shares_and_scores_are_read_back(prediction):
    (path,) = write_structured_reports(prediction, images=prediction.parent / "ct")
    share = "Share of the lung taken up by the lesion"
    score = "Score of the class, 0 to 1"
    assert figures(path) == {
        ("ggo", "Volume", "mL"): 10.5,
        ("ggo", share, "%"): 1.25,
        ("ggo", "Slices with the lesion", "1"): 1,
        ("other kind", "Volume", "mL"): 2.25,
        ("other kind", "Slices with the lesion", "1"): 1,
        ("any lesion", "Volume", "mL"): 12.75,
        ("any lesion", share, "%"): 3.5,
        ("any lesion", "Slices with the lesion", "1"): 1,
        ("class normal", score, "1"): 0.25,
        ("class covid", score, "1"): 0.75,
    }
    report = highdicom.sr.srread(path)
    assert (report.PatientID, report.VerificationFlag, report.CompletionFlag) == (
        *("P1", "UNVERIFIED", "PARTIAL"),
    )
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == 4
    comment = [one for one in report.ContentSequence if one.ValueType == "TEXT"][-1]
    assert comment.TextValue.endswith("not for diagnosis. a phantom. a gap.")


def test_the_same_prediction_gives_the_same_report(prediction):
    (path,) = write_structured_reports(prediction, images=prediction.parent)
    first = path.read_bytes()
    write_structured_reports(prediction, images=prediction.parent)
    assert path.read_bytes() == first


def test_a_series_without_a_report_is_told_and_an_old_report_goes(prediction, caplog):
    lost = (prediction / "predictions.jsonl").read_text().replace(".dcm", "_lost.dcm")
    with (prediction / "predictions.jsonl").open("a") as stream:
        stream.write(lost.replace("1.2.3", "4.5.6"))
    (prediction / "sr").mkdir()
    (prediction / "sr" / "000007_old.dcm").touch()
    burden = json.loads((prediction / "burden" / "burden.json").read_text())
    burden["scans"] *= 2
    burden["scans"][1] = {**burden["scans"][1], "scan": "4.5.6"}
    (prediction / "burden" / "burden.json").write_text(json.dumps(burden))
    (path,) = write_structured_reports(prediction, images=prediction.parent)
    assert list((prediction / "sr").iterdir()) == [path]
    assert "1 series have no report" in caplog.text and "_lost.dcm: not found" in caplog.text


def test_what_no_report_can_be_made_of_is_one_line(prediction):
    with pytest.raises(CTMaskNetError, match=r"000.dcm: not found; name the folder .*`images`"):
        write_structured_reports(prediction)
    (prediction / "burden" / "burden.json").unlink()
    with pytest.raises(CTMaskNetError, match="predict with `burden`"):
        write_structured_reports(prediction, images=prediction.parent)
    assert not (prediction / "sr").exists()
