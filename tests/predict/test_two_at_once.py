"""A folder is one prediction's: a second at once is refused, a dead one's lock is taken over."""

import re

import pytest

from ctmasknet.data.bad_slices import BadSlices
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.inputs import list_units
from ctmasknet.predict.run import PredictionRun
from tests.helpers.holding import held
from tests.helpers.small_world import words


def test_the_second_is_refused_naming_the_first_until_that_is_dead(
    classifier, scans, tmp_path, tool
):
    output = tmp_path / "out"
    command = words(classifier, [scans / "a_dicom"], output)
    with held(output, "prediction") as other:
        for flags in ([], ["--resume"], ["--overwrite"]):
            code, line = tool(*flags, *command)
            assert code == 2 and re.fullmatch(
                rf"error: {output}: process {other} on .* is at work \(prediction\) here; wait for "
                "its end, or choose another --output",
                line,
            )
        assert [path.name for path in output.iterdir()] == [".lock"]
    assert tool(*command)[0] == 0
    with held(output, "prediction"):
        assert tool("--resume", *command)[0] == 2
    assert tool("--resume", *command)[0] == 0
    assert not (output / ".lock").exists()


def test_one_that_comes_while_the_model_is_loaded_keeps_the_folder(scans, tmp_path):
    units, _ = list_units([scans / "a_dicom"])
    run = PredictionRun(tmp_path / "out", {}, units, BadSlices({}))
    assert run.open(resume=False, overwrite=False) is None
    with held(tmp_path / "out", "prediction"):
        with pytest.raises(CTMaskNetError, match="is at work"), run:
            pass
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    with run:
        assert (tmp_path / "out" / ".lock").is_file()
    assert not (tmp_path / "out" / ".lock").exists()
