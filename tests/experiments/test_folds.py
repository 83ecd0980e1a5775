"""Cross-validation: no model sees a patient of its fold, and every slice is predicted once."""

import csv
import json
import runpy
from collections import Counter

import pytest
import torch
from pycocotools.cocoeval import COCOeval

from ctmasknet.data.registry import dataset_dicts, lesion_truth, patients_of
from ctmasknet.data.sets.folds import SetFold, fold_dicts, fold_named
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.evaluation.subgroups import group_columns
from ctmasknet.experiments.folds import train_folds
from tests.helpers.running import run_tool
from tests.test_train_net import TINY


def slices(patients, label=None):
    """Two slices a patient, the class by the patient's number."""
    return [
        {"file_name": f"{p}_{n}", "patient": str(p), "label": p % 3 if label is None else label}
        for p in patients
        for n in range(2)
    ]


def test_folds_are_whole_patients_of_alike_classes():
    dicts = slices(range(30))
    folds = [SetFold("a", n, 5, 7, rest=False) for n in range(1, 6)]
    parts = [fold_dicts(fold, dicts) for fold in folds]
    assert sorted(one["file_name"] for part in parts for one in part) == sorted(
        one["file_name"] for one in dicts
    )
    for fold, part in zip(folds, parts, strict=True):
        assert Counter(one["label"] for one in part) == {0: 4, 1: 4, 2: 4}
        others = fold_dicts(fold._replace(rest=True), dicts)
        assert not {one["patient"] for one in part} & {one["patient"] for one in others}
        assert len(part) + len(others) == len(dicts)
        assert fold_named(fold.name) == fold and fold_named(fold.base) is None
    assert fold_dicts(folds[0], dicts) == parts[0]
    assert fold_dicts(folds[0]._replace(seed=8), dicts) != parts[0]


def test_folds_of_lesions_have_each_class_of_lesions_alike():
    dicts = [
        {
            "file_name": f"{p}_{n}",
            "patient": str(p),
            "annotations": [{"category_id": c} for c in of],
        }
        for p, of in enumerate([(), (0,), (1, 0), (0, 0)] * 4)
        for n in range(2)
    ]
    for number in (1, 2):
        part = fold_dicts(SetFold("a", number, 2, 0, rest=False), dicts)
        shown = Counter(tuple(sorted({c["category_id"] for c in x["annotations"]})) for x in part)
        assert shown == {(): 4, (0,): 8, (0, 1): 4}
    with pytest.raises(CTMaskNetError, match="class 1 has too few patients for folds"):
        fold_dicts(SetFold("a", 1, 2, 0, rest=False), dicts[:8])


def test_folds_that_cannot_be():
    fold = SetFold("a", 1, 5, 0, rest=False)
    for dicts, message in (
        (slices(range(4)), "data set a: 4 patients cannot fill 5 folds; ask for fewer"),
        ([*slices(range(0, 30, 3)), *slices([1])], "class 1 has too few patients for folds"),
        ([{"file_name": "a.png", "label": 1}], "has slices without a patient or a class"),
    ):
        with pytest.raises(CTMaskNetError, match=message):
            fold_dicts(fold, dicts)
    with pytest.raises(CTMaskNetError, match="a@6of5seed0: no such fold"):
        fold_named("a@6of5seed0")


