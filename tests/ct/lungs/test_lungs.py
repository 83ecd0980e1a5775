"""Lungs found by the rule: against a phantom's truth, on made HU volumes, and what is doubted."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.lungs import masks
from ctmasknet.ct.lungs.masks import scan_lungs
from ctmasknet.ct.lungs.threshold import threshold_lungs
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import CTScan, CTSlice, Window
from ctmasknet.errors import CTMaskNetError
from ctmasknet.phantom.patient import PhantomPatient

WINDOW = Window(-600.0, 1500.0)
Y, X = np.mgrid[:160, :200]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def ellipse(x, y, rx, ry):
    return ((X - x) / rx) ** 2 + ((Y - y) / ry) ** 2 <= 1


def chest():
    """(160, 200) HU of 2 mm px with heart, windpipe and stomach, and the lungs (bool)."""
    hu = np.full(Y.shape, -1000.0)
    hu[ellipse(100, 80, 90, 70)] = 40
    lungs = (ellipse(55, 80, 32, 50) | ellipse(145, 80, 32, 50)) & ~ellipse(110, 85, 30, 30)
    hu[lungs] = -850
    hu[ellipse(100, 40, 5, 5)] = -1000
    hu[ellipse(100, 130, 12, 8)] = -990
    return hu, lungs


def volume(hu, count=4, mm=2.0, kind="nifti", step=40.0):
    """A scan of equal slices, ``mm`` a px."""
    source = SimpleNamespace(read_hu=lambda frame: hu, read_picture=lambda frame: None)
    spacing = None if mm is None else (mm, mm)
    slices = [
        CTSlice("f", i, f"f#{i}", "", "s", hu.shape, spacing, i * step, source)
        for i in range(count)
    ]
    return CTScan("", "s", kind, tuple(slices))


@pytest.mark.parametrize(("kind", "least"), [("normal", 0.985), ("covid", 0.97)])
def test_the_phantoms_lungs(kind, least):
    patient = PhantomPatient(kind, 7, 0, 256)
    drawn = [patient.slice(number) for number in list(patient.numbers())[::12]]
    hu = [-1350 + one.image.astype(np.float32) / 255 * 1500 for one in drawn]
    truth = np.stack([one.mask for one in drawn])
    found = threshold_lungs(hu)
    assert dice(found, truth > 0) > least
    if kind == "covid":
        assert found[truth == 2].mean() > 0.95 and found[truth == 3].mean() > 0.8


def test_windpipe_stomach_heart_and_outside_are_no_lung():
    hu, lungs = chest()
    found = threshold_lungs([hu] * 3, 2.0)
    assert dice(found[1], lungs) > 0.985
    for there in (ellipse(100, 40, 5, 5), ellipse(100, 130, 12, 8), ellipse(110, 85, 20, 20)):
        assert not found[1][there].any()


def test_disease_at_the_pleura_and_vessels_belong_to_the_lung():
    hu, lungs = chest()
    wedge = ellipse(24, 80, 12, 12) & lungs  # consolidation at the ribs
    hu[wedge], hu[ellipse(50, 60, 3, 3)], hu[ellipse(150, 100, 8, 8)] = 30, 40, 30
    found = threshold_lungs([hu] * 3, 2.0)[1]
    assert wedge.sum() > 200 and found[wedge].mean() > 0.85
    assert found[ellipse(50, 60, 3, 3)].all() and found[ellipse(150, 100, 8, 8)].all()
    assert dice(found, lungs) > 0.98


def test_lungs_that_meet_enclose_no_heart():
    hu, _ = chest()
    hu[30:36, 60:140] = hu[126:132, 60:140] = -850
    assert not threshold_lungs([hu], 2.0)[0][ellipse(110, 85, 20, 20)].any()


def test_a_table_of_foam_is_no_lung_and_a_lung_cut_off_is():
    hu, lungs = chest()
    hu[136:140][hu[136:140] == -1000] = 40  # its shell, at the back with no gap
    hu[140:][hu[140:] == -1000] = -880
    hu[152:] = -880
    assert dice(threshold_lungs([hu], 2.0)[0], lungs) > 0.98
    cut = chest()[0][:, 40:]
    found = threshold_lungs([cut], 2.0)[0]
    assert dice(found, lungs[:, 40:]) > 0.97 and found[:, 0].any()


def test_what_is_doubted():
    hu, _ = chest()
    assert scan_lungs(volume(hu)).doubts == ()
    one = hu.copy()
    one[:, 110:][one[:, 110:] == -850] = 40
    for scan, words in (
        (volume(one), "one lung is less than a third of the other"),
        (volume(hu[:, 40:]), "touch the border of 4 of 4 slices"),
        (volume(hu, mm=0.5), r"lungs of \d+ ml, where an adult's"),
        (volume(hu, mm=None), "taken to be 350 mm wide"),
    ):
        assert any(words.split(r"\d")[0] in doubt for doubt in scan_lungs(scan).doubts), words
    with pytest.raises(CTMaskNetError, match="s: no lung was found in any slice by threshold"):
        scan_lungs(volume(np.full((160, 200), 40.0)))


def test_pictures_need_the_window_they_were_made_through(tmp_path):
    hu, lungs = chest()
    path = tmp_path / "a.png"
    Image.fromarray(WINDOW.to_uint8(hu)).save(path)
    (scan,) = read_scans([path])
    with pytest.raises(CTMaskNetError, match=r"a\.png: is a picture, which states no HU"):
        scan_lungs(scan)
    with pytest.raises(CTMaskNetError, match="the window 40,400 HU does not tell air from lung"):
        scan_lungs(scan, window=Window(40, 400))
    found = scan_lungs(scan, window=WINDOW)
    assert dice(found.masks[0], lungs) > 0.97
    assert found.way.endswith("through the window -600, 1500 HU")


def test_the_network_where_the_user_has_it(monkeypatch):
    hu, lungs = chest()
    monkeypatch.setitem(sys.modules, "lungmask", None)
    with pytest.raises(CTMaskNetError, match=r"cannot be imported .* pip install lungmask"):
        scan_lungs(volume(hu), "network")
    given = []

    class Inferer:
        def __init__(self, modelname, tqdm_disable):
            given.append(modelname)

        def apply(self, image):
            assert image.dtype == np.float32
            return np.where(image == -850, 1 + (X >= 100), 0).astype(np.uint8)

    monkeypatch.setitem(sys.modules, "lungmask", SimpleNamespace(LMInferer=Inferer))
    found = scan_lungs(volume(hu), "network")
    assert np.array_equal(found.masks[2], lungs) and given == ["R231"]
    assert found.way == "lungmask's U-Net R231"
    with pytest.raises(CTMaskNetError, match="'rays' is no way to find them"):
        masks.scan_lungs(volume(hu), "rays")
