"""A training is resumed with its own configuration and data."""

import json

import pytest

from ctmasknet.engine.record import read_record
from ctmasknet.engine.runs.identity import Identity
from ctmasknet.errors import CTMaskNetError
from tests.helpers.running import run_tool
from tests.test_train_net import TINY

DATA = {"train": [{"name": "a", "images": 3, "content_sha256": "0f", "patients": 2}], "val": []}


def changed(cfg, *overrides):
    other = cfg.clone()
    other.merge_from_list(list(overrides))
    return other


def resumed(cfg, *overrides, data=DATA, seed=1):
    """What a training by ``cfg`` on DATA is when it is resumed otherwise."""
    state = json.loads(json.dumps(Identity.of(cfg, 1, DATA).state()))
    return Identity.of(changed(cfg, *overrides), seed, data).resumed(state, "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("SEED", 5), ("SOLVER.BASE_LR", 0.5), ("SOLVER.WEIGHT_DECAY", 0.5)),
        *(("SOLVER.IMS_PER_BATCH", 3), ("DATASETS.TRAIN", ("b",)), ("DATASETS.VAL", ("b",))),
        *(("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"), ("MODEL.RPN.NMS_THRESH", 0.3)),
        *(("MODEL.TRAINABLE", "full"), ("SOLVER.BEST_METRIC", "slices/loss")),
        *(("INPUT.WINDOW_WIDTH_HU", 1.0), ("DATALOADER.SAMPLER_TRAIN", "x")),
    ],
)
def test_another_key_is_refused_by_name(tiny_cfg, key, value):
    with pytest.raises(CTMaskNetError, match=rf"does not fit \({key} is .* but was .*\); resume"):
        resumed(tiny_cfg, key, value)


def test_all_that_differs_is_named(tiny_cfg):
    with pytest.raises(CTMaskNetError, match=r"SEED is 5 but was .*; SOLVER\.BASE_LR is 0.5 but"):
        resumed(tiny_cfg, "SOLVER.BASE_LR", 0.5, "SEED", 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("SOLVER.MAX_ITER", 7), ("SOLVER.CHECKPOINT_PERIOD", 3), ("TEST.EVAL_EPOCHS", 2)),
        *(("DATALOADER.NUM_WORKERS", 9), ("OUTPUT_DIR", "x"), ("MODEL.DEVICE", "cuda")),
    ],
)
def test_how_long_and_where_it_is_computed_is_free(tiny_cfg, key, value, caplog):
    assert resumed(tiny_cfg, key, value).run == Identity.of(tiny_cfg, 1, DATA).run
    assert not caplog.records


def test_what_may_change_holds_and_is_told(tiny_cfg, caplog):
    with caplog.at_level("WARNING", "ctmasknet"):
        found = resumed(tiny_cfg, "DATALOADER.BAD_SLICES", "skip", "MODEL.WEIGHTS", "x.pth")
    assert "DATALOADER.BAD_SLICES is 'skip' but was 'error', which holds now" in caplog.text
    assert "MODEL.WEIGHTS is 'x.pth' but was" in caplog.text and "no effect" in caplog.text
    assert found.config["DATALOADER.BAD_SLICES"] == "skip"
    assert found.recorded()["weights"] == tiny_cfg.MODEL.WEIGHTS, "what it was begun with"


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"images": 4}, "a has 4 images but had 3"), ({"content_sha256": "1e"}, "a has other images")],
)
def test_other_data_of_the_same_name_are_refused(tiny_cfg, entry, message, caplog):
    data = {**DATA, "train": [{**DATA["train"][0], **entry}]}
    with pytest.raises(CTMaskNetError, match=message):
        resumed(tiny_cfg, data=data)
    # A slice that could not be read may be readable now
    tiny_cfg.DATALOADER.BAD_SLICES = "skip"
    if "images" not in entry:
        resumed(tiny_cfg, data=data)
        assert message in caplog.text


def test_an_earlier_checkpoint_states_nothing_to_compare(tiny_cfg, caplog):
    assert Identity.of(tiny_cfg, 1).resumed(None, "out").run is None
    assert "does not state its configuration" in caplog.text


def test_ids_are_of_what_the_result_depends_on(tiny_cfg):
    def run(*overrides, seed=1, data=DATA):
        return Identity.of(changed(tiny_cfg, *overrides), seed, data).run

    assert run() == run("OUTPUT_DIR", "x", "DATALOADER.NUM_WORKERS", 9)
    unlike = [
        run(),
        run(seed=2),
        run("SOLVER.MAX_ITER", 9),
        run("SEED", 3),
        run(data={"train": []}),
    ]
    assert len(set(unlike)) == len(unlike)


def test_a_refused_resume_leaves_the_folder_and_a_granted_one_is_recorded(
    repository, prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)

    def train_net(iterations, *overrides, flags=("--resume",)):
        words = ["--config-file", "configs/cls_light.yaml", *flags, *TINY, "MODEL.WEIGHTS", ""]
        words += ["MODEL.TRAINABLE", "heads", "SOLVER.MAX_ITER", iterations, "DATASETS.VAL", "()"]
        words += ["OUTPUT_DIR", tmp_path / "run", *overrides]
        return run_tool(repository, "tools/train_net.py", *words)

    def left():
        kept = ("run.json", "config.yaml", "metrics.json", "model_final.pth", "last_checkpoint")
        return [(tmp_path / "run" / name).read_bytes() for name in kept]

    assert train_net(1, flags=()) == 0
    before = left()
    assert train_net(2, "SOLVER.BASE_LR", 0.5) == 2
    assert "SOLVER.BASE_LR is 0.5 but was" in capsys.readouterr().err.strip().splitlines()[-1]
    assert train_net(2, "DATASETS.TRAIN", "('covidx_ct_val',)") == 2
    assert "DATASETS.TRAIN is " in capsys.readouterr().err.strip().splitlines()[-1]
    assert left() == before
    assert train_net(2, "DATALOADER.MAX_BAD_SHARE", 0.5) == 0
    first, second = read_record(tmp_path / "run")
    assert first["run"] == second["run"] and second["iterations"] == 2
    assert second["config"]["DATALOADER"]["MAX_BAD_SHARE"] == 0.5

    # The same names, other labels
    sets = tmp_path / "sets"
    (sets / "covidx_ct" / "slices").mkdir(parents=True)
    for split in ("train", "val", "test"):
        source = prepared / "covidx_ct" / "slices" / f"{split}.json"
        document = json.loads(source.read_text())
        root = (source.parent / document["info"]["image_root"]).resolve()
        document["info"]["image_root"] = str(root)
        document["slices"][0]["label"] = (document["slices"][0]["label"] + 1) % 3
        (sets / "covidx_ct" / "slices" / f"{split}.json").write_text(json.dumps(document))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(sets))
    before = left()
    assert train_net(3, "DATALOADER.MAX_BAD_SHARE", 0.5) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "covidx_ct_train has other images, labels or lesions" in error
    assert left() == before
