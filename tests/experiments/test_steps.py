"""Steps of scripts are tools in processes of their own."""

import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.experiments.steps import run_step

_SAY = "import os, sys; sys.exit([os.environ.get(name) for name in sys.argv[2:]] != %r)"


@pytest.mark.parametrize(
    ("given", "threads", "found"), [(None, 1, "1"), (None, None, None), ("3", 1, "3")]
)
def test_a_step_is_told_its_sets_and_threads(monkeypatch, capsys, given, threads, found):
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    names = ["-", "DETECTRON2_DATASETS", "OMP_NUM_THREADS"]
    run_step(["-c", _SAY % ["sets", found], *names], "sets", threads)
    with pytest.raises(CTMaskNetError, match="the step above failed"):
        run_step(["-c", _SAY % ["elsewhere", found], *names], "sets", threads)
    assert capsys.readouterr().out.count("\npython -c ") == 2
