"""Bad slices in training, evaluation and kept rows: an error that names one, or skipped and
listed."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from ctmasknet.data.bad_slices import BadSlices
from ctmasknet.engine.train_data import TRAINING, build_train_loader
from ctmasknet.errors import CTMaskNetError
from tests.engine.test_resume import same, without_timings
from tests.helpers.killing import KILLED, train
from tests.helpers.running import run_tool
from tests.test_train_net import TINY

DICTS = [{"file_name": f"{number}.png"} for number in range(10)]


def read(entry):
    """A mapper that cannot read files 3 and 7."""
    if entry["file_name"] in ("3.png", "7.png"):
        raise CTMaskNetError(f"{entry['file_name']}: damaged")
    return {**entry, "drawn": float(torch.rand(1)) * 0}


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.SEED = 5
    tiny_cfg.SOLVER.IMS_PER_BATCH = 4
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    tiny_cfg.DATALOADER.BAD_SLICES = "skip"
    tiny_cfg.DATALOADER.MAX_BAD_SHARE = 0.2
    return tiny_cfg


def names(cfg, count, start=0, **given):
    loader = build_train_loader(cfg, read, DICTS, **given)
    loader.batch_sampler.start = start
    batches = iter(loader)
    return [[item["file_name"] for item in next(batches)] for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_slice_is_an_error_that_names_it(cfg, workers):
    cfg.DATALOADER.BAD_SLICES = "error"
    with pytest.raises(CTMaskNetError) as error:
        names(cfg, 10, num_workers=workers)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("3.png: damaged", "7.png: damaged"))


def test_a_bad_slice_is_replaced_by_seed_and_position(cfg):
    bad = BadSlices.from_cfg(cfg, {TRAINING: 10})
    whole = names(cfg, 15, bad=bad)
    assert bad.report() == {
        "max_share": 0.2,
        "sets": {
            TRAINING: {
                "total": 10,
                "bad": 2,
                "share": 0.2,
                "files": [
                    {"file": "3.png", "reason": "damaged"},
                    {"file": "7.png", "reason": "damaged"},
                ],
            }
        },
    }
    assert bad.exceeded() is None
    drawn = [name for batch in whole for name in batch]
    assert len(drawn) == 60
    assert set(drawn) == {entry["file_name"] for entry in DICTS} - {"3.png", "7.png"}
    assert names(cfg, 15, num_workers=2) == whole
    assert names(cfg, 5, start=10) == whole[10:]
    # Others stay where they would be without bad slices.
    cfg.DATALOADER.BAD_SLICES = "error"
    loader = iter(build_train_loader(cfg, dict, DICTS))
    expected = [item["file_name"] for _ in range(15) for item in next(loader)]
    stands_in = [(want, got) for want, got in zip(expected, drawn, strict=True) if want != got]
    assert {want for want, _ in stands_in} == {"3.png", "7.png"}
    assert len({got for _, got in stands_in}) > 2


def test_too_many_bad_slices(cfg):
    cfg.DATALOADER.MAX_BAD_SHARE = 0.1
    bad = BadSlices.from_cfg(cfg, {TRAINING: 10})
    names(cfg, 15, bad=bad)
    assert bad.exceeded() == (
        "training: 2 of 10 slices are bad (20.00 %), more than DATALOADER.MAX_BAD_SHARE 0.1 "
        "allows; the first is 3.png: damaged"
    )
    cfg.DATALOADER.MAX_BAD_SHARE = 1.0
    only_bad = build_train_loader(cfg, read, [DICTS[3], DICTS[7]])
    with pytest.raises(CTMaskNetError, match="training: no slice can be read"):
        next(iter(only_bad))


def test_processes_know_together_what_each_met(cfg):
    ours, theirs = (BadSlices.from_cfg(cfg, {"a": 10, "b": 10}) for _ in range(2))
    ours.add("1.png", "seen here", "a")
    for file, name in (("1.png", "a"), ("2.png", "a"), ("1.png", "b")):
        theirs.add(file, "seen there", name)
    met = theirs.state_dict()
    ours.gather(lambda mine: [mine, {name: theirs.files(name) for name in "ab"}])
    assert ours.files("a") == {"1.png": "seen here", "2.png": "seen there"}
    assert ours.files("b") == {"1.png": "seen there"}
    again = BadSlices.from_cfg(cfg, {"a": 10})
    again.load_state_dict(met)
    assert again.report()["sets"].keys() == {"a"}
    assert again.files("a").keys() == {"1.png", "2.png"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BAD_SLICES", "drop", "BAD_SLICES is 'drop'; choose one of error, skip"),
        ("MAX_BAD_SHARE", 2.0, "MAX_BAD_SHARE is 2.0; set a share of 0 to 1"),
    ],
)
def test_unknown_values(cfg, key, value, message):
    cfg.DATALOADER[key] = value
    with pytest.raises(CTMaskNetError, match=message):
        BadSlices.from_cfg(cfg, {})


@pytest.fixture(scope="module")
def damaged(prepared, tmp_path_factory):
    """The prepared sets, with two of 18 training slices damaged or missing, one of 12 validation
    slices and a lesion slice of each split damaged. Root of the sets, and the files by set."""
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(prepared.parent, root, dirs_exist_ok=True)
    for path in (root / "sets").rglob("*.json"):
        path.write_text(path.read_text().replace(str(prepared.parent), str(root)))
    bad = {}
    for name, indices in {"train": (2, 5), "val": (4,)}.items():
        document = json.loads((root / "sets" / "covidx_ct" / "slices" / f"{name}.json").read_text())
        home = Path(document["info"]["image_root"])
        bad[name] = [home / document["slices"][index]["file"] for index in indices]
        lesions = root / "sets" / "cncb_lesions" / "annotations" / f"merge_{name}.json"
        document = json.loads(lesions.read_text())
        image = document["images"][document["annotations"][0]["image_id"] - 1]
        bad[f"lesions {name}"] = [Path(document["info"]["image_root"]) / image["file_name"]]
    bad["train"][1].unlink()
    for file in (bad["train"][0], *bad["val"], *bad["lesions train"], *bad["lesions val"]):
        file.write_bytes(file.read_bytes()[:100])
    return root / "sets", {name: sorted(map(str, files)) for name, files in bad.items()}


SKIP = ["DATALOADER.BAD_SLICES", "skip", "DATALOADER.MAX_BAD_SHARE", "0.15"]
SHORT = ["SOLVER.MAX_ITER", 10, "TEST.EVAL_PERIOD", 5, "SOLVER.CHECKPOINT_PERIOD", 3]


def words(folder, *more, config="configs/cls_light.yaml"):
    return [
        *("--config-file", config, *more[:1], *TINY, *SHORT, "SOLVER.LOG_PERIOD", 2),
        *("MODEL.TRAINABLE", "heads", "MODEL.WEIGHTS", "", "OUTPUT_DIR", folder, *SKIP, *more[1:]),
    ]


def listed(report):
    sets = json.loads(report.read_text())["sets"]
    return {name: [item["file"] for item in found["files"]] for name, found in sets.items()}


def test_training_with_bad_slices_is_the_same_with_workers_and_when_resumed(
    repository, damaged, tmp_path
):
    sets, bad = damaged
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flip = ["INPUT.RANDOM_FLIP", "horizontal"]
    assert train(repository, sets, words(whole, "--num-gpus=1", *flip)) == 0
    workers = [*flip, "DATALOADER.NUM_WORKERS", 2]
    killed = words(broken, "--num-gpus=1", *workers)
    assert train(repository, sets, killed, ("step", 8)) == KILLED
    assert train(repository, sets, words(broken, "--resume", *workers)) == 0
    expected = {TRAINING: bad["train"], "covidx_ct_val": bad["val"]}
    for run in (whole, broken):
        assert listed(run / "bad_slices.json") == expected
    assert (broken / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    ours, theirs = (
        without_timings(torch.load(run / "model_final.pth", weights_only=True))
        for run in (broken, whole)
    )
    assert same(ours, theirs)


@pytest.fixture
def tool(repository, damaged, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(damaged[0]))
    monkeypatch.chdir(repository)
    return lambda *words: run_tool(repository, "tools/train_net.py", *words)


def test_kept_rows_and_evaluation_leave_bad_slices_out(tool, damaged, tmp_path, capfd):
    _, bad = damaged
    expected = {TRAINING: bad["train"], "covidx_ct_val": bad["val"]}
    rows = ["MODEL.RANKED_BOXES.CACHE", "always", "MODEL.RANKED_BOXES.CACHE_DIR", tmp_path / "rows"]
    for run in ("first", "second"):  # the second reads what the first kept
        assert tool(*words(tmp_path / run, "--num-gpus=1", *rows)) == 0
        report = tmp_path / run / "bad_slices.json"
        assert listed(report) == expected
        assert "truncated" in report.read_text()
    assert len(list((tmp_path / "rows").iterdir())) == 2
    final = [torch.load(tmp_path / run / "model_final.pth")["model"] for run in ("first", "second")]
    assert same(*final)

    test = ["DATASETS.TEST", "('covidx_ct_val',)"]
    weights = ["MODEL.WEIGHTS", tmp_path / "first" / "model_final.pth"]
    assert tool(*words(tmp_path / "first", "--eval-only", *test, *weights)) == 0
    folder = tmp_path / "first" / "inference"
    assert listed(folder / "bad_slices.json") == {"covidx_ct_val": bad["val"]}
    with (folder / "covidx_ct_val" / "predictions.csv").open() as stream:
        files = [row["file"] for row in csv.DictReader(stream)]
    assert len(files) == 11
    assert not any(bad["val"][0].endswith(file) for file in files)
    capfd.readouterr()
    less = ["DATALOADER.MAX_BAD_SHARE", "0.05"]
    assert tool(*words(tmp_path / "first", "--eval-only", *test, *weights, *less)) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: covidx_ct_val: 1 of 12 slices are bad (8.33 %), more than")
    assert error.endswith(f"all are listed in {folder / 'bad_slices.json'}")


def test_training_ends_with_an_error_when_too_many_were_bad(tool, damaged, tmp_path, capfd):
    _, bad = damaged
    less = ["DATALOADER.MAX_BAD_SHARE", "0.1"]
    assert tool(*words(tmp_path / "run", "--num-gpus=1", *less)) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "training: 2 of 18 slices are bad (11.11 %), more than DATALOADER.MAX_BAD" in error
    assert listed(tmp_path / "run" / "bad_slices.json")[TRAINING] == bad["train"]
    # Their headers tell, so before any model runs
    assert not (tmp_path / "run" / "ranked_boxes").exists()
    off = ["DATALOADER.BAD_SLICES", "error", "DATALOADER.NUM_WORKERS", 1]
    assert tool(*words(tmp_path / "other", "--num-gpus=1", *off)) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert any(file in error for file in (*bad["train"], *bad["val"]))


def test_detector_leaves_bad_slices_out(tool, damaged, tmp_path):
    """Lesions of a slice that cannot be read are neither trained on nor counted as missed."""
    _, bad = damaged
    config = "configs/seg_light.yaml"
    more = ["DATALOADER.MAX_BAD_SHARE", "0.3"]
    assert tool(*words(tmp_path / "seg", "--num-gpus=1", *more, config=config)) == 0
    expected = {TRAINING: bad["lesions train"], "cncb_lesions_merge_val": bad["lesions val"]}
    assert listed(tmp_path / "seg" / "bad_slices.json") == expected
    lines = (tmp_path / "seg" / "metrics.json").read_text().splitlines()
    assert math.isfinite(json.loads(lines[-1])["validation/total_loss"])
