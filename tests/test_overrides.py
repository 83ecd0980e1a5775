"""Overrides among the options of a command line."""

import pytest
from detectron2.config import get_cfg

from ctmasknet.config import add_ctmasknet_config
from ctmasknet.errors import CTMaskNetError
from ctmasknet.overrides import KEYS, OverrideParser, split_overrides


def parser():
    made = OverrideParser()
    made.add_argument("--input", nargs="+")
    made.add_argument("--masks", nargs="+", choices=["nifti", "png"])
    made.add_argument("--resume", action="store_true")
    made.add_argument("--num", type=int)
    return made


@pytest.mark.parametrize(
    "line",
    [
        "--input a b --masks nifti --resume --num 3 MODEL.WEIGHTS w SEED 1",
        "MODEL.WEIGHTS w SEED 1 --num 3 --resume --masks nifti --input a b",
        "--input a b MODEL.WEIGHTS w --resume --masks nifti SEED 1 --num 3",
        "--num 3 --resume --input a b --masks nifti --opts MODEL.WEIGHTS w SEED 1",
    ],
)
def test_anywhere(line):
    found = parser().parse_args(line.split())
    assert (found.input, found.masks, found.resume, found.num) == (["a", "b"], ["nifti"], True, 3)
    assert found.opts == ["MODEL.WEIGHTS", "w", "SEED", "1"]


def test_negative_and_odd_values():
    words = ["INPUT.WINDOW_CENTER_HU", "-600", "DATASETS.TEST", "('a', 'b')", "MODLE.X", "-1e-3"]
    assert split_overrides(words) == ([], words)


def test_a_file_of_such_a_name_is_no_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SCAN.NII").touch()
    assert parser().parse_args(["--input", "SCAN.NII", "b"]).input == ["SCAN.NII", "b"]


@pytest.mark.parametrize("line", ["--num 3 SOLVER.MAX_ITER", "SOLVER.MAX_ITER --resume"])
def test_a_key_without_a_value(line):
    with pytest.raises(CTMaskNetError, match=r"SOLVER\.MAX_ITER: no value behind it"):
        parser().parse_args(line.split())


def test_every_key_is_told_apart():
    cfg = get_cfg()
    add_ctmasknet_config(cfg)
    assert set(KEYS) >= {key for key, value in cfg.items() if not hasattr(value, "items")}

    def keys(node, above=""):
        for name, value in node.items():
            yield from keys(value, f"{above}{name}.") if hasattr(value, "items") else [above + name]

    missed = [key for key in keys(cfg) if split_overrides([key, "1"])[0]]
    assert not missed
