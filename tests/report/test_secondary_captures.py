"""Secondary captures of a prediction, read back by pydicom and highdicom."""

import json
import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.report import secondary_captures
from ctmasknet.report.secondary_captures import write_secondary_captures
from tests.helpers.small_world import SIDE

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (the extra seg)")


def test_captures_are_read_back_with_their_words_and_references(prediction, tmp_path):
    (path,) = write_secondary_captures(prediction, images=tmp_path / "ct")
    assert path.name == "P1_1.2.3_slice-0002.dcm"
    assert path.parent.name == "000001_P1_1.2.3"
    found, source = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "ct" / "001.dcm")
    assert found.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert (found.BurnedInAnnotation, found.PatientID, found.InstanceNumber) == ("YES", "P1", 2)
    assert found.StudyInstanceUID == source.StudyInstanceUID
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    (reference,) = found.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == source.SOPClassUID
    assert "not for diagnosis" in found.ImageComments and "a phantom." in found.ImageComments
    assert "not for diagnostic use" in found.SeriesDescription
    # As many times larger as its px are smaller
    scale = found.Rows // SIDE
    assert scale == 9 and np.allclose(found.PixelSpacing, [0.7 / 9, 0.8 / 9], rtol=1e-3)
    pixels = found.pixel_array
    assert pixels.shape == (SIDE * 9, SIDE * 9, 3)
    colored = np.ptp(pixels.astype(int), axis=2) > 40
    lesion = colored[2 * 9 : 9 * 9, 2 * 9 : 9 * 9]
    assert lesion.any() and not colored[12 * 9 : 55 * 9].any()
    assert colored[:15, :300].any(), "the words at the top are yellow"
    assert highdicom.imread(path).pixel_array.shape == pixels.shape
    first = path.read_bytes()
    write_secondary_captures(prediction, images=tmp_path)
    assert path.read_bytes() == first
    if checker := shutil.which("dciodvfy"):
        told = subprocess.run([checker, "-new", path], capture_output=True, text=True)
        assert "Error" not in told.stderr + told.stdout


def test_captures_are_bounded_and_old_ones_go(prediction, tmp_path, monkeypatch, caplog):
    document = json.loads((prediction / "lesions.json").read_text())
    more = {**document["annotations"][0], "id": 9, "image_id": 4, "area": 4}
    document["annotations"].append(more)
    (prediction / "lesions.json").write_text(json.dumps(document))
    old = prediction / "secondary_captures" / "000009_old" / "a.dcm"
    old.parent.mkdir(parents=True)
    old.touch()
    assert len(write_secondary_captures(prediction, images=tmp_path / "ct")) == 2
    assert not old.exists()
    monkeypatch.setattr(secondary_captures, "MOST_CAPTURES", 1)
    (path,) = write_secondary_captures(prediction, images=tmp_path / "ct")
    assert path.name.endswith("slice-0002.dcm")
    assert "captures of the 1 of its 2 slices with most lesion" in caplog.text
    assert sorted(one.name for one in prediction.iterdir() if "captures" in one.name) == [
        "secondary_captures"
    ]


def test_what_no_capture_can_be_made_of_is_one_line(prediction, tmp_path, monkeypatch):
    with pytest.raises(CTMaskNetError, match=r"000.dcm: not found; name the folder .*`images`"):
        write_secondary_captures(prediction)
    monkeypatch.setattr(secondary_captures, "_bytes_of", lambda _: 10**18)
    with pytest.raises(CTMaskNetError, match=r"secondary captures need about .* make room"):
        write_secondary_captures(prediction, images=tmp_path / "ct")
    (prediction / "lesions.json").unlink()
    with pytest.raises(CTMaskNetError, match="predict with `lesions`"):
        write_secondary_captures(prediction, images=tmp_path / "ct")
    assert not [one for one in prediction.iterdir() if "captures" in one.name]
