"""What a slice's grey levels show."""

import numpy as np
import pytest
from scipy import ndimage

from ctmasknet.ct.appearance import (
    UNLIKE_LEVELS,
    GreyLevels,
    appearance,
    looks_unlike,
    typical_levels,
)
from ctmasknet.phantom.patient import phantom_patient


def ellipse(side, row, column, height, width):
    """(side, side) bool; centre and half axes as shares of the side."""
    y, x = np.mgrid[:side, :side] / side
    return ((y - row) / height) ** 2 + ((x - column) / width) ** 2 < 1


def body(side=256, air=51, tissue=250, gas=None, lungs=None):
    """(side, side) uint8 with a little noise: a body in air, with gas in it or lungs."""
    picture = np.full((side, side), air, float)
    picture[ellipse(side, 0.5, 0.5, 0.35, 0.45)] = tissue
    if gas is not None:
        picture[ellipse(side, 0.4, 0.4, 0.05, 0.08)] = gas
    if lungs is not None:
        for column in (0.3, 0.7):
            picture[ellipse(side, 0.5, column, 0.2, 0.12)] = lungs
    noise = np.random.default_rng(0).normal(0, 3, picture.shape) * (picture > 0)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def page(paper, ink, colour=False):
    """Lines of text."""
    picture = np.full((240, 320, 3), paper, np.uint8)
    for row in range(12, 220, 9):
        picture[row : row + 4, 10 : 60 + 7 * row % 240] = ink
    return picture if colour else picture[..., 0]


chance = np.random.default_rng(1)
NO_CHEST = {
    "black": (np.zeros((96, 96), np.uint8), "no contrast"),
    "white": (np.full((96, 96), 255, np.uint8), "no contrast"),
    "noise": (chance.integers(0, 256, (96, 96), dtype=np.uint8), "noise"),
    "noise of a large picture": (chance.integers(0, 256, (512, 512), dtype=np.uint8), "noise"),
    "normal noise": (chance.normal(128, 30, (256, 256)).clip(0, 255).astype(np.uint8), "noise"),
    "a page": (page(255, 20), "no air-filled lung"),
    "a dark page": (page(20, 220), "no air-filled lung"),
    "a coloured page": (page(255, (40, 40, 160), colour=True), "colour"),
    "a ramp": (np.tile(np.arange(256, dtype=np.uint8), (256, 1)), "no air-filled lung"),
    "a line": (np.arange(200, dtype=np.uint8)[:, None], "no contrast"),
    "a white box": (np.pad(np.full((60, 90), 255, np.uint8), 30), "no air-filled lung"),
    "an abdomen": (body(gas=51), "no air-filled lung"),
    "an abdomen in a narrow window": (body(air=0, gas=0), "no air-filled lung"),
    "an abdomen without gas": (body(air=0), "no air-filled lung"),
}


@pytest.mark.parametrize("name", NO_CHEST)
def test_what_is_no_chest_is_told(name):
    picture, reason = NO_CHEST[name]
    assert reason in appearance(picture).fault


@pytest.mark.parametrize("side", [64, 96, 256, 512])
@pytest.mark.parametrize(("air", "lungs"), [(51, 90), (0, 30), (0, 0), (96, 106)])
def test_lungs_are_seen_in_any_window_and_size(side, air, lungs):
    picture = body(side, air=air, tissue=180, lungs=lungs)
    assert appearance(picture).fault is None
    assert appearance(np.stack([picture] * 3, axis=2)).fault is None


def test_lungs_are_seen_in_a_picture_cut_to_them():
    """With a wall around them, or cut through."""
    picture = body(300, lungs=90)
    for rows, columns in ((slice(85, 215), slice(45, 255)), (slice(110, 215), slice(75, 225))):
        assert appearance(picture[rows, columns]).fault is None


@pytest.mark.parametrize("kind", ["normal", "pneumonia", "covid"])
@pytest.mark.parametrize("side", [64, 128, 256])
def test_phantoms_are_chests_with_the_levels_of_their_window(kind, side):
    """-600 / 1500 HU: air 60, fat 212, muscle 237; small pictures are blurred."""
    seen = [
        appearance(one.image) for seed in range(3) for one in phantom_patient(kind, seed, side, 8)
    ]
    assert [one.fault for one in seen] == [None] * 24
    off = np.subtract(typical_levels(one.levels for one in seen), (60, 212, 237))
    assert np.abs(off).max() < (4 if side == 256 else 20)


def test_padding_outside_the_circle_is_no_air():
    picture = body(lungs=90, tissue=200)
    picture[~ellipse(256, 0.5, 0.5, 0.5, 0.5)] = 0
    seen = appearance(picture)
    assert seen.fault is None and abs(seen.levels.air - 51) < 3


def test_noise_that_a_scanner_has_is_no_noise():
    picture = body(512, tissue=200, lungs=90) + np.random.default_rng(0).normal(0, 20, (512, 512))
    assert appearance(picture.clip(0, 255).astype(np.uint8)).fault is None
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 300, (512, 512)), 1.5) + 128
    assert appearance(smooth.clip(0, 255).astype(np.uint8)).fault == "it is noise"


def test_a_level_is_typical_where_a_third_of_the_slices_show_it():
    found = [GreyLevels(50, None, 250), GreyLevels(52, 210, 252), GreyLevels(60, None, None)]
    assert typical_levels(found) == (52, None, 251)
    assert typical_levels([]) == (None, None, None)


def test_levels_are_unlike_beyond_a_bound():
    one = GreyLevels(50, 200, None)
    assert not looks_unlike(one, GreyLevels(50 + UNLIKE_LEVELS, None, 0))
    assert looks_unlike(one, GreyLevels(51 + UNLIKE_LEVELS, 200, 0))
    assert not looks_unlike(one, GreyLevels(None, None, None))
