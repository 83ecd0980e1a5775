"""A tiny detector and classifier, scans, and tools/predict.py."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ctmasknet.config_file import read_cfg
from tests.helpers.running import run_tool
from tests.helpers.small_world import SMALL, save_model, write_scans


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The same sums in every process; before any other fixture predicts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def detector(repository, tmp_path_factory):
    cfg = read_cfg(str(repository / "configs" / "seg_light.yaml"), SMALL)
    return save_model(cfg, tmp_path_factory.mktemp("model"), "seg")


@pytest.fixture(scope="session")
def classifier(repository, detector, tmp_path_factory):
    cfg = read_cfg(
        str(repository / "configs" / "cls_light.yaml"), [*SMALL, "MODEL.RANKED_BOXES.NUM", 16]
    )
    return save_model(cfg, tmp_path_factory.mktemp("model"), "cls", detector)


@pytest.fixture
def own_classifier(classifier, tmp_path):
    """A copy whose weights file may be changed."""
    weights = Path(shutil.copy(classifier.weights, tmp_path / "own.pth"))
    return SimpleNamespace(config=classifier.config, weights=weights, cfg=classifier.cfg)


@pytest.fixture
def own_detector(detector, tmp_path):
    """The same of the detector."""
    weights = Path(shutil.copy(detector.weights, tmp_path / "own_seg.pth"))
    return SimpleNamespace(config=detector.config, weights=weights, cfg=detector.cfg)


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """See :func:`write_scans`; not to be changed."""
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture
def own_scans(tmp_path):
    """The same, to be changed."""
    return write_scans(tmp_path / "scans")


@pytest.fixture
def tool(repository, capsys):
    """Run tools/predict.py; returns its exit code and its last line on stderr."""

    def call(*words):
        code = run_tool(repository, "tools/predict.py", *words)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        return code, lines[-1] if lines else ""

    return call
