import json
import os

import pytest

from ctmasknet.benchmarks.harness import (
    Apart,
    comparison,
    interleaved,
    spread,
    text_of,
    write_readme_table,
)
from ctmasknet.errors import CTMaskNetError


@pytest.fixture
def result():
    timings = {"old": spread([4.0, 2.0, 6.0]), "new": spread([1.0, 2.0, 1.5])}
    memory = {"old": 100.0, "new": 50.0}
    figures = {"share of the limit": 0.71234}
    return comparison(
        "inference", timings, "old", "cpu", per="image", figures=figures, peak_memory_mb=memory
    )


def test_ways_are_called_in_turn_after_one_call_that_does_not_count():
    calls = []
    found = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == list("ab" * 4)
    assert [len(found[name]["seconds"]) for name in "ab"] == [3, 3]


def test_warm_calls_come_before_each_measurement_and_do_not_count():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = interleaved(ways, 2, warm=2)
    assert calls == list("ab" + "aaabbb" * 2)
    assert [len(found[name]["seconds"]) for name in "ab"] == [2, 2]


def test_spread_is_median_and_quartiles():
    found = spread([1.0, 5.0, 2.0, 4.0, 3.0])
    assert [found[key] for key in ("median_s", "q1_s", "q3_s", "min_s", "max_s")] == [3, 2, 4, 1, 5]


def test_ratio_is_of_medians_and_its_spread_of_neighbouring_measurements(result):
    # 4 over 1.5; neighbours: 4, 1, 4
    assert result["ratios"]["new"]["ratio"] == pytest.approx(4 / 1.5)
    assert (result["ratios"]["new"]["q1"], result["ratios"]["new"]["q3"]) == (2.5, 4.0)
    assert result["circumstances"]["threads"] > 0


def test_readme_table_is_made_from_files(result, tmp_path):
    path = tmp_path / "inference.json"
    path.write_text(json.dumps(result))
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nz\n")
    for _ in range(2):
        write_readme_table(readme, [path])
    lines = readme.read_text().split("\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert cells[2] == ["inference, one image", "old", "4 (3-5)", "1", "100"]
    assert cells[3] == ["", "new", "1.5 (1.25-1.75)", "2.67 (2.5-4)", "50"]
    assert cells[4] == ["", "share of the limit", "", "0.7123", ""]
    assert lines[0] == "a" and lines[-2] == "z"
    assert result["circumstances"]["hardware"]["cpu"] in readme.read_text()
    assert "share of the limit" in text_of(result)


def test_what_is_no_result_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"what": 1}')
    with pytest.raises(CTMaskNetError, match=r"x\.json: no result of a benchmark"):
        write_readme_table(tmp_path / "README.md", [tmp_path / "x.json"])


def counter(start):
    """Made once; counts its calls."""
    numbers = iter(range(start, start + 2))
    return lambda: (next(numbers), os.getpid())


def test_calls_go_to_one_other_process_which_ends_with_the_context():
    with Apart(counter, 5) as call:
        (first, process), (second, again) = call(), call()
        assert (first, second) == (5, 6)
        assert process == again != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_process_that_ends_is_an_error(capfd):
    with Apart(counter, "no number") as call, pytest.raises(CTMaskNetError, match="has ended"):
        call()
    assert "no number" not in capfd.readouterr().out
