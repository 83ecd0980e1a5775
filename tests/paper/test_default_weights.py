"""The command that makes the default weights: which tools it runs, and on which sets."""

import importlib.util

import pytest

from ctmasknet.config_file import read_cfg
from tests.helpers.golden_state import REPOSITORY

_SPEC = importlib.util.spec_from_file_location(
    "default_weights", REPOSITORY / "docs" / "default_weights.py"
)
default_weights = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(default_weights)


@pytest.fixture
def commands(monkeypatch):
    """A training leaves a model; nothing else is done."""
    called = []

    def run(command, datasets):
        called.append(command)
        if command[0] == "tools/train_net.py":
            folder = datasets.parent / ("seg" if "configs/demo/seg.yaml" in command else "cls")
            folder.mkdir(parents=True)
            (folder / "model_best.pth").write_bytes(folder.name.encode())

    monkeypatch.setattr(default_weights, "run_step", run)
    return called


def overrides(command):
    return command[command.index("OUTPUT_DIR") :]


def test_real_slices_and_phantoms_are_one_set(commands, tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "groups.csv").write_text("stem,patient\n0,a\n")
    given = ["--lesions", str(tmp_path / "real"), "--groups", str(tmp_path / "groups.csv")]
    output = tmp_path / "weights"
    assert default_weights.main([*given, "--output", str(output)]) == 0
    assert all((REPOSITORY / command[0]).is_file() for command in commands)
    real = commands[3]
    assert real[real.index("--groups") + 1] == str(tmp_path / "groups.csv")
    detector, classifier = commands[4:]
    found = read_cfg(REPOSITORY / "configs/demo/seg.yaml", overrides(detector))
    assert found.DATASETS.TRAIN == ("cncb_lesions_merge_train+real_merge_train",)
    assert found.DATASETS.VAL == ("cncb_lesions_merge_val+real_merge_val",)
    found = read_cfg(REPOSITORY / "configs/demo/cls.yaml", overrides(classifier))
    assert str(output / "detector.pth") == found.MODEL.WEIGHTS
    assert found.DATASETS.TRAIN == ("covidx_ct_train",)
    assert (output / "detector.pth").read_bytes() == b"seg"
    assert (output / "classifier.pth").read_bytes() == b"cls"
    assert "detector.pth: 0.0 MB" in capsys.readouterr().out
    # What is there is not trained again
    for name in ("cncb_lesions", "covidx_ct", "real"):
        (output / "datasets" / name).mkdir(parents=True)
    before = len(commands)
    assert default_weights.main([*given, "--output", str(output)]) == 0
    assert len(commands) == before
    # What was killed before its set was there is made
    (output / "datasets" / "real").rmdir()
    assert default_weights.main([*given, "--output", str(output)]) == 0
    assert commands[before:] == [real]
    (output / "datasets" / "covidx_ct").rmdir()
    assert default_weights.main(["--output", str(output)]) == 0
    tools = [command[0] for command in commands[before + 1 :]]
    assert tools == ["datasets/prepare_phantom.py", "datasets/prepare_covidx_ct.py"]


def test_phantoms_alone(commands, tmp_path, capsys):
    output = tmp_path / "weights"
    assert default_weights.main(["--output", str(output), "--detector-only"]) == 0
    detector = commands[-1]
    found = read_cfg(REPOSITORY / "configs/demo/seg.yaml", overrides(detector))
    assert found.DATASETS.TRAIN == ("cncb_lesions_merge_train",)
    assert len(commands) == 4 and not (output / "classifier.pth").exists()
    for arguments, message in (
        (["--groups", str(tmp_path / "groups.csv")], "groups.csv: is not there"),
        (["--lesions", str(tmp_path / "none")], "none: is not there"),
    ):
        assert default_weights.main([*arguments, "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
