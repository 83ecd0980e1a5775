import os

import pytest

from ctmasknet.benchmarks.harness import Apart, interleaved, spread
from ctmasknet.errors import CTMaskNetError


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
