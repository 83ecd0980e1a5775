"""Both tasks through tools/train_net.py, as a user runs it, on small phantoms."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ctmasknet.engine.setup import training_cfg
from tests.helpers.running import run_tool

TINY = [
    *("MODEL.DEVICE", "cpu", "SEED", "7", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.RANDOM_FLIP", "none"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "32", "MODEL.RANKED_BOXES.NUM", "16"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0", "TEST.PICTURES", "0"),
    # Processes that a test starts compute as it does
    *("MODEL.INFERENCE.ENGINE", "torch"),
]


@pytest.fixture(scope="module")
def runs(repository, prepared, tmp_path_factory):
    """Folder of a detector trained for 3 steps and a classifier trained on it for 4, both
    evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(prepared))
        patch.chdir(repository)
        seg = ["--config-file", "configs/seg_light.yaml"]
        cls = ["--config-file", "configs/cls_light.yaml"]
        seg_out = [*TINY, "TEST.PICTURES", "2", "OUTPUT_DIR", folder / "seg"]
        cls_out = [*TINY, "TEST.PICTURES", "2", "OUTPUT_DIR", folder / "cls"]
        short = ["TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.MAX_ITER"]
        weights = ["MODEL.WEIGHTS", folder / "seg" / "model_best.pth"]
        for words in (
            [*seg, *seg_out, *short, 3],
            [*seg, "--eval-only", *seg_out],
            [*cls, *cls_out, *short, 4, *weights],
            [*cls, "--eval-only", *cls_out],
        ):
            assert run_tool(repository, "tools/train_net.py", *words) == 0
    return folder


def results(run, dataset):
    return json.loads((run / "inference" / dataset / "results.json").read_text())


def test_training_leaves_what_users_expect(runs):
    for run, metric in ((runs / "seg", "segm/AP50"), (runs / "cls", "slices/accuracy")):
        files = {path.name for path in run.iterdir()}
        assert {"config.yaml", "metrics.json", "model_best.pth", "model_final.pth"} <= files
        assert any(name.startswith("events.out.tfevents") for name in files)
        lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
        assert any(metric in line for line in lines)
        assert not [name for name in files if ".part" in name]


def test_training_looks_at_the_validation_set_only(runs):
    """The test set is evaluated by --eval-only alone, after training."""
    for run in (runs / "seg", runs / "cls"):
        log = (run / "log.txt").read_text()
        training = log[: log.index("Evaluation, process 0 of 1")]
        assert "_val in csv format" in training
        assert "copypaste: \n" not in training, "a task without a figure"
        assert "_test" not in training[training.index("Starting training") :]


def test_tensorboard_shows_slices_and_settings(runs):
    for run, dataset, metric in (
        (runs / "seg", "cncb_lesions_merge_val", "segm/AP50"),
        (runs / "cls", "covidx_ct_val", "slices/accuracy"),
    ):
        events = EventAccumulator(str(run), {"images": 0, "scalars": 0, "tensors": 0}).Reload()
        # Two slices, each at both evaluations
        shown = events.Tags()["images"]
        assert len(shown) == 2 and all(name.startswith(f"predictions/{dataset}/") for name in shown)
        for name in shown:
            steps = [event.step for event in events.Images(name)]
            assert steps == [1, 2] if run.name == "seg" else steps == [1, 3]
            picture = np.asarray(
                Image.open(io.BytesIO(events.Images(name)[-1].encoded_image_string))
            )
            assert picture.shape[2] == 3 and len(np.unique(picture)) > 50
        plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        settings = HParamsPluginData.FromString(plugin).session_start_info.hparams
        assert settings["SOLVER.IMS_PER_BATCH"].number_value == 2
        assert settings["MODEL.FPN.OUT_CHANNELS"].number_value == 16
        (final,) = events.Scalars(f"final/{metric}")
        last = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()][-1]
        assert final.value == pytest.approx(last[metric], rel=1e-5)


def test_keys_without_effect_are_told(runs):
    line = "MODEL.RANKED_BOXES.NUM 16 has no effect: it is a classifier's"
    assert line in (runs / "seg" / "log.txt").read_text()
    assert "has no effect" not in (runs / "cls" / "log.txt").read_text()


def test_lesion_results(runs):
    found = results(runs / "seg", "cncb_lesions_merge_val")
    assert set(found) == {"bbox", "segm", "lesion_free", "per_image", "dice"}
    for task in ("bbox", "segm"):
        assert 0 <= found[task]["AP50"] <= 100


