"""Fixtures of the tests of lesion sets."""

import runpy
from pathlib import Path

import pytest

from tests.prepare.small_sets import lesion_mask, write_slice


@pytest.fixture
def source(tmp_path) -> Path:
    """Ten patients of three slices each, in the authors' flat names."""
    folder = tmp_path / "source"
    for patient in range(10):
        for s in range(3):
            write_slice(folder / "image", folder / "mask", f"{patient}_{s}", lesion_mask(s))
    return folder


@pytest.fixture
def prepare(repository, tmp_path):
    """Runs the tool below a root in the test's folder; returns its exit code."""
    main = runpy.run_path(str(repository / "datasets" / "prepare_cncb_lesions.py"))["main"]

    def run(*arguments) -> int:
        fixed = ["--output-root", str(tmp_path / "root"), "--workers", "1"]
        return main([*fixed, *map(str, arguments)])

    return run
