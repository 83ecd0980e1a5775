"""The shortest of the walks, and that the page has no command that none of them types; all are
``python -m tests.walks``."""

import json
import subprocess
import sys

import pytest

from tests.walks import page
from tests.walks.walks import WALKS


def test_from_raw_volumes_to_a_prediction_with_the_lines_of_the_page(repository, tmp_path):
    # In a process of its own: after tests that train, torch refuses to in a forked one
    command = ["-m", "tests.walks", "--only", "covid1920", "--output", tmp_path / "walks.json"]
    done = subprocess.run(
        [sys.executable, *command], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "walks.json").read_text())["walks"]
    assert [call[:2] for call in row["calls"]] == [
        ["datasets/prepare_cncb_lesions.py", 0],
        ["tools/train_net.py", 0],
        ["tools/train_net.py", 0],
        ["tools/predict.py", 0],
    ]
    assert row["prepared"] == {"covid1920/merge": {"slices": 30, "lesions": 16, "patients": 5}}


def test_every_command_below_a_walked_heading_is_walked():
    parts = [part for walk in WALKS.values() for part in walk.parts]
    walked = {line for part in parts for line in part.lines().splitlines()}
    below = {line for part in parts for line in page.Part(part.heading).lines().splitlines()}
    commands = {line for line in below if line.startswith(("python ", "awk "))}
    assert len(commands) > 20 and commands <= walked, commands - walked


def test_lines_of_a_page_are_taken_below_a_heading_and_behind_a_comment(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "REPOSITORY", tmp_path)
    (tmp_path / "page.md").write_text(
        "## One\n```\n# first: a\nx 'y'\n# second\nz \\\n    w\n```\n## Two\ntext\n```\nv\n```\n"
    )
    assert page.Part("One", page="page.md").lines() == "# first: a\nx 'y'\n# second\nz \\\n    w"
    assert page.Part("One", "second", "page.md").lines() == "z \\\n    w"
    with pytest.raises(LookupError, match="'Two' 'first'"):
        page.Part("Two", "first", "page.md").lines()
