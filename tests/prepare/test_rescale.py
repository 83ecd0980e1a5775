"""Values that are not in HU become a set by a rescale, in both preparations."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.scan import Window
from tests.helpers import ct_samples
from tests.helpers.running import run_tool
from tests.prepare.small_sets import lesion_mask

HU = ct_samples.volume()
SEEN = Window().to_uint8(HU)
#: Option, stored values, grey levels of the copies, window that the set states.
KINDS = [("1,-1024", HU + 1024, SEEN, [-700, 1000]), ("grey", SEEN, SEEN, None)]


@pytest.fixture
def prepare(repository, tmp_path):
    def call(tool, *words):
        return run_tool(
            repository,
            f"datasets/prepare_{tool}.py",
            *(*words, "--output-root", tmp_path / "out", "--name", "set", "--workers", 1),
        )

    return call


@pytest.fixture
def document(tmp_path):
    def read(file):
        return json.loads((tmp_path / "out" / "set" / file).read_text())

    return read


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nib.save(ct_samples.nifti(values.astype(np.int16), "RAS"), path)
    else:
        Image.fromarray(values.astype(np.uint16)).save(path)


def classified(folder, values, kind):
    for name in ("normal", "covid"):
        for patient in range(2):
            stem = folder / name / f"{name[0]}{patient}"
            if kind == "volumes":
                save(stem.with_name(stem.name + ".nii.gz"), values)
            else:
                save(stem.with_suffix(".tif"), values[1])
    classes = [
        word for name in ("normal", "covid") for word in ("--class-folder", f"{name}={name}")
    ]
    return ["--images", folder, *classes, "--split", "train:0.5,test:0.5"]


@pytest.mark.parametrize("kind", ["volumes", "pictures"])
@pytest.mark.parametrize(("rescale", "values", "seen", "window"), KINDS)
def test_slices(kind, rescale, values, seen, window, tmp_path, prepare, document, capsys):
    given = classified(tmp_path / "raw", values, kind)
    assert prepare("covidx_ct", *given) == 2
    assert "--rescale" in capsys.readouterr().err
    assert prepare("covidx_ct", *given, "--rescale", rescale) == 0
    info = document("slices/train.json")["info"]
    assert info["window_hu"] == window
    assert info["rescale"] == (rescale if rescale == "grey" else [1, -1024])
    assert document("slices_summary.json")["info"] == info
    copies = sorted((tmp_path / "out" / "set" / "image").rglob("*.png"))
    assert len(copies) == (16 if kind == "volumes" else 4)
    for copy in copies:
        wanted = seen[int(copy.stem)] if kind == "volumes" else seen[1]
        np.testing.assert_array_equal(np.asarray(Image.open(copy)), wanted)


@pytest.mark.parametrize("kind", ["volumes", "pictures", "one folder"])
@pytest.mark.parametrize(("rescale", "values", "seen", "window"), KINDS)
def test_lesions(kind, rescale, values, seen, window, tmp_path, prepare, document, capsys):
    raw, masks = tmp_path / "image", tmp_path / ("image" if kind == "one folder" else "mask")
    mask = np.stack([lesion_mask(2)] * 4)
    for name in ("a1", "b2"):
        if kind == "pictures":
            save(raw / f"{name}.tif", values[1])
            (masks / "x").parent.mkdir(exist_ok=True)
            Image.fromarray(mask[0]).save(masks / f"{name}.png")
        else:
            save(raw / f"{name}_ct.nii.gz", values)
            save(masks / f"{name}_mask.nii.gz", mask)
    given = ["--images", raw, "--masks", masks, "--patients", "each-file", "--split", "train:1.0"]
    assert prepare("cncb_lesions", *given) == 2
    assert "--rescale" in capsys.readouterr().err
    assert prepare("cncb_lesions", *given, "--rescale", rescale) == 0
    found = document("annotations/both_train.json")
    assert found["info"]["window_hu"] == window
    assert found["info"]["rescale"] == (rescale if rescale == "grey" else [1, -1024])
    assert len(found["images"]) == (2 if kind == "pictures" else 8) and found["annotations"]
    for image in found["images"]:
        copy = tmp_path / "out" / "set" / "image" / image["file_name"]
        wanted = seen[1] if kind == "pictures" else seen[int(copy.stem)]
        np.testing.assert_array_equal(np.asarray(Image.open(copy)), wanted)


def test_a_volume_list(tmp_path, prepare, document):
    for name in "abcd":
        save(tmp_path / "raw" / f"{name}.nii.gz", HU + 1024)
    rows = [f"{name}.nii.gz,{'normal' if name in 'ab' else 'covid'}" for name in "abcd"]
    (tmp_path / "raw" / "list.csv").write_text("\n".join(["path,class", *rows]) + "\n")
    given = ["--volume-list", tmp_path / "raw" / "list.csv", "--classes", "normal,covid"]
    given += ["--split", "train:0.5,test:0.5", "--rescale", "1,-1024"]
    assert prepare("covidx_ct", *given) == 0
    assert len(document("slices/train.json")["slices"]) == 8


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rescale", "x"], "error: --rescale x: expected SLOPE,INTERCEPT"),
        (["--rescale", ""], "error: --rescale : expected SLOPE,INTERCEPT"),
        (["--rescale", "0,1"], "error: --rescale is (0.0, 1.0)"),
        (["--rescale", "1,-1024", "--grey-window", "20,110"], "--rescale for deeper ones"),
        (["--rescale", "grey", "--window=40,400"], "--window and --every are for DICOM and NIfTI"),
        (["--rescale", "1,-1024"], "an 8-bit picture, whose grey levels stay as they are"),
    ],
)
def test_bad_arguments(more, said, tmp_path, prepare, capsys):
    given = classified(tmp_path / "raw", HU + 1024, "pictures")
    if more == ["--rescale", "1,-1024"]:
        Image.fromarray(SEEN[0]).save(tmp_path / "raw" / "normal" / "n0.tif")
    assert prepare("covidx_ct", *given, *more) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out" / "set" / "slices").exists()


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd"])
def test_metaimage_and_nrrd(suffix, tmp_path, prepare, document):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    mask = np.stack([lesion_mask(2)] * 4)
    for folder, values in (("image", HU), ("mask", mask)):
        save(tmp_path / "nifti" / folder / "a1.nii.gz", values)
        (tmp_path / "itk" / folder).mkdir(parents=True)
        image = sitk.ReadImage(str(tmp_path / "nifti" / folder / "a1.nii.gz"))
        sitk.WriteImage(image, str(tmp_path / "itk" / folder / f"a1.{suffix}"))
    made = []
    for kind in ("nifti", "itk"):
        given = ["--source", tmp_path / kind, "--patients", "each-file", "--split", "train:1.0"]
        assert prepare("cncb_lesions", *given) == 0
        found = document("annotations/both_train.json")
        copies = sorted((tmp_path / "out" / "set" / "image").rglob("*.png"))
        made.append(
            (found["images"], found["annotations"], [np.asarray(Image.open(c)) for c in copies])
        )
    assert made[0][:2] == made[1][:2] and made[0][1]
    assert made[1][0][0]["file_name"] == "a1/0000.png"
    np.testing.assert_array_equal(made[0][2], made[1][2])
