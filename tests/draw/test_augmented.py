"""Augmented samples as a user asks for them: seeded, beside their originals."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers.running import run_tool


@pytest.fixture
def draw(repository, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)

    def call(output, *words, limit=2):
        shown = ["--augmented", "--config-file", "configs/seg.yaml", "--limit", limit, "--output"]
        return run_tool(repository, "tools/visualize.py", *shown, tmp_path / output, *words)

    return call


def test_samples_stand_beside_their_originals(draw, tmp_path):
    turned = ["INPUT.AUGMENTATION.ROTATION_DEG", 40.0, "INPUT.AUGMENTATION.PROB", 1.0]
    assert draw("a", "--seed", 3, *turned) == draw("b", "--seed", 3, *turned) == 0
    first, again = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert len(first) == 3
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert draw("c", "--seed", 3) == 0
    for one in first[:2]:
        turned, plain = (np.asarray(Image.open(tmp_path / d / one.name)) for d in "ac")
        # The left half is the original's, the right half is turned; counted from below, for
        # without augmentation a line above says so
        middle = -300
        half = plain.shape[1] // 2
        assert np.array_equal(turned[middle, :half], plain[middle, :half])
        assert not np.array_equal(turned[middle, half:], plain[middle, half:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "covidx_ct_train"), "covidx_ct_train: has no classes for configs/seg.yaml"),
        (("--input", "x"), "--input: has no effect with --augmented"),
        (("--weights", "x"), "--weights: has no effect with --augmented"),
        (("INPUT.MAPPER_TRAIN", "Own"), "INPUT.MAPPER_TRAIN is 'Own', but registered are: none"),
    ],
)
def test_what_cannot_be_shown(draw, tmp_path, capsys, words, message):
    assert draw("d", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
