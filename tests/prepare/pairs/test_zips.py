"""Images and masks in zips, as the folders that they were made of."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.report.pictures import SliceFiles
from tests.prepare.pairs import test_mask_volumes as label_samples
from tests.prepare.small_sets import lesion_mask, read, tree, write_slice

EACH = ("--split", "val:1", "--min-area-px", "10")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, which is to be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def zipped(folder: Path) -> Path:
    """The folder as a zip beside it, which takes its place."""
    path = Path(shutil.make_archive(str(folder), "zip", folder))
    shutil.rmtree(folder)
    return path


def documents(tmp_path):
    document = read(tmp_path, "both_val.json")
    files = [one["file_name"] for one in document["images"]]
    found = [(one["image_id"], one["category_id"], one["bbox"]) for one in document["annotations"]]
    return files, found


@pytest.mark.parametrize("deep", [False, True])
def test_a_zip_a_study(prepare, tmp_path, temporary, deep):
    images, masks = tmp_path / "s" / "image", tmp_path / "s" / "mask"
    for patient in ("P1", "P2"):
        label_samples.series(images / patient / ("dicom/1" if deep else ""), patient)
        name = "labels.nii.gz" if deep else f"{patient}_seg.nii.gz"
        label_samples.volume(masks / f"{patient}_seg" / name, label_samples.MASK)
        zipped(images / patient), zipped(masks / f"{patient}_seg")
    assert prepare("--source", tmp_path / "s", *EACH) == 0
    files, found = documents(tmp_path)
    below = "P1.zip/dicom/1" if deep else "P1.zip"
    assert files[:5] == [f"{below}/{index:04d}.png" for index in range(5)] and len(files) == 10
    assert [(image, category) for image, category, _ in found[:4]] == [
        (2, 1),
        (3, 1),
        (4, 1),
        (4, 2),
    ]
    copy = tmp_path / "root" / "cncb_lesions" / "image" / files[1]
    wanted = Window().to_uint8(label_samples.HU[1])
    np.testing.assert_array_equal(np.asarray(Image.open(copy)), wanted)


@pytest.mark.parametrize("below", ["", "study"])
def test_one_zip_of_pictures_is_copied(prepare, tmp_path, temporary, below):
    home = tmp_path / "raw" / below
    for index in range(3):
        write_slice(home / "image", home / "mask", f"7_{index}", lesion_mask(index), ".png")
    wanted = np.asarray(Image.open(home / "image" / "7_1.png"))
    source = zipped(tmp_path / "raw")
    assert prepare("--source", source / below, "--split", "val:1") == 0
    files, found = documents(tmp_path)
    assert (files, [one[:2] for one in found]) == (
        ["7_0.png", "7_1.png", "7_2.png"],
        [(2, 1), (3, 1), (3, 2)],
    )
    info = read(tmp_path, "both_val.json")["info"]
    assert info["image_root"] == "image"
    home = tmp_path / "root" / "cncb_lesions" / "image"
    np.testing.assert_array_equal(np.asarray(Image.open(home / files[1])), wanted)


def test_image_and_mask_in_one_zip_a_study(prepare, tmp_path, temporary):
    for name in ("a", "c"):
        for index in range(2):
            write_slice(
                *(tmp_path / "s" / name / each for each in ("ct", "seg")),
                *(f"{index}", lesion_mask(1), ".png"),
            )
        zipped(tmp_path / "s" / name)
    both = ("--images", tmp_path / "s", "--masks", tmp_path / "s", "--split", "val:1")
    pairs = "{case}.zip/ct/{n}.png={case}.zip/seg/{n}.png"
    assert prepare(*both, "--pairs", pairs, "--patient-pattern", "(?P<patient>[^/]+)[.]zip") == 0
    files, found = documents(tmp_path)
    assert files == [f"{case}.zip/ct/{n}.png" for case in "ac" for n in range(2)]
    assert {one["patient"] for one in read(tmp_path, "both_val.json")["images"]} == {"a", "c"}
    assert len(found) == 4


def test_the_zip_of_a_patient_is_called_as_its_folder(prepare, tmp_path, temporary):
    """Else patients would not be the same in a set of folders."""
    for patient in (110, 111):
        home = [tmp_path / "s" / kind / f"{patient}" for kind in ("image", "mask")]
        write_slice(*home, "104", lesion_mask(1), ".png")
        list(map(zipped, home))
    assert prepare("--source", tmp_path / "s", "--split", "val:1") == 0
    rule = "--patient-pattern", "^(?P<patient>[^/]+)/"
    assert prepare("--source", tmp_path / "s", "--split", "val:1", *rule, "--name", "other") == 0
    for name in ("cncb_lesions", "other"):
        text = (tmp_path / "root" / name / "annotations" / "both_val.json").read_text()
        assert [one["patient"] for one in json.loads(text)["images"]] == ["110", "111"], name


def test_errors_name_what_the_user_has(prepare, tmp_path, temporary, capfd, caplog):
    images, masks = tmp_path / "s" / "image", tmp_path / "s" / "mask"
    for patient in ("P1", "P2"):
        label_samples.series(images / patient, patient)
        label_samples.volume(masks / patient / "seg.nii.gz", label_samples.MASK)
    (masks / "P2" / "seg.nii.gz").write_bytes(b"\x1f\x8b damaged")
    (images / "P1" / "notes.txt").write_text("x")
    for folder in (images, masks):
        zipped(folder / "P1"), zipped(folder / "P2")
    assert prepare("--source", tmp_path / "s", *EACH) == 2
    said = capfd.readouterr().err
    assert f"error: {masks}/P2.zip/seg.nii.gz: damaged" in said and str(temporary) not in said
    assert f"{images}: 1 files left out, such as {images}/P1.zip/notes.txt" in caplog.text
    assert tree(tmp_path / "root") == []
    skip = ("--bad", "skip", "--max-bad-share", "0.9")
    assert prepare("--source", tmp_path / "s", *EACH, *skip) == 0
    bad = (tmp_path / "root" / "cncb_lesions" / "bad_slices.json").read_text()
    assert str(temporary) not in bad and f"{masks}/P2.zip/seg.nii.gz" in json.dumps(json.loads(bad))
    assert len(documents(tmp_path)[0]) == 5
    (images / "P1.zip").write_bytes((images / "P1.zip").read_bytes()[:-40])
    assert prepare("--source", tmp_path / "s", *EACH) == 2
    assert f"error: {images}/P1.zip: damaged" in capfd.readouterr().err
    assert prepare("--source", images / "P2.zip", *EACH) == 2
    assert "P2.zip/image (or images): no such folder" in capfd.readouterr().err


def test_the_report_shows_slices_in_a_zip(tmp_path):
    label_samples.series(tmp_path / "in" / "series")
    path = zipped(tmp_path / "in")
    files = SliceFiles(images=tmp_path, window=Window())
    (scan,) = read_scans([path])
    for one, plane in zip(scan.slices, label_samples.HU, strict=True):
        np.testing.assert_array_equal(files.find(one.name).pixels[..., 0], Window().to_uint8(plane))
    assert files.find(f"{path}/series/IM9.dcm") is None
    (tmp_path / "other").mkdir()
    elsewhere = SliceFiles(images=tmp_path / "other")
    assert elsewhere.find(scan.slices[0].name) is None
    assert elsewhere.elsewhere == {scan.slices[0].name}
