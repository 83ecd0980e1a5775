import os

import pytest

from ctmasknet.benchmarks.apart import Apart
from ctmasknet.errors import CTMaskNetError


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
