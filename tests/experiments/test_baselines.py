"""Arms without a network: grey levels alone, and the most similar slice."""

import json
import runpy

import numpy as np
import pytest
import yaml
from PIL import Image

from ctmasknet.data.registry import unregister
from ctmasknet.errors import CTMaskNetError
from ctmasknet.experiments.baselines import BASELINES, grey_histogram, predict_by_baseline
from ctmasknet.experiments.run import run_plan

PLAN = {
    "title": "Do grey levels tell?",
    "config_file": "configs/cls_light.yaml",
    "evaluated_on": "ours_test",
    "seeds": [1],
    "opts": ["DATASETS.TRAIN", "('ours_train',)", "DATASETS.VAL", "()"],
    "against": "nearest",
    "arms": {
        "histogram": {"baseline": "grey_histogram"},
        "nearest": {"baseline": "nearest_neighbour"},
    },
}


@pytest.fixture
def root(repository, tmp_path):
    """Ten patients a class: of covid, pictures are brighter, and all have a bright half, whose side
    tells nothing but of the one patient who is turned."""
    chance = np.random.default_rng(1)
    for number in range(20):
        covid = number % 2
        picture = chance.integers(0, 100, (80, 80))
        picture[:, slice(40, None) if covid != (number == 19) else slice(40)] += 60 + 40 * covid
        path = tmp_path / "pictures" / ("covid" if covid else "normal") / f"p{number}_1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(path)
    rows = [
        f"{'covid' if n % 2 else 'normal'}/p{n}_1.png,{'covid' if n % 2 else 'normal'},p{n},"
        f"{'train' if n < 12 else 'test'}\n"
        for n in range(20)
    ]
    (tmp_path / "list.csv").write_text("path,class,patient,split\n" + "".join(rows))
    main = runpy.run_path(str(repository / "datasets" / "prepare_slices.py"))["main"]
    given = ["--volume-list", tmp_path / "list.csv", "--images", tmp_path / "pictures"]
    own = ["--name", "ours", "--classes", "normal,covid", "--output-root", tmp_path / "root"]
    assert main([*map(str, [*given, *own]), "--workers", "1"]) == 0
    yield tmp_path / "root"
    for split in ("train", "test"):
        unregister(f"ours_{split}")


def test_a_histogram_is_shares_of_64_levels():
    found = grey_histogram(np.array([[0, 3, 4], [255, 252, 251]], dtype=np.uint8))
    assert found.shape == (64,) and found.sum() == pytest.approx(1)
    assert found[[0, 1, 62, 63]] == pytest.approx([2 / 6, 1 / 6, 1 / 6, 2 / 6])


def test_grey_levels_and_the_nearest_slice(root):
    wrong = {}
    for name in BASELINES:
        rows, classes = predict_by_baseline(name, ["ours_train"], "ours_test", root)
        assert classes == ["normal", "covid"] and len(rows) == 8
        wrong[name] = [row.patient for row in rows if row.pred != row.label]
    # The turned one looks like the others by its grey levels alone
    assert wrong == {"grey_histogram": [], "nearest_neighbour": ["p19"]}


def test_a_plan_of_baselines(root, tmp_path, capsys):
    plan = tmp_path / "grey.yaml"
    plan.write_text(yaml.safe_dump({**PLAN, "folds": {"a": {"datasets": str(root)}}}))
    places = (tmp_path / "results", tmp_path / "work")
    run_plan(plan, *places, call=None)
    told = capsys.readouterr().out
    assert "a/histogram/1, accuracy 100.0 %" in told and "a/nearest/1, accuracy 87.5 %" in told
    assert "| histogram | 1.000  " in told and "| nearest   | 0.750 (" in told
    assert "| histogram | +12.5 (" in told
    content = json.loads((places[0] / "grey/a/histogram/1.json").read_text())
    assert content["baseline"] == "grey_histogram" and list(content["scores"]) == [
        f"p{n}" for n in (13, 15, 17, 19, 12, 14, 16, 18)
    ]
    arms = {**PLAN["arms"], "histogram": {"baseline": "nearest_neighbour"}}
    plan.write_text(yaml.safe_dump({**PLAN, "arms": arms, "folds": {"a": {"datasets": str(root)}}}))
    with pytest.raises(CTMaskNetError, match="was made with another baseline than the plan states"):
        run_plan(plan, *places, call=None)


def test_what_no_baseline_can_do_is_one_line(root, tmp_path):
    with pytest.raises(CTMaskNetError, match="none_train: no such set of slices below"):
        predict_by_baseline("grey_histogram", ["none_train"], "ours_test", root)
    plan = tmp_path / "grey.yaml"
    changes = {"folds": {"a": {"datasets": str(root)}}, "task": "lesions"}
    plan.write_text(yaml.safe_dump({**PLAN, **changes, "config_file": "configs/seg_light.yaml"}))
    with pytest.raises(CTMaskNetError, match="arm histogram has a baseline, which finds no lesion"):
        run_plan(plan, tmp_path / "results", tmp_path / "work", call=None)
