"""Plans of lesion networks: what a run's file keeps of each slice, and what is made of it. A
function that writes what an evaluation would stands in for the tools.
"""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as rle
import pytest
import yaml

from ctmasknet.data.registry import unregister
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.coco import LesionEvaluator
from ctmasknet.experiments import lesion_tables
from ctmasknet.experiments.lesions import LesionFigures, of_evaluation
from ctmasknet.experiments.run import run_plan

SIDE = 64
CATEGORIES = [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}]
PLAN = {
    "title": "Does a longer training find more?",
    "task": "lesions",
    "config_file": "configs/seg_light.yaml",
    "evaluated_on": "real_both_test",
    "normals": "normal_both_test",
    "seeds": [1],
    "opts": ["DATASETS.VAL", "()", "MODEL.WEIGHTS", "start.pth"],
    "against": "short",
    "arms": {"short": {"opts": ["SOLVER.MAX_ITER", 5]}, "long": {"opts": ["SOLVER.MAX_ITER", 9]}},
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(lesion_tables, "_RESAMPLES", 100)


def lesion(image, x, y, side, category=1, score=None):
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    counts = rle.encode(mask)
    segmentation = {"size": [SIDE, SIDE], "counts": counts["counts"].decode()}
    found = {"image_id": image, "category_id": category, "bbox": [x, y, side, side]}
    found |= {"segmentation": segmentation}
    return found if score is None else found | {"score": score}


def write_set(root, name, patients, lesions):
    images = [
        {"id": n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE, "patient": patient}
        for n, patient in enumerate(patients, 1)
    ]
    lesions = [
        one | {"id": n, "area": one["bbox"][2] ** 2, "iscrowd": 0}
        for n, one in enumerate(lesions, 1)
    ]
    document = {"info": {"image_root": str(root), "mask_type": "both"}, "images": images}
    path = root / name / "annotations" / "both_test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document | {"annotations": lesions, "categories": CATEGORIES}))


@pytest.fixture
def roots(tmp_path):
    """Two folds of two patients with two slices each, a lesion a slice, and two normal patients."""
    for fold in "ab":
        root = tmp_path / fold
        truth = [lesion(n, 8 * n, 8, 16, 1 + n % 2) for n in (1, 2, 3, 4)]
        write_set(root, "real", [f"{fold}1", f"{fold}1", f"{fold}2", f"{fold}2"], truth)
        write_set(root, "normal", ["n1", "n2"], [])
    yield tmp_path
    for name in ("real_both_test", "normal_both_test"):
        unregister(name)


@pytest.fixture
def plan(roots, tmp_path):
    def write(**changes):
        path = tmp_path / "real.yaml"
        folds = {fold: {"datasets": str(roots / fold)} for fold in "ab"}
        path.write_text(yaml.safe_dump(PLAN | {"folds": folds} | changes, sort_keys=False))
        return path

    return write


def detections(long):
    """The short training misses the second slice of each patient, and finds one lesion too many."""
    found = [lesion(n, 8 * n, 8, 16, 1 + n % 2, 0.9) for n in (1, 2, 3, 4) if long or n % 2]
    return found if long else [*found, lesion(1, 40, 40, 8, 2, 0.95)]


class Tools:
    def __init__(self):
        self.calls = []

    def __call__(self, words, environment, log):
        self.calls.append(list(words))
        if "--eval-only" not in words:
            return 0
        for name in ("real_both_test", "normal_both_test"):
            folder = Path(words[words.index("OUTPUT_DIR") + 1]) / "inference" / name
            folder.mkdir(parents=True)
            found = detections(long="9" in words)
            if name.startswith("normal"):
                found = [lesion(1, 8, 8, 16, 1, 0.4), lesion(2, 8, 8, 16, 1, 0.5)]
            (folder / "coco_instances_results.json").write_text(json.dumps(found))
            results = {"bbox": {"AP50": 50.0}, "segm": {"AP50": None}}
            (folder / "results.json").write_text(json.dumps(results))
        return 0


def test_a_slice_is_kept_so_that_its_figures_are_those_of_the_evaluation(roots, tmp_path):
    folder = tmp_path / "inference"
    folder.mkdir()
    found = [
        *(lesion(1, 8, 8, 16, 2, 0.9), lesion(1, 9, 9, 16, 2, 0.8), lesion(2, 16, 8, 8, 1, 0.7)),
        *(
            lesion(2, 16, 8, 14, 1, 0.6),
            lesion(3, 24, 30, 16, 2, 0.95),
            lesion(4, 40, 8, 16, 1, 0.3),
        ),
    ]
    (folder / "coco_instances_results.json").write_text(json.dumps(found))
    files, kept = of_evaluation("real_both_test", str(roots / "a"), folder)
    assert files == ["1.png", "2.png", "3.png", "4.png"] and list(kept["patients"]) == ["a1", "a2"]
    first = kept["patients"]["a1"][0]
    assert first["classes"]["consolidation"] == {
        **{"lesions": 1, "scores": [0.9, 0.8]},
        **{"box": "10", "mask": "10"},
    }
    figures = LesionFigures([kept])
    values = {name: value[0] for name, value in figures(np.ones((1, 2))).items()}
    # What Detectron2's evaluation says of the same
    evaluator = LesionEvaluator("real_both_test", ("bbox", "segm"), distributed=False, fast="never")
    evaluator.reset()
    evaluator._predictions = [
        {"image_id": n, "instances": [one | {"category_id": one["category_id"] - 1} for one in of]}
        for n in (1, 2, 3, 4)
        for of in [[one for one in found if one["image_id"] == n]]
    ]
    results = evaluator.evaluate()
    assert values["box-AP50"] == pytest.approx(results["bbox"]["AP50"]) and values["box-AP50"] < 99
    assert values["mask-AP50"] == pytest.approx(results["segm"]["AP50"])
    # Of consolidation: one slice right, the other a blank; of the two overlapping one is too many
    assert values["at-0.5-consolidation"] == pytest.approx(
        (2 * 256 / (256 + 287) + 0) / 2, abs=1e-4
    )
    assert values["maximum-consolidation"] == pytest.approx(0.5 + 256 / 4096 / 2, abs=0.07)
    # A patient who counts twice is two slices more
    twice = figures(np.array([[2, 1], [0, 1]]))
    assert twice["at-0.5-consolidation"][1] == 0.0
    assert twice["at-0.5-consolidation"][0] == pytest.approx(
        2 / 3 * 2 * 256 / (256 + 287), abs=1e-4
    )


def test_folds_are_one_set_and_arms_are_compared_slice_by_slice(plan, tmp_path, capsys):
    tools, places = Tools(), (tmp_path / "results", tmp_path / "work")
    run_plan(plan(), *places, call=tools)
    told = capsys.readouterr().out
    assert "1 of 4: a/short/1, bbox/AP50 50.0 % in " in told
    # Without a validation set the last weights are evaluated, not what the training began with
    evaluated = [words for words in tools.calls if "--eval-only" in words]
    for words in evaluated:
        output = words[words.index("OUTPUT_DIR") + 1]
        assert words[words.index("MODEL.WEIGHTS") + 1] == f"{output}/model_final.pth"
        assert words[-1] == "('real_both_test', 'normal_both_test',)"
    text = (places[0] / "real" / "tables.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n")]
    dice = {tuple(row[:2]): row[2:] for row in rows if len(row) == 5}
    # All of ggo is in the slices that the short training misses; a cut at 0 takes everything
    assert [cell.split()[0] for cell in dice["short", "ggo"]] == ["0.000", "0.118", "0.000"]
    assert [cell.split()[0] for cell in dice["long", "consolidation"]] == [
        "0.997",
        "1.000",
        "1.000",
    ]
    assert [cell.split()[0] for cell in dice["short", "lesions"]][1:] == ["0.472", "0.472"]
    whole = next(row for row in rows if len(row) == 5 and row[0] == "long" and row[1][0] == "1")
    assert [cell.split()[0] for cell in whole[1:]] == ["100.0", "100.0", "100.0", "0.50"]
    assert "4 of 4 runs, 2 folds, seeds 1" in text and "8 slices of 4 patients" in text
    more = next(row for row in rows if len(row) == 7 and row[0] == "long")
    assert more[2].startswith("+0.528") and more[4].startswith("+")
    assert (places[0] / "real" / "plot.png").stat().st_size > 5000
    # The same of the files alone; of another set without lesions they are not
    (places[0] / "real" / "tables.md").unlink()
    run_plan(plan(), *places, tables_only=True, call=None)
    assert (places[0] / "real" / "tables.md").read_text() == text
    with pytest.raises(CTMaskNetError, match=r"was made with another normals_on than"):
        run_plan(plan(normals="other_both_test"), *places, call=None)
    damaged = places[0] / "real" / "a" / "long" / "1.json"
    content = json.loads(damaged.read_text())
    content["patients"]["a1"][0]["classes"]["ggo"]["box"] += "1"
    damaged.write_text(json.dumps(content))
    with pytest.raises(CTMaskNetError, match=r"1\.json: .*a hit for every score"):
        run_plan(plan(), *places, call=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "slices", "normals": None}, "seg_light.yaml of arm short finds lesions, but the"),
        ({"task": "slices"}, "normals goes with task: lesions"),
        (
            {"config_file": "configs/cls_light.yaml"},
            "cls_light.yaml of arm short names slices, but",
        ),
        ({"task": "boxes"}, "task is 'boxes', where 'slices' or 'lesions' is expected"),
    ],
)
def test_a_plan_of_another_task_is_refused_at_the_start(plan, tmp_path, changes, message):
    with pytest.raises(CTMaskNetError, match=message):
        run_plan(plan(**changes), tmp_path / "results", tmp_path / "work", call=None)


def test_a_step_reads_the_environment(plan, roots, tmp_path, monkeypatch):
    step = {"command": "datasets/x.py --source $RAW_OF_TEST/set", "makes": str(tmp_path / "none")}
    folds = {"a": {"datasets": str(roots / "a"), "prepare": [step]}}
    places = (tmp_path / "results", tmp_path / "work")
    monkeypatch.delenv("RAW_OF_TEST", raising=False)
    with pytest.raises(CTMaskNetError, match=r"no RAW_OF_TEST, which makes .*none; export RAW_OF_"):
        run_plan(plan(folds=folds), *places, call=None)
    monkeypatch.setenv("RAW_OF_TEST", "/some where")
    tools = Tools()
    run_plan(plan(folds=folds), *places, call=tools)
    assert tools.calls[0] == ["datasets/x.py", "--source", "/some where/set"]
