import csv

import numpy as np
import pytest

from ctmasknet.benchmarks import whole_job
from ctmasknet.predict.predictor import CTPredictor


@pytest.fixture(scope="module")
def weights(repository, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        folder = tmp_path_factory.mktemp("weights")
        return whole_job._weights(folder, "configs/cls_light.yaml", 0)


@pytest.mark.parametrize(
    ("write", "scan"), [(whole_job._write_series, True), (whole_job._write_pictures, False)]
)
def test_a_job_is_predicted_whole_and_its_parts_are_all_of_its_time(
    write, scan, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(whole_job, "_SIDE", 64)
    (tmp_path / "in").mkdir()
    pictures = [np.full((64, 64), 90, np.uint8), np.full((64, 64), 120, np.uint8)]
    write(tmp_path / "in", pictures, 5, np.random.default_rng(0))
    predict = CTPredictor.predict
    words = (str(weights), str(tmp_path / "in"), str(tmp_path / "out"))
    found = whole_job._predict_here(*words)
    assert CTPredictor.predict is predict
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"])
    assert all(found["parts"][name] > 0 for name in whole_job._PARTS)
    assert found["parts"]["the rest"] >= 0 and found["peak_memory_mb"] > 100
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 5 and len({row["scan"] for row in rows}) == 1
    assert rows[0]["file"].endswith("00000.dcm" if scan else "P1_1_00000.png")
