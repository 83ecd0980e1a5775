"""The tables of docs/peers.md are those of its result files, and its plan can be run."""

import importlib.util
import shutil

import pytest

from ctmasknet.config_file import read_cfg
from tests.helpers.golden_state import REPOSITORY

_SPEC = importlib.util.spec_from_file_location(
    "peers_on_phantoms", REPOSITORY / "docs" / "peers_on_phantoms.py"
)
peers_on_phantoms = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(peers_on_phantoms)


def test_the_tables_are_made_of_the_files(tmp_path, monkeypatch):
    committed = peers_on_phantoms.DOCS.read_text()
    copy = shutil.copy(peers_on_phantoms.DOCS, tmp_path / "peers.md")
    monkeypatch.setattr(peers_on_phantoms, "DOCS", copy)
    peers_on_phantoms.write_tables()
    assert copy.read_text() == committed
    names = {path.parent.name for path in peers_on_phantoms.RESULTS.glob("*/run.json")}
    assert {"s", "detector"} < names
    assert all(f"| `{name}`" in committed for name in names)


@pytest.mark.parametrize(
    "name", [*peers_on_phantoms.CLASSIFIERS, *peers_on_phantoms.LESION_NETWORKS]
)
def test_what_differs_from_published_settings_is_known_to_their_configurations(name):
    plan = peers_on_phantoms.CLASSIFIERS | peers_on_phantoms.LESION_NETWORKS
    config, overrides = plan[name]
    words = overrides.format(output="output", demo="demo").split()
    cfg = read_cfg(peers_on_phantoms.ROOT / "configs" / f"{config}.yaml", words)
    assert 0 < cfg.SOLVER.MAX_ITER <= 500 and not cfg.SOLVER.MAX_EPOCHS


def test_s_is_the_demos_s(tmp_path, monkeypatch):
    found = {}

    def note(name, folder, *_):
        found[name] = folder

    monkeypatch.setattr(peers_on_phantoms, "collect", note)
    monkeypatch.setattr(peers_on_phantoms, "compare", lambda runs: None)
    monkeypatch.setattr(peers_on_phantoms, "write_tables", lambda: None)
    (tmp_path / "cls_s").mkdir()
    (tmp_path / "cls_s" / "model_best.pth").touch()
    peers_on_phantoms.main(["--no-training", "--demo", str(tmp_path), "--output", str(tmp_path)])
    cfg = read_cfg(peers_on_phantoms.ROOT / "configs" / "demo" / f"{found['s'].name}.yaml", [])
    assert cfg.MODEL.IMAGE_HEAD.NAME == "RankedBoxImageHead"
