"""Pictures of every kind that prediction takes go through both preparations alike."""

import json
import runpy
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

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


RAISED = [IndexError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError, KeyError]
RAISED += [struct.error, zlib.error, EOFError, AttributeError, ZeroDivisionError, AssertionError]
WAYS = {
    "slices": ("image", "covidx_ct", ["--verify"]),
    "slices in a grey window": ("image", "covidx_ct", ["--grey-window", "20,200"]),
    "lesions": ("image", "cncb_lesions", []),
    "lesions, turned": ("image", "cncb_lesions", ["--transpose"]),
    "masks": ("mask", "cncb_lesions", []),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_decoder_raises_is_a_bad_file(prepare, tmp_path, monkeypatch, capfd, way):
    folder, tool, words = WAYS[way]
    for name in ("1_1", "2_1", "3_1", "4_1"):
        for kind in ("image", "mask"):
            save(tmp_path / f"in/{kind}/{name}.png", Image.fromarray(GREY * (kind == "image")))
    if tool == "cncb_lesions":
        words = ["--source", tmp_path / "in", *words]
    else:
        classes = ["--class-folder", "a=image", "--class-folder", "b=mask"]
        words = ["--images", tmp_path / "in", *classes, *words]
    words += ["--split", "train:0.5,val:0.5"]
    load = ImageFile.ImageFile.load
    for error in RAISED:

        def broken(self, error=error):
            if str(self.filename).endswith(f"{folder}/2_1.png"):
                raise error("of a decoder")
            return load(self)

        monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
        assert prepare(tool, *words) == 2
        told = capfd.readouterr().err
        (line,) = (line for line in told.splitlines() if line.startswith("error: "))
        assert "2_1.png" in line and "Traceback" not in told
        assert prepare(tool, *words, "--bad", "skip", "--max-bad-share", "0.25") == 0
        report = json.loads((tmp_path / "root/made/bad_slices.json").read_text())
        (bad,) = report["sets"]["source"]["files"]
        assert bad["file"].endswith("image/2_1.png") and "of a decoder" in bad["reason"]
