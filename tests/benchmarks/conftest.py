import pytest

from ctmasknet.benchmarks.harness import comparison, spread


@pytest.fixture
def result():
    timings = {"old": spread([4.0, 2.0, 6.0]), "new": spread([1.0, 2.0, 1.5])}
    memory = {"old": 100.0, "new": 50.0}
    figures = {"share of the limit": 0.71234}
    return comparison(
        "inference", timings, "old", "cpu", per="image", figures=figures, peak_memory_mb=memory
    )
