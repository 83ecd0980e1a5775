"""Hours of the paper's runs, computed from measured seconds."""

import json

import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.paper.hours import write_hours


@pytest.fixture
def measured(tmp_path):
    """One second a slice for everything, two for a step of full; 8 for the step of 8 on cached
    rows."""
    for name, way, median in (
        ("step_segmentation", "ctmasknet", 1.0),
        ("heads_cache", "cached rows", 8.0),
        ("step_heads_bn", "ctmasknet", 1.0),
        ("step_full", "ctmasknet", 2.0),
        ("inference", "ctmasknet, model as trained", 1.0),
    ):
        hardware = {"cpu": "a CPU", "cores": 2}
        found = {"timings": {way: {"median_s": median}}}
        found["circumstances"] = {"hardware": hardware, "git_commit": "abc"}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    return tmp_path


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- hours: begin -->\nold\n<!-- hours: end -->\nbehind\n")
    return path


def test_hours_are_seconds_times_counts(page, measured):
    write_hours(page, measured, "python tools/paper_tables.py ...")
    lines = page.read_text().splitlines()
    rows = {
        cells[1].strip(" `"): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in lines if line.startswith("| `"))
    }
    # 100 epochs of 650 slices, 10 validations of 100
    assert rows["configs/seg.yaml"] == ["-", "18.1", "0.3", "-", "18.3"]
    # 24,036 slices cached once, 50 epochs of 3,000, 21,191 tested
    assert rows["configs/cls.yaml"] == ["6.7", "41.7", "-", "5.9", "54.2"]
    # 10 validations of 21,036
    assert rows["configs/cls_full.yaml"] == ["-", "83.3", "58.4", "5.9", "147.7"]
    assert "Computed, not run" in page.read_text() and "a CPU, 2 cores" in page.read_text()
    assert lines[0] == "before" and lines[-1] == "behind"


@pytest.mark.parametrize("content", [None, "{}", '{"timings": {"other": {"median_s": 1}}}'])
def test_a_file_that_is_no_measurement_is_named(page, measured, content):
    path = measured / "step_full.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CTMaskNetError, match=r"step_full\.json: not what tools/benchmark.py wrote"):
        write_hours(page, measured, "python")
