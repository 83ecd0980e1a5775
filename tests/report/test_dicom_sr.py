"""Measurement reports of a prediction: their figures are those of the burden."""

import json

import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.report.dicom_sr import write_structured_reports
from tests.helpers.small_world import SIDE

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (the extra seg)")
RLE = {"size": [SIDE, SIDE], "counts": "0d1"}


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
