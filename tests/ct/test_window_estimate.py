"""Windows told from grey levels, of pictures made through known ones."""

import re

import nibabel
import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.appearance import GreyLevels
from ctmasknet.ct.scan import Window
from ctmasknet.ct.window_estimate import estimate_window
from tests.ct.test_appearance import ellipse
from tests.helpers.running import run_tool


def write_pictures(folder, window, count=4, side=256):
    """Of one chest in HU: air, fat around muscle, lungs, a spine; with noise."""
    folder.mkdir(parents=True, exist_ok=True)
    hu = np.full((side, side), -1000.0)
    hu[ellipse(side, 0.5, 0.5, 0.38, 0.47)] = -105
    hu[ellipse(side, 0.5, 0.5, 0.3, 0.4)] = 45
    for column in (0.3, 0.7):
        hu[ellipse(side, 0.5, column, 0.2, 0.12)] = -860
    for index in range(count):
        noisy = hu + np.random.default_rng(index).normal(0, 15, hu.shape)
        Image.fromarray(window.to_uint8(noisy)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def measured(repository, capsys):
    """Exit code, and lines of both streams, of the tool."""

    def call(*words):
        code = run_tool(repository, "datasets/measure_window.py", *words)
        return code, "".join(capsys.readouterr())

    return call


@pytest.mark.parametrize("window", [(-600, 1500), (-550, 1600), (-500, 1500), (40, 2400)])
def test_a_window_that_cuts_nothing_off_is_found(tmp_path, measured, window):
    code, told = measured("--input", write_pictures(tmp_path / "a", Window(*window)))
    center, width = map(int, re.search(r"HU: (-?\d+),(\d+) \(center,width\)", told).groups())
    assert code == 0 and abs(center - window[0]) < 30 and abs(width - window[1]) < 30
    common = told.partition("give these levels: ")[2].splitlines()[0]
    assert ("{},{}".format(*window) in common) == (window != (40, 2400))


@pytest.mark.parametrize("air", [42, 47, 52])
def test_the_papers_pictures_fit_minus_700_1000(air):
    """Air alone lies inside the scale: nothing can be calculated, but few windows are left."""
    found = estimate_window(GreyLevels(air, 255, 255))
    assert found.window is None and Window(-700, 1000) in found.common
    assert Window(-600, 1500) not in found.common


def test_pictures_through_the_papers_window(tmp_path, measured):
    code, told = measured("--input", write_pictures(tmp_path / "a", Window(-700, 1000)))
    assert code == 0 and "no window can be calculated" in told
    assert "give these levels: -700,1000" in told


def test_mixed_windows_are_told(tmp_path, measured):
    one, other = Window(-600, 1500), Window(-400, 1500)
    folders = [write_pictures(tmp_path / name, of) for name, of in (("a", one), ("b", other))]
    assert "may not share one window" in measured("--input", *folders)[1]
    assert "may not share one window" not in measured("--input", folders[0])[1]


def test_what_cannot_be_measured(tmp_path, measured):
    folder = write_pictures(tmp_path / "a", Window())
    assert "--limit" in measured("--input", folder, "--limit", 0)[1]
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "black.png")
    assert "1 of them look like no axial chest CT" in measured("--input", folder)[1]
    volume = np.full((64, 64, 3), 40, np.int16)
    volume[8:40], volume[40:] = -850, -1000
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "ct.nii.gz")
    code, told = measured("--input", tmp_path / "ct.nii.gz")
    assert code == 2 and "states HU, so its window is yours to choose" in told


def test_arrays_of_grey_levels_are_measured_as_their_pictures(tmp_path, measured):
    folder = write_pictures(tmp_path / "a", Window())
    volume = np.stack([np.array(Image.open(path)) for path in sorted(folder.iterdir())])
    np.save(tmp_path / "grey.npy", volume)
    flags = ["--axes", "zyx", "--rescale", "grey"]
    assert measured("--input", tmp_path / "grey.npy", *flags) == measured("--input", folder)
    (tmp_path / "grey.npy.json").write_text('{"axes": "zyx", "values": "grey"}')
    assert measured("--input", tmp_path / "grey.npy") == measured("--input", folder)
