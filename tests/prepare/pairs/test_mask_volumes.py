"""Lesion sets from DICOM series and NIfTI volumes with masks in NIfTI, DICOM-SEG and PNG."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pycocotools import mask as rle

from ctmasknet.ct.scan import Window
from tests.helpers import ct_samples, seg_samples
from tests.helpers.running import run_tool

HU = ct_samples.volume(5)
NAMES = {1: "Lung", 2: "Ground glass opacity", 3: "Consolidation"}


def label_volume() -> np.ndarray:
    """(5, 40, 48): lungs everywhere, GGO in slices 1 to 3 (patient's right), consolidation in
    slice 3 (patient's left); feet and head slices hold nothing at all."""
    mask = np.zeros(HU.shape, np.uint8)
    mask[1:4, 12:28, 8:20] = mask[1:4, 12:28, 28:40] = 1
    mask[1:4, 14:26, 9:13] = 2
    mask[3, 20:26, 30:38] = 3
    return mask


MASK = label_volume()


def series(folder: Path, patient: str = "P1", hu: np.ndarray = HU, **given) -> Path:
    """A series of this patient, its UID made from the patient's number."""
    for index, plane in enumerate(hu):
        data = ct_samples.dicom(plane, index, **given)
        data.PatientID, data.SeriesInstanceUID = patient, f"{ct_samples.SERIES}.{patient[1:]}"
        data.SOPInstanceUID = f"{data.SeriesInstanceUID}.{index + 1}"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        ct_samples.save(data, folder / f"IM{len(hu) - index}.dcm")
    return folder


def volume(path: Path, values: np.ndarray, codes: str = "LPS", affine=None, **given) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = ct_samples.nifti(values, codes, **given)
    if affine is not None:
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
    nib.save(image, path)
    return path


@pytest.fixture
def prepare(repository, tmp_path):
    """Runs the tool on tmp_path/in/{image,mask}; returns its exit code."""

    def run(*words) -> int:
        fixed = ["--source", tmp_path / "in", "--output-root", tmp_path / "out", "--workers", "1"]
        fixed += ["--min-area-px", "10", "--name", "set"]
        return run_tool(repository, "datasets/prepare_cncb_lesions.py", *fixed, *words)

    return run


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "in" / "image", tmp_path / "in" / "mask"


@pytest.fixture
def document(tmp_path):
    def read(split="train", mask_type="both"):
        path = tmp_path / "out" / "set" / "annotations" / f"{mask_type}_{split}.json"
        return json.loads(path.read_text())

    return read


ALL = ["--split", "train:1"]
SOURCES = {
    "series, seg": lambda i, m: (
        series(i / "P1"),
        seg_samples.write_seg(i / "P1", MASK, NAMES, m / "any.dcm"),
    ),
    "turned series, nifti": lambda i, m: (
        series(i / "P1", transposed=True, flip_columns=True),
        volume(m / "P1.nii.gz", MASK, "RIA", dtype="u1"),
    ),
    "turned nifti, nifti": lambda i, m: (
        volume(i / "case.nii.gz", HU, "SAR"),
        volume(m / "case_mask.nii", MASK, "LAS", dtype="<f4"),
    ),
    "folders of nifti": lambda i, m: (
        volume(i / "P1" / "ct.nii", HU),
        volume(m / "P1" / "seg.nii", MASK),
    ),
    "series, png": lambda i, m: (series(i / "P1"), pictures(m / "P1")),
    "npy, npy": lambda i, m: (
        array(i / "case.npy", HU.transpose(2, 1, 0), axes="xyz"),
        array(m / "case_seg.npy", MASK.transpose(2, 1, 0)),
    ),
    "npz, npy turned": lambda i, m: (
        array(i / "case.npz", HU[::-1], axes="-zyx", spacing_mm=[5, 2, 1.5], array="ct"),
        array(m / "case_mask.npy", MASK.astype(float).transpose(1, 2, 0), axes="yxz"),
    ),
    "nifti, npy": lambda i, m: (
        volume(i / "case.nii.gz", HU, "RAS"),
        array(m / "case_seg.npy", MASK, axes="zyx"),
    ),
}


def array(path: Path, values: np.ndarray, **stated) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez_compressed(path, ct=values, about=np.zeros(3))
    else:
        np.save(path, values)
    if stated:
        Path(f"{path}.json").write_text(json.dumps(stated))


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for index, plane in enumerate(MASK):
        name = f"{index:04d}" if index % 2 else f"IM{len(MASK) - index}"
        Image.fromarray(plane).save(folder / f"{name}.png")


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_volume_and_mask_gives_the_same_set(
    name, prepare, folders, document, tmp_path
):
    SOURCES[name](*folders)
    patients = [] if "series" in name else ["--patients", "each-file"]
    assert prepare(*ALL, *patients) == 0
    found = document()
    assert found["info"]["window_hu"] == [-700, 1000]
    assert len(found["images"]) == 5
    assert len({image["patient"] for image in found["images"]}) == 1
    grey = Window().to_uint8(HU)
    labels = np.zeros_like(MASK)
    for index, image in enumerate(found["images"]):
        copy = tmp_path / "out" / "set" / "image" / image["file_name"]
        assert image["file_name"].endswith(f"/{index:04d}.png")
        np.testing.assert_array_equal(np.asarray(Image.open(copy)), grey[index])
    for item in found["annotations"]:
        inside = rle.decode(item["segmentation"]).astype(bool)
        labels[item["image_id"] - 1][inside] = item["category_id"] + 1
    np.testing.assert_array_equal(labels, np.where(MASK > 1, MASK, 0))
    # On the patient's right, so on the image's left.
    assert [a["bbox"][0] for a in found["annotations"] if a["category_id"] == 1] == [9, 9, 9]


def moved(**changes) -> np.ndarray:
    affine = ct_samples.AFFINE.copy()
    for place, value in changes.items():
        affine[int(place[1]), int(place[2])] = value
    return affine


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ ct_samples.AFFINE


DISAGREE = {
    "shape: 48 x 40 x 5 px and 48 x 40 x 4 px": (MASK[:4], None),
    r"spacing: \(1.500, 2.000, 5.000\) mm and \(1.700, 2.000, 5.000\) mm": (MASK, moved(a00=-1.7)),
    r"orientation \(columns differ by 2.0 degrees\): ": (MASK, turned(2)),
    r"place \(.*\): \(.*, 100.0\) mm and \(.*, 105.0\) mm": (MASK, moved(a23=105.0)),
}


@pytest.mark.parametrize("message", DISAGREE)
def test_volume_and_mask_that_disagree_give_both_values(message, prepare, folders, capfd, tmp_path):
    values, affine = DISAGREE[message]
    image = volume(folders[0] / "a.nii", HU)
    mask = volume(folders[1] / "a.nii", values, affine=affine)
    assert prepare(*ALL, "--patients", "each-file") == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"{image} and its mask {mask} disagree in {message}", error), error
    assert not (tmp_path / "out" / "set").exists()


def test_a_series_whose_slices_are_shifted_sideways_takes_no_mask_volume(prepare, folders, capfd):
    """On the grid through its first and last slice the mask would lie beside the lesions."""
    file = series(folders[0] / "a") / "IM3.dcm"
    data = pydicom.dcmread(file)
    data.ImagePositionPatient[0] += 12
    data.save_as(file)
    volume(folders[1] / "a.nii", MASK)
    assert prepare(*ALL) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "no even grid" in error and "shifted sideways against each other, by 12.0 mm" in error


def test_small_differences_are_no_disagreement(prepare, folders):
    volume(folders[0] / "a.nii", HU)
    volume(folders[1] / "a.nii", MASK, affine=moved(a00=-1.505, a23=100.2))
    assert prepare(*ALL, "--patients", "each-file") == 0


def test_segments_are_known_by_name_or_by_argument(prepare, folders, document, capfd):
    series(folders[0] / "P1")
    # Meaning of the code of "A": lesion. "Gray" says nothing, nor does its code.
    overlap = np.stack([MASK > 0, MASK == 2], axis=-1)
    seg_samples.write_seg(
        folders[0] / "P1", overlap, {1: "Gray", 2: "A"}, folders[1] / "P1" / "seg.dcm"
    )
    labels = ["--labels", "0:background,1:lung,5:lesion"]
    assert prepare(*ALL, *labels) == 2
    error = capfd.readouterr().err
    assert "segment 1 (label 'Gray', coded meaning 'Mass')" in error
    assert '--segment "Gray=LABEL"' in error
    assert prepare(*ALL, *labels, "--segment", "gray=lung") == 0
    # Lesion is painted over the lung that overlaps it.
    assert [item["area"] for item in document(mask_type="merge")["annotations"]] == [48, 48, 48]
    assert prepare(*ALL, "--segment", "1=lung") == 2
    assert "is lesion, but no mask value is labelled so" in capfd.readouterr().err


def test_a_seg_finds_its_series_by_reference_and_a_gap_in_it(prepare, folders, document):
    """Names cross on purpose; of P2's series a file is missing, which the SEG still covers."""
    for patient in ("P1", "P2"):
        series(folders[0] / patient, patient)
    seg_samples.write_seg(folders[0] / "P1", MASK, NAMES, folders[1] / "P2.dcm")
    seg_samples.write_seg(folders[0] / "P2", MASK * (MASK != 2), NAMES, folders[1] / "P1.dcm")
    (folders[0] / "P2" / "IM4.dcm").unlink()
    assert prepare("--split", "train:0.5,val:0.5") == 0
    images, classes = {}, {}
    for split in ("train", "val"):
        found = document(split)
        (patient,) = {image["patient"] for image in found["images"]}
        images[patient] = len(found["images"])
        classes[patient] = [item["category_id"] for item in found["annotations"]]
    assert images == {"P1": 5, "P2": 4}
    assert classes == {"P1": [1, 1, 1, 2], "P2": [2]}


def test_a_seg_of_another_series_is_refused_whatever_its_name(prepare, folders, capfd):
    """The other series lies on the same grid, so that nothing else would tell."""
    for patient in ("P1", "P2"):
        series(folders[0] / patient, patient)
    seg_samples.write_seg(folders[0] / "P1", MASK, NAMES, folders[1] / "P1.dcm")
    seg = seg_samples.write_seg(folders[0] / "P2", MASK, NAMES, folders[1] / "P2.dcm")
    data = pydicom.dcmread(seg)
    data.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    data.save_as(seg)
    assert prepare(*ALL) == 2
    error = capfd.readouterr().err
    assert f"{seg}: is the mask of the series 1.2.3, which is not among the volumes" in error


def test_names_of_a_segment_that_contradict_each_other(prepare, folders, document, capfd):
    series(folders[0] / "P1")
    seg = seg_samples.write_seg(folders[0] / "P1", MASK == 2, {1: "A"}, folders[1] / "P1.dcm")
    data = pydicom.dcmread(seg)
    for label, expected in (("Lung", None), ("A", None), ("GGO", [1, 1, 1])):
        data.SegmentSequence[0].SegmentLabel = label
        data.save_as(seg)
        assert prepare(*ALL) == (0 if expected else 2)
        if expected:
            assert [item["category_id"] for item in document()["annotations"]] == expected
        elif label == "Lung":
            error = capfd.readouterr().err
            assert "(label 'Lung', coded meaning 'Lesion') may be lesion or lung" in error


def test_what_is_in_no_segment_is_background(prepare, folders, document, capfd):
    series(folders[0] / "P1")
    seg_samples.write_seg(folders[0] / "P1", MASK, NAMES, folders[1] / "P1.dcm")
    assert prepare(*ALL, "--labels", "1:lung,2:ggo,3:consolidation") == 2
    assert "no mask value is labelled background" in capfd.readouterr().err
    assert prepare(*ALL, "--labels", "0:ggo,1:lung,3:consolidation,7:background") == 0
    assert (
        sum(item["area"] for item in document()["annotations"] if item["category_id"] == 1)
        == (MASK == 2).sum()
    )


def test_pictures_whose_names_may_mean_two_slices_are_refused(prepare, folders, capfd):
    """Files are numbered from the head, masks like the files or from the feet: who knows?"""
    series(folders[0] / "P1")
    folders[1].joinpath("P1").mkdir(parents=True)
    for index in range(5):
        (folders[0] / "P1" / f"IM{index + 1}.dcm").rename(folders[0] / "P1" / f"{index:04d}.dcm")
        Image.fromarray(MASK[4 - index]).save(folders[1] / "P1" / f"{index:04d}.png")
    assert prepare(*ALL) == 2
    error = capfd.readouterr().err
    assert "0000.png is its mask by its number from the feet, and 0004.png by its file" in error
    for index in (1, 2, 3, 4):
        (folders[1] / "P1" / f"{index:04d}.png").unlink()
    assert prepare(*ALL) == 2
    assert "0000.png: is the mask of" in capfd.readouterr().err


def numbered(folder: Path) -> None:
    folder.mkdir(parents=True)
    for index, plane in enumerate(MASK):
        Image.fromarray(plane).save(folder / f"{index:04d}.PNG")


def test_a_missing_slice_does_not_shift_numbered_pictures(prepare, folders, document, capfd):
    for patient in ("P1", "P2"):
        series(folders[0] / patient, patient)
        numbered(folders[1] / patient)
    bad = folders[0] / "P2" / "IM4.dcm"
    whole = bad.read_bytes()
    bad.unlink()
    assert prepare(*ALL) == 2
    spare = folders[1] / "P2" / "0004.PNG"
    assert f"{spare}: is the mask of no slice of {bad.parent}" in capfd.readouterr().err
    bad.write_bytes(whole[:300])
    skip = ["--bad", "skip", "--max-bad-share", "0.5"]
    assert prepare(*ALL, *skip) == 0
    assert {image["patient"] for image in document()["images"]} == {"P1"}
    for index in range(5):  # named as the files are, they cannot shift
        picture = folders[1] / "P2" / f"{index:04d}.PNG"
        picture.rename(picture.with_name(f"IM{5 - index}.png"))
    assert prepare(*ALL, *skip) == 0
    of_p2 = [image for image in document()["images"] if image["patient"] == "P2"]
    assert len(of_p2) == 4
    first = min(image["id"] for image in of_p2)
    lesions = [a["image_id"] - first for a in document()["annotations"] if a["image_id"] >= first]
    assert lesions == [1, 2, 2]  # slices 2 and 3; slice 1 with its GGO is the bad one
    (folders[1] / "P2" / "IM4.tif").write_bytes(b"")
    assert prepare(*ALL, *skip) == 0
    assert {image["patient"] for image in document()["images"]} == {"P1"}


def test_a_damaged_seg_is_named_in_one_line(prepare, folders, tmp_path, capfd):
    series(folders[0] / "P1")
    seg = seg_samples.write_seg(folders[0] / "P1", MASK, NAMES, folders[1] / "any.dcm")
    whole = seg.read_bytes()
    data = pydicom.dcmread(seg)
    for frame, z_mm in enumerate((0, 1e-3, 1e6)):
        group = data.PerFrameFunctionalGroupsSequence[frame]
        group.PlanePositionSequence[0].ImagePositionPatient = [-30, -40, z_mm]
    data.save_as(tmp_path / "wide.dcm")
    for content in (whole[:300], whole[: len(whole) // 2], (tmp_path / "wide.dcm").read_bytes()):
        seg.write_bytes(content)
        assert prepare(*ALL) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
        assert str(seg) in line, line
    assert not (tmp_path / "out" / "set").exists()


def test_who_the_patient_is(prepare, folders, document, tmp_path, capfd):
    for name in ("a", "b"):
        volume(folders[0] / f"{name}.nii", HU)
        volume(folders[1] / f"{name}.nii", MASK)
    assert prepare("--split", "train:0.5,val:0.5") == 2
    assert "a.nii: states no patient; give --patient-pattern" in capfd.readouterr().err
    groups = tmp_path / "groups.csv"
    groups.write_text("stem,patient\na,one\nb.nii,one\n")
    assert prepare(*ALL, "--groups", groups) == 0
    assert {image["patient"] for image in document()["images"]} == {"one"}


def test_lists_name_volumes(prepare, folders, document, tmp_path, capfd):
    for name in ("a", "b", "c"):
        volume(folders[0] / f"{name}.nii.gz", HU)
        volume(folders[1] / f"{name}.nii.gz", MASK)
    lists = {"train": "b.nii.gz\n", "val": "a\n"}
    words = ["--patients", "each-file"]
    for split, text in lists.items():
        (tmp_path / split).write_text(text)
        words += ["--list", f"{split}={tmp_path / split}"]
    assert prepare(*words) == 0
    assert "5 images are on no list" in capfd.readouterr().out
    assert document("train")["images"][0]["file_name"] == "b/0000.png"
    assert {image["patient"] for image in document("val")["images"]} == {"a"}
    (tmp_path / "val").write_text("d\n")
    assert prepare(*words) == 2
    assert f"{tmp_path / 'val'}:1: d names no volume" in capfd.readouterr().err


def test_which_slices_go_in(prepare, folders, document):
    volume(folders[0] / "a.nii", HU)
    volume(folders[1] / "a.nii", MASK)
    words = [*ALL, "--patients", "each-file"]

    def files():
        return [image["file_name"] for image in document()["images"]]

    assert prepare(*words, "--keep-empty", "0.5") == 0
    assert files() == ["a/0000.png", "a/0001.png", "a/0002.png", "a/0003.png"]
    assert prepare(*words, "--keep-empty", "0") == 0
    assert files() == ["a/0001.png", "a/0002.png", "a/0003.png"]
    assert prepare(*words, "--every", "2", "--window=40,400") == 0
    assert files() == ["a/0000.png", "a/0002.png", "a/0004.png"]
    assert document()["info"]["window_hu"] == [40, 400]


def test_copies_that_do_not_fit_on_the_disk_are_told(prepare, folders, capfd, monkeypatch):
    volume(folders[0] / "a.nii", HU)
    volume(folders[1] / "a.nii", MASK)
    words = [*ALL, "--patients", "each-file"]
    for free, code in ((HU.size * 0.2 - 1, 2), (HU.size * 0.2, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert prepare(*words) == code
    assert "the copies of its slices need about" in capfd.readouterr().err


def test_bad_volumes_are_left_out_and_listed(prepare, folders, document, tmp_path, capfd):
    for name in "abcd":
        volume(folders[0] / f"{name}.nii.gz", HU)
        volume(folders[1] / f"{name}.nii.gz", MASK)
    for file in (folders[0] / "b.nii.gz", folders[1] / "c.nii.gz"):
        file.write_bytes(file.read_bytes()[:-200])
    words = [*ALL, "--patients", "each-file"]
    assert prepare(*words) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {folders[0] / 'b.nii.gz'}: ")
    report = tmp_path / "out" / "set" / "bad_slices.json"
    assert prepare(*words, "--bad", "skip", "--max-bad-share", "0.4") == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "source: 2 of 4 files are bad (50.00 %), more than --max-bad-share 0.4" in error
    assert not (tmp_path / "out" / "set" / "annotations").exists()
    assert prepare(*words, "--bad", "skip", "--max-bad-share", "0.5") == 0
    assert {image["patient"] for image in document()["images"]} == {"a", "d"}
    found = json.loads(report.read_text())["sets"]["source"]
    assert found["bad"] == 2
    assert [Path(item["file"]).name for item in found["files"]] == ["b.nii.gz", "c.nii.gz"]
    assert str(folders[1] / "c.nii.gz") in found["files"][1]["reason"]
    # A list, too, may name what turns out to be bad.
    (tmp_path / "list").write_text("a\nb\nc\n")
    words = ["--list", f"train={tmp_path / 'list'}", *words[2:]]
    assert prepare(*words, "--bad", "skip", "--max-bad-share", "0.7") == 0
    assert {image["patient"] for image in document()["images"]} == {"a"}


def test_a_bad_picture_is_left_out_and_listed(prepare, folders, document, tmp_path, capfd):
    for folder in folders:
        folder.mkdir(parents=True)
    for patient in range(5):
        for folder, value in zip(folders, (7, 2), strict=True):
            Image.new("L", (30, 20), value).save(folder / f"{patient}_1.png")
    (folders[0] / "3_1.png").write_bytes(b"none")
    Image.new("L", (30, 20)).save(folders[0] / "5_1.png")
    Image.new("L", (30, 20)).save(folders[1] / "6_1.png")
    assert prepare(*ALL) == 2
    assert f"{folders[0] / '5_1.png'}: no mask of the same name" in capfd.readouterr().err
    assert prepare(*ALL, "--bad", "skip", "--max-bad-share", "0.4") == 2
    assert "3 of 7 files are bad" in capfd.readouterr().err
    (tmp_path / "list").write_text("0_1\n1_1\n2_1\n5_1\n6_1\n")
    lists = ["--list", f"train={tmp_path / 'list'}"]
    assert prepare(*lists, "--bad", "skip", "--max-bad-share", "0.4") == 0
    assert [image["patient"] for image in document()["images"]] == ["0", "1", "2"]
    (tmp_path / "other").write_text("5_1\n")
    (tmp_path / "list").write_text("0_1\n1_1\n2_1\n")
    lists += ["--list", f"val={tmp_path / 'other'}"]
    assert prepare(*lists, "--bad", "skip", "--max-bad-share", "0.5") == 2
    assert "no slice of split val can be used" in capfd.readouterr().err
    (folders[0] / "5_1.png").unlink()
    (folders[1] / "6_1.png").unlink()
    Image.new("L", (30, 21)).save(folders[1] / "4_1.png")
    assert prepare(*ALL, "--bad", "skip", "--max-bad-share", "0.4") == 0
    assert [image["patient"] for image in document()["images"]] == ["0", "1", "2"]
    found = json.loads((tmp_path / "out" / "set" / "bad_slices.json").read_text())
    reasons = [item["reason"] for item in found["sets"]["source"]["files"]]
    assert "unreadable" in reasons[0]
    assert "30 x 20 px" in reasons[1] and "30 x 21 px" in reasons[1]
    assert prepare(*ALL, "--bad", "skip", "--max-bad-share", "0.3") == 2
    assert "2 of 5 files are bad" in capfd.readouterr().err
