"""What the compared systems' own networks compute, for weights and inputs that are drawn from
names and seeds. ``CTMASKNET_PEER_CASES`` names the folder of the goldens.

A json is run by the runner whose key its name starts with (the longest such key); a folder with a
``facts.json`` too. A runner is called with the path and asserts.
"""

from pathlib import Path

import pytest

from tests.helpers.peer_goldens import FOLDER
from tests.modeling.peers.runners import RUNNERS

CASES = sorted([*FOLDER.glob("*.json"), *(path.parent for path in FOLDER.glob("*/facts.json"))])


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER}: no folder of goldens")
def test_there_are_goldens():
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path: Path):
    keys = [key for key in RUNNERS if path.stem.startswith(key)]
    assert keys, f"{path}: no runner for it; there are {', '.join(sorted(RUNNERS))}"
    RUNNERS[max(keys, key=len)](path)
