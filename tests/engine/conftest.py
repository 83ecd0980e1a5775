"""A small prepared world: phantom data of both tasks, as the preparation tools leave it."""

import pytest

from tests.running import run_tool


@pytest.fixture(scope="session")
def prepared(repository, tmp_path_factory):
    """Root of prepared phantom sets: lesions of all mask types and slices, 96 px."""
    root = tmp_path_factory.mktemp("phantoms")
    raw, sets = root / "raw", root / "sets"
    steps = [
        [
            *("datasets/prepare_phantom.py", "--output", raw, "--seed", 3, "--side", 96),
            *("--lesion-patients", 6, "--lesion-slices", 4, "--slices", 2, "--workers", 1),
            *("--train-patients", 3, "--val-patients", 2, "--test-patients", 2),
        ],
        [
            *("datasets/prepare_cncb_lesions.py", "--source", raw / "cncb_lesions_raw"),
            *("--output-root", sets, "--min-area-px", 6, "--workers", 1),
        ],
        [
            *("datasets/prepare_covidx_ct.py", "--source", raw / "covidx_ct_raw"),
            *("--output-root", sets, "--workers", 1),
        ],
    ]
    for tool, *words in steps:
        assert run_tool(repository, tool, *words) == 0
    return sets
