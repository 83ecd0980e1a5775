"""A rescale on the command line: used, recorded, and compared when a run goes on."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.scan import Window
from ctmasknet.predict import CTPredictor
from ctmasknet.report.pictures import SliceFiles, recorded_axes, recorded_rescale, recorded_window
from ctmasknet.report.source import read_run
from tests.helpers.running import run_tool
from tests.helpers.small_world import hu_volume, words

#: (slices, H, W)
HU = hu_volume(1, 2)


@pytest.fixture
def stored(tmp_path):
    """HU + 1024 as pictures of 16 bits and as a volume, and the volume in HU."""
    values = (HU + 1024).clip(0).astype(np.int16)
    for folder in ("deep", "volume", "hu"):
        (tmp_path / folder).mkdir()
    for index, plane in enumerate(values):
        Image.fromarray(plane.astype(np.uint16)).save(tmp_path / "deep" / f"{index}.tif")
    affine = np.diag([-1.0, -1, 2, 1])
    for name, each in (("volume", values), ("hu", values - 1024)):
        image = nibabel.Nifti1Image(each.transpose(2, 1, 0), affine)
        nibabel.save(image, tmp_path / name / "a.nii.gz")
    return tmp_path


def logits(output):
    lines = map(json.loads, (output / "predictions.jsonl").read_text().splitlines())
    return [line["logits"] for line in lines if line["level"] == "slice"]


def test_predict(classifier, stored, tool):
    outputs = [stored / f"out_{name}" for name in ("hu", "volume", "deep")]
    for output in outputs:
        rescale = [] if output.name == "out_hu" else ["--rescale", "1,-1024"]
        source = stored / output.name.removeprefix("out_")
        assert tool(*words(classifier, [source], output, *rescale))[0] == 0
    assert len(logits(outputs[0])) == 2
    assert logits(outputs[0]) == logits(outputs[1]) == logits(outputs[2])
    (entry,) = read_run(outputs[2])[1]
    assert entry["settings"]["options"]["rescale"] == [1, -1024]
    assert "--rescale 1,-1024" in entry["command"]

    # Another is another prediction; the same goes on
    for other in ([], ["--rescale", "1,-1000"], ["--rescale", "grey"]):
        code, said = tool(*words(classifier, [stored / "deep"], outputs[2], "--resume", *other))
        assert code == 2 and "of other options" in said
    same = ["--resume", "--rescale", "1.0,-1024"]
    assert tool(*words(classifier, [stored / "deep"], outputs[2], *same))[0] == 0

    # The report finds the slice as it was seen
    seen = recorded_window([entry]), outputs[2], recorded_rescale([entry])
    files = SliceFiles(None, stored, *seen)
    hu_files = SliceFiles(None, stored, recorded_window([entry]))
    for index in range(2):
        deep = files.find(str(stored / "deep" / f"{index}.tif")).pixels
        wanted = hu_files.find(f"{stored / 'hu' / 'a.nii.gz'}#{index:04d}").pixels
        np.testing.assert_array_equal(deep, wanted)


def test_in_python(classifier, stored):
    predictor = CTPredictor(classifier.cfg)
    (scan,) = predictor([stored / "volume"], rescale=(1, -1024))
    (in_hu,) = predictor([stored / "hu"])
    np.testing.assert_array_equal(scan.slices[0].logits, in_hu.slices[0].logits)


@pytest.mark.parametrize("name", ["visualize", "explain"])
def test_pictures_of_slices(name, repository, classifier, stored, capsys):
    def run(source, *more):
        given = ["--config-file", classifier.config, "--weights", classifier.weights]
        given += ["--input", stored / source, "--output", stored / f"out_{source}", *more]
        return run_tool(repository, f"tools/{name}.py", *given)

    assert run("deep") == 2
    assert "--rescale SLOPE,INTERCEPT" in capsys.readouterr().err
    assert run("deep", "--rescale", "1,-1024") == 0 == run("hu")
    drawn = [sorted((stored / f"out_{each}").rglob("*0*.png")) for each in ("deep", "hu")]
    assert len(drawn[0]) == len(drawn[1]) > 0
    assert run("deep", "--rescale", "1") == 2
    assert "error: --rescale 1: expected SLOPE,INTERCEPT" in capsys.readouterr().err


def test_a_wrong_one_is_told_before_weights_are_read(classifier, stored, tool):
    code, said = tool(*words(classifier, [stored / "deep"], stored / "out", "--rescale", "0,1"))
    assert code == 2 and said.startswith("error: --rescale") and not (stored / "out").exists()


def test_arrays(classifier, stored, tool):
    """As the NIfTI volume they were, by an argument and by what is stated beside them."""
    for name, values in (("npy", HU[::-1]), ("flat", HU)):
        (stored / name).mkdir()
        for index, each in enumerate([values] if name == "npy" else values):
            np.save(stored / name / f"{index}.npy", each.astype(np.float32))
    assert tool(*words(classifier, [stored / "hu"], stored / "out"))[0] == 0
    code, said = tool(*words(classifier, [stored / "npy"], stored / "out_2"))
    assert code == 2 and "state the order with --axes" in said
    axes = "--axes=-zyx"
    assert tool(*words(classifier, [stored / "npy"], stored / "out_npy", axes))[0] == 0
    assert tool(*words(classifier, [stored / "flat"], stored / "out_flat"))[0] == 0
    assert logits(stored / "out_npy") == logits(stored / "out") == logits(stored / "out_flat")
    code, said = tool(*words(classifier, [stored / "npy"], stored / "out_npy", "--resume"))
    assert code == 2 and "of other options" in said
    (entry,) = read_run(stored / "out_npy")[1]
    seen = recorded_window([entry]), stored / "out_npy", None, recorded_axes([entry])
    files = SliceFiles(None, stored, *seen)
    shown = files.find(f"{stored / 'npy' / '0.npy'}#0001").pixels
    np.testing.assert_array_equal(shown[..., 0], Window().to_uint8(HU[0]))
    code, said = tool(*words(classifier, [stored / "npy"], stored / "out_3", "--axes", "zy"))
    assert code == 2 and said.startswith("error: --axes 'zy': expected")


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_metaimage_and_nrrd(suffix, classifier, stored, tool):
    """As the NIfTI volume they were, with masks that lie upright."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    image = sitk.ReadImage(str(stored / "hu" / "a.nii.gz"))
    (stored / "itk").mkdir()
    sitk.WriteImage(image, str(stored / "itk" / f"a.{suffix}"))
    for name in ("hu", "itk"):
        given = words(classifier, [stored / name], stored / f"out_{name}", "--masks", "nifti")
        assert tool(*given)[0] == 0
    assert logits(stored / "out_hu") == logits(stored / "out_itk")
    (mask,) = (stored / "out_itk" / "masks").glob("*.nii.gz")
    image = nibabel.load(mask)
    assert image.shape == HU.shape[::-1] and nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