def test_every_slice_is_predicted_by_the_model_that_has_not_seen_its_patient(
    repository, clean_catalogs, prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)
    calls, end_at = [], [3]

    def call(words, environment, log):
        calls.append(words)
        if len(calls) == end_at[0]:
            raise KeyboardInterrupt
        return run_tool(repository, *words)

    given = ["--config-file", "configs/cls_light.yaml", "--folds", "2", *TINY, "MODEL.WEIGHTS", ""]
    given += ["SOLVER.MAX_ITER", "1", "OUTPUT_DIR", tmp_path / "out"]
    parse = runpy.run_path(str(repository / "tools" / "train_net.py"))["parse"]

    def run(*more):
        return train_folds(parse([*map(str, given), *more]), call=call)

    with pytest.raises(KeyboardInterrupt):
        run()
    with pytest.raises(CTMaskNetError, match="holds these folds already; `resume` goes on"):
        run()
    with pytest.raises(CTMaskNetError, match=r"made with another opts .*; `overwrite` begins"):
        run("--resume", "SOLVER.BASE_LR", "0.1")
    end_at[0] = None
    metrics = run("--resume")
    of_first = [words for words in calls if str(tmp_path / "out" / "fold1") in words]
    assert len(of_first) == 2, "training and evaluation of a fold that is done are not repeated"
    with (tmp_path / "out" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [
        entry["image_id"] for entry in dataset_dicts("covidx_ct_train")
    ]
    for number in "12":
        mine = {row["patient"] for row in rows if row["fold"] == number}
        model = torch.load(tmp_path / "out" / f"fold{number}" / "model_best.pth", weights_only=True)
        (trained_on,) = [one for one in model["trained_on"] if one["task"] == "classification"]
        others = {entry["patient"] for entry in dataset_dicts(trained_on["dataset"])}
        assert mine and others == patients_of("covidx_ct_train")[0] - mine
        logits = tmp_path / "out" / f"fold{number}" / "inference"
        assert (logits / f"covidx_ct_train@{number}of2seed7" / "predictions.csv").is_file()
    right = sum(row["label"] == row["pred"] for row in rows)
    assert metrics["accuracy"] == pytest.approx(100 * right / len(rows))
    assert "out of fold: " in capsys.readouterr().out
    found, _ = read_predictions_csv(tmp_path / "out" / "predictions.csv")
    assert list(group_columns(found)) == ["fold"]


def test_every_lesion_is_found_by_the_model_that_has_not_seen_its_patient(
    repository, clean_catalogs, prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)
    parse = runpy.run_path(str(repository / "tools" / "train_net.py"))["parse"]
    given = ["--config-file", "configs/seg_light.yaml", "--folds", "2", *TINY]
    given += ["SOLVER.MAX_ITER", "1", "DATASETS.VAL", "()", "SOLVER.BEST_METRIC", ""]
    given += ["OUTPUT_DIR", tmp_path / "out"]

    def call(words, environment, log):
        return run_tool(repository, *words)

    train_folds(parse(list(map(str, given))), call=call)
    assert "fold 2 of 2: box AP50 " in capsys.readouterr().out
    name, out = "cncb_lesions_merge_train", tmp_path / "out"
    entries = {entry["image_id"]: entry for entry in dataset_dicts(name)}
    truth = lesion_truth(name)
    whole = []
    for number in (1, 2):
        mine = {entry["image_id"] for entry in dataset_dicts(f"{name}@{number}of2seed7")}
        model = torch.load(out / f"fold{number}" / "model_final.pth", weights_only=True)
        (trained_on,) = model["trained_on"]
        others = {entry["patient"] for entry in dataset_dicts(trained_on["dataset"])}
        assert mine and not others & {entries[image]["patient"] for image in mine}
        # As if the fold's model had found every second lesion, and one that is none
        keys = ("image_id", "category_id", "bbox", "segmentation")
        found = [
            {key: one[key] for key in keys} | {"score": 0.5 + 0.01 * one["id"]}
            for one in truth.anns.values()
            if one["image_id"] in mine and one["id"] % 2
        ]
        found.append({**found[0], "image_id": min(mine - {found[0]["image_id"]}), "score": 0.55})
        folder = out / f"fold{number}" / "inference" / f"{name}@{number}of2seed7"
        assert json.loads((folder / "results.json").read_text()).keys() >= {"bbox", "segm", "dice"}
        (folder / "coco_instances_results.json").write_text(json.dumps(found))
        whole += found
    figures = train_folds(parse([*map(str, given), "--resume"]), call=None)
    document = json.loads((out / "lesions.json").read_text())
    assert [image["id"] for image in document["images"]] == sorted(entries)
    assert f"out of fold: {len(entries)} slices, box AP50 " in capsys.readouterr().out
    assert sorted(one["score"] for one in document["annotations"]) == sorted(
        one["score"] for one in whole
    )
    by_hand = COCOeval(truth, truth.loadRes(whole), "segm")
    by_hand.params.maxDets = [1, 10, 128]
    by_hand.evaluate()
    by_hand.accumulate()
    precision = by_hand.eval["precision"][0, :, :, 0, -1]
    assert 10 < figures["segm"]["AP50"] < 60
    assert figures["segm"]["AP50"] == pytest.approx(100 * precision[precision > -1].mean())
    saved = json.loads((out / "results.json").read_text())
    assert saved["segm"]["AP50"] == pytest.approx(figures["segm"]["AP50"])
    assert set(saved) == {"bbox", "segm", "lesion_free", "per_image", "dice"}