def test_slice_results_agree_with_the_predictions(runs):
    folder = runs / "cls" / "inference" / "covidx_ct_test"
    with (folder / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    classes = ["normal", "pneumonia", "covid"]
    assert list(rows[0]) == [
        *("file", "patient", "scan", "label", "pred"),
        *(f"logit_{name}" for name in classes),
        *(f"score_{name}" for name in classes),
    ]
    assert len(rows) == 12
    right = sum(row["label"] == row["pred"] for row in rows)
    assert results(runs / "cls", "covidx_ct_test")["slices"]["accuracy"] == pytest.approx(
        100 * right / len(rows)
    )
    for row in rows:
        logits = torch.tensor([float(row[f"logit_{name}"]) for name in classes])
        assert classes[int(logits.argmax())] == row["pred"]
        assert float(row["score_covid"]) == pytest.approx(logits[2].sigmoid().item(), abs=1e-6)


def test_classifier_started_from_the_detector(runs):
    """Weights that `full` cannot reach are those of the detector; the box head has moved."""
    seg, cls = (
        torch.load(runs / name / "model_best.pth", weights_only=True)["model"]
        for name in ("seg", "cls")
    )
    rpn = "proposal_generator.rpn_head.conv.weight"
    assert torch.equal(seg[rpn], cls[rpn])
    assert not torch.equal(
        seg["roi_heads.box_head.fc1.weight"], cls["roi_heads.box_head.fc1.weight"]
    )


def test_resume_continues_where_training_stopped(repository, runs, prepared, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)
    run = runs / "cls"
    before = torch.load(run / "model_final.pth", weights_only=True)
    words = ["--config-file", "configs/cls_light.yaml", "--resume", *TINY, "OUTPUT_DIR", run]
    more = ["SOLVER.MAX_ITER", 6, "MODEL.WEIGHTS", runs / "seg" / "model_best.pth"]
    assert run_tool(repository, "tools/train_net.py", *words, *more) == 0
    after = torch.load(run / "model_final.pth", weights_only=True)
    assert (before["iteration"], after["iteration"]) == (3, 5)
    log = (run / "log.txt").read_text()
    assert "Starting training from iteration 4" in log
    assert not torch.equal(
        before["model"]["image_head.fc1.weight"], after["model"]["image_head.fc1.weight"]
    )


@pytest.fixture
def tool(repository, prepared, monkeypatch, capsys):
    """Run train_net.py; returns its exit code and its error line."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)

    def call(*words):
        code = run_tool(repository, "tools/train_net.py", *words)
        return code, capsys.readouterr().err.strip().splitlines()[-1]

    return call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "configs/none.yaml"], "configs/none.yaml: no such configuration"),
        ([], "no configuration: add --config-file"),
        (
            ["--config-file", "configs/cls.yaml"],
            "make it with tools/train_net.py (--config-file configs/seg.yaml)",
        ),
        (
            ["--config-file", "configs/demo/cls.yaml", "--eval-only", "OUTPUT_DIR", "none"],
            "train it with tools/train_net.py (--config-file configs/demo/cls.yaml)",
        ),
        (
            ["--config-file", "configs/seg_r18_t1_merge.yaml"],
            "tools/import_weights.py (--output output/imagenet/resnet18.pth)",
        ),
        (
            ["--config-file", "configs/seg_light.yaml", "DATASETS.TRAIN", "('no_such_train',)"],
            "data set no_such_train: not registered",
        ),
        (
            ["--config-file", "configs/seg_light.yaml", "DATASETS.TRAIN", "('covidx_ct_train',)"],
            "covidx_ct_train: has no thing_classes",
        ),
        (
            ["--config-file", "configs/cls_light.yaml", "MODEL.TRAINABLE", "half"],
            "MODEL.TRAINABLE is 'half'; choose one of heads, heads_bn",
        ),
        (["--config-file", "configs/seg.yaml", "MODEL.NONE", "1"], "override: "),
        (
            ["--config-file", "configs/seg_light.yaml", "SOLVER.OPTIMIZER", "LION"],
            "SOLVER.OPTIMIZER is 'LION'",
        ),
    ],
)
def test_bad_input_is_one_clear_line(tool, words, message, tmp_path):
    if "OUTPUT_DIR" not in words and words:
        words = [*words, "OUTPUT_DIR", tmp_path / "out"]
    code, line = tool(*words)
    assert code == 2
    assert line.startswith("error: ")
    assert message in line


def test_checkpoint_of_other_rows_is_refused(tool, runs, tmp_path):
    weights = runs / "cls" / "model_best.pth"
    code, line = tool(
        *("--config-file", "configs/cls_light.yaml", "--eval-only", *TINY),
        *("MODEL.RANKED_BOXES.NUM", 8, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path),
    )
    assert code == 2
    assert line.startswith(f"error: {weights}: MODEL.RANKED_BOXES.NUM is 16 in this checkpoint")


def test_two_classes_come_from_the_data_set(repository, prepared, tmp_path, monkeypatch):
    """A set of two classes trains and evaluates without touching the class count."""
    document = json.loads((prepared / "covidx_ct" / "slices" / "train.json").read_text())
    two = tmp_path / "sets" / "two" / "slices"
    two.mkdir(parents=True)
    kept = [item for item in document["slices"] if item["label"] != 1]
    for item in kept:
        item["label"] //= 2
    patients = sorted({item["patient"] for item in kept})
    info = {
        **document["info"],
        "image_root": str((two / document["info"]["image_root"]).resolve())
        if not document["info"]["image_root"].startswith("/")
        else document["info"]["image_root"],
    }
    for split, group in (("train", patients[::2]), ("test", patients[1::2])):
        part = [item for item in kept if item["patient"] in group]
        (two / f"{split}.json").write_text(
            json.dumps({"info": info, "classes": ["normal", "covid"], "slices": part})
        )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    monkeypatch.chdir(repository)
    common = [
        *("--config-file", "configs/cls_light.yaml", *TINY, "MODEL.TRAINABLE", "heads"),
        *("DATASETS.TRAIN", "('two_train',)", "DATASETS.VAL", "('two_test',)"),
        *("DATASETS.TEST", "('two_test',)", "OUTPUT_DIR", tmp_path / "run"),
        *("SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 1),
    ]
    assert run_tool(repository, "tools/train_net.py", *common, "MODEL.WEIGHTS", "") == 0
    common.insert(2, "--eval-only")
    assert run_tool(repository, "tools/train_net.py", *common) == 0
    names = set(results(tmp_path / "run", "two_test")["slices"])
    assert {"sensitivity-normal", "sensitivity-covid"} <= names
    assert "sensitivity-pneumonia" not in names


def test_without_a_seed_a_resumed_training_keeps_the_order_it_drew(
    repository, prepared, tmp_path, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)
    words = ["--config-file", "configs/cls_light.yaml", *TINY, "SEED", -1, "MODEL.WEIGHTS", ""]
    words += ["DATASETS.VAL", "()", "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER"]
    seeds = []
    for flags, last in (([], 1), (["--resume"], 2)):
        assert run_tool(repository, "tools/train_net.py", *flags, *words, last) == 0
        final = torch.load(tmp_path / "model_final.pth", weights_only=True)
        assert final["iteration"] == last - 1
        seeds.append(final["trainer"]["data_seed"])
    assert seeds[0] == seeds[1] >= 0


def test_resuming_with_another_configuration_is_refused(tool, runs):
    words = ["--config-file", "configs/cls_light.yaml", "--resume", *TINY, "OUTPUT_DIR"]
    words += [runs / "cls", "SOLVER.MAX_ITER", 9, "MODEL.TRAINABLE", "heads", "MODEL.WEIGHTS", ""]
    code, line = tool(*words)
    assert code == 2
    assert "the last checkpoint's training state does not fit" in line


def test_window_of_a_prepared_set_has_to_be_the_configurations(
    repository, prepared, tmp_path, monkeypatch, capfd
):
    """Sets of volumes say through which window their slices were written."""
    sets = tmp_path / "sets"
    for folder in ("covidx_ct", "cncb_lesions"):
        for path in (prepared / folder).rglob("*.json"):
            document = json.loads(path.read_text())
            document["info"]["window_hu"] = [40, 400]
            copy = sets / path.relative_to(prepared)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(json.dumps(document))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(sets))
    monkeypatch.chdir(repository)
    for config, name in (("seg", "cncb_lesions_merge"), ("cls", "covidx_ct")):
        words = ["--config-file", f"configs/{config}_light.yaml", "MODEL.WEIGHTS", ""]
        for flags, split in (([], "train"), (["--eval-only"], "(val|test)")):
            assert run_tool(repository, "tools/train_net.py", *words[:2], *flags, *words[2:]) == 2
            error = capfd.readouterr().err.strip().splitlines()[-1]
            assert re.match(
                rf"error: {name}_{split}: its slices were written through the window 40,400 .* but "
                "INPUT.WINDOW_CENTER_HU is -700 and INPUT.WINDOW_WIDTH_HU 1000; prepare the set "
                "again with --window=-700,1000, or set INPUT.WINDOW_CENTER_HU 40.0 "
                "INPUT.WINDOW_WIDTH_HU 400.0$",
                error,
            ), error
        fix = error.partition("or set ")[2].split()
        assert training_cfg(words[1], ["MODEL.WEIGHTS", "", *fix]).INPUT.WINDOW_WIDTH_HU == 400
