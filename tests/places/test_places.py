"""A few of the tries at places that cannot be written; all are ``python -m tests.places``."""

import pytest

from tests.places.tools import all_tools
from tests.places.tries import FULL, at_a_place, on_a_full_disk, sound_run

#: Each tool that runs a model, and each sort of fault, once. No whole training: after tests that
#: train, torch refuses to in a forked process.
SOME = [
    ("train, CACHE_DIR", "below a link"),
    ("predict", "read-only"),
    ("explain", "link"),
    ("visualize", "below a file"),
    ("export", "long name"),
    ("figure2", "in the way"),
    ("report", "pipe"),
    ("evaluate_predictions", "read-only"),
    ("prepare lesions", "full, middle"),
    ("prepare copies", "small"),
    ("import_weights", "full, last"),
    ("evaluate", "no byte"),
    ("compare", "link"),
    ("visualize augmented", "below a link"),
    ("ctmasknet predict", "read-only"),
    ("prepare coco", "full, middle"),
]


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", "")  # so that it is as before afterwards
        yield all_tools(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize(("name", "fault"), SOME)
def test_a_tool_ends_with_one_line_and_leaves_nothing_half_written(name, fault, tools, tmp_path):
    (tmp_path / "place").mkdir()
    if fault in FULL:
        (tmp_path / "sound").mkdir()
        sound = sound_run(tools[name], tmp_path / "sound")
        ended, wrong = on_a_full_disk(tools[name], fault, tmp_path / "place", sound)
    else:
        ended, wrong = at_a_place(tools[name], fault, tmp_path / "place")
    assert not wrong, f"{wrong}\n{ended.said[-2000:]}"
