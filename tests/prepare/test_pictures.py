"""Pictures of every kind that prediction takes go through both preparations alike."""

import json
import runpy

import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window

GREY = (np.arange(40 * 48).reshape(40, 48) % 251).astype(np.uint8)
RGB = Image.merge("RGB", [Image.fromarray(GREY)] * 3)
TAKEN = {
    "CMYK": ("jpg", RGB.convert("CMYK")),
    "CMYK TIFF": ("tif", RGB.convert("CMYK")),
    "YCbCr": ("tif", RGB.convert("YCbCr")),
    "BMP": ("bmp", Image.fromarray(GREY)),
    "grey": ("png", Image.fromarray(GREY)),
}


@pytest.fixture
def prepare(repository, tmp_path):
    """Runs one of the two tools below a root in the test's folder; returns its exit code."""

    def run(tool, *arguments):
        main = runpy.run_path(str(repository / "datasets" / f"prepare_{tool}.py"))["main"]
        fixed = ["--output-root", tmp_path / "root", "--workers", 1, "--name", "made"]
        return main([str(argument) for argument in (*arguments, *fixed)])

    return run


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.mark.parametrize("kind", TAKEN)
def test_lesion_slices(prepare, tmp_path, kind):
    ending, picture = TAKEN[kind]
    mask = np.zeros(GREY.shape, np.uint8)
    mask[5:20, 5:20] = 2
    for name in ("1_1", "2_1"):
        save(tmp_path / f"in/image/{name}.{ending}", picture)
        save(tmp_path / f"in/mask/{name}.png", Image.fromarray(mask))
    # Flipped, so that copies of the pictures are written.
    assert prepare("cncb_lesions", "--source", tmp_path / "in", "--flip", "vertical") == 0
    made = tmp_path / "root/made"
    documents = [json.loads(path.read_text()) for path in made.glob("annotations/both_*.json")]
    assert sum(len(document["images"]) for document in documents) == 2
    (scan, *_) = read_scans([tmp_path / f"in/image/1_1.{ending}"])
    with Image.open(next(made.rglob("1_1.png"))) as copy:
        found = np.asarray(copy.convert("RGB"))
    seen = scan.slices[0].pixels(Window())
    seen = seen if seen.ndim == 3 else np.repeat(seen[..., None], 3, axis=2)
    np.testing.assert_array_equal(found, seen[::-1])


@pytest.mark.parametrize("kind", TAKEN)
def test_classified_slices(prepare, tmp_path, kind):
    ending, picture = TAKEN[kind]
    for name in ("well/1", "well/2", "ill/3", "ill/4"):
        save(tmp_path / f"in/{name}.{ending}", picture)
    arguments = ["--images", tmp_path / "in", "--split", "train:0.5,test:0.5", "--verify"]
    arguments += ["--class-folder", "normal=well", "--class-folder", "covid=ill"]
    assert prepare("covidx_ct", *arguments) == 0
    documents = [json.loads(path.read_text()) for path in tmp_path.glob("root/made/slices/*.json")]
    assert sum(len(document["slices"]) for document in documents) == 4
