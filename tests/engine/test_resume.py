"""A training that is killed again and again ends as one that never was."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ctmasknet.config_file import read_cfg
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.engine.metrics import is_timing
from ctmasknet.engine.trainer import Trainer
from ctmasknet.errors import CTMaskNetError
from tests.helpers.killing import KILLED, POINTS, train
from tests.helpers.running import run_tool
from tests.test_train_net import TINY

#: Iterations, and periods that do not fall together.
SCHEDULE = [
    *("SOLVER.MAX_ITER", 13, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 3),
    *("SOLVER.LOG_PERIOD", 2, "INPUT.RANDOM_FLIP", "horizontal"),
]
TASKS = {
    "segmentation": [
        *("configs/seg_light.yaml", "DATALOADER.NUM_WORKERS", 1, "TEST.PICTURES", 1),
        *("INPUT.AUGMENTATION.ROTATION_DEG", 20.0, "INPUT.AUGMENTATION.ELASTIC_PX", 3.0),
        *("INPUT.AUGMENTATION.NOISE_STD", 5.0, "DATALOADER.SAMPLER_TRAIN", "LesionBalancedSampler"),
        *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"),
    ],
    "heads": ["configs/cls_light.yaml", "MODEL.TRAINABLE", "heads"],
    "heads on kept rows": [
        *("configs/cls_light.yaml", "MODEL.TRAINABLE", "heads"),
        *("INPUT.RANDOM_FLIP", "none", "MODEL.RANKED_BOXES.CACHE", "always"),
    ],
    "heads_bn": [
        *("configs/cls_light.yaml", "MODEL.TRAINABLE", "heads_bn"),
        *("MODEL.BACKBONE.FREEZE_AT", 0),
    ],
    "full": [
        *("configs/cls_light.yaml", "MODEL.TRAINABLE", "full"),
        *("INPUT.AUGMENTATION.PRESET", "covidnet_ct", "INPUT.CROP_TO_BODY", "True"),
        *("DATALOADER.SAMPLER_TRAIN", "ClassBalancedSampler"),
    ],
}


def same(a, b) -> bool:
    """Whether two nested structures are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def without_timings(checkpoint):
    """The checkpoint without what clocks say."""
    if "trainer" not in checkpoint:
        return checkpoint
    writers = checkpoint["trainer"]["hooks"]["MetricWriters"]
    writers["files"].pop("timings.json")
    writers["scalars"] = {k: v for k, v in writers["scalars"].items() if not is_timing(k)}
    return checkpoint


@pytest.mark.parametrize("task", TASKS)
def test_killed_training_ends_as_the_unbroken_one(task, repository, prepared, tmp_path):
    config, *overrides = TASKS[task]

    def command(folder, *flags):
        return [
            *("--config-file", config, *flags, *TINY, *SCHEDULE, *overrides),
            *("MODEL.WEIGHTS", "", "OUTPUT_DIR", folder),
        ]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    points = list(POINTS)
    chance = random.Random(task)
    chance.shuffle(points)
    kills = [
        (point, chance.randint(1, 3 if point in ("step", "evaluation") else 2)) for point in points
    ]
    # The last one late, so that a best metric has been found by then.
    kills.append(("step", 6))
    flags = []
    for kill in kills:
        assert train(repository, prepared, command(broken, *flags), kill) == KILLED, kill
        flags = ["--resume"]
    assert train(repository, prepared, command(broken, *flags)) == 0
    assert train(repository, prepared, command(whole)) == 0

    for name in ("model_final.pth", "model_best.pth"):
        ours, theirs = (
            without_timings(torch.load(run / name, weights_only=True)) for run in (broken, whole)
        )
        for part in theirs:
            assert same(ours[part], theirs[part]), f"{name}: {part}"
    assert (broken / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert len((whole / "metrics.json").read_text().splitlines()) >= 5
    assert not [path for path in Path(broken).iterdir() if path.suffix == ".tmp"]


@pytest.fixture
def heads(repository, prepared, monkeypatch):
    """Train an image head: folder, iterations, flags, overrides."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)

    def call(folder, iterations, *flags, overrides=()):
        words = [
            *("--config-file", "configs/cls_light.yaml", *flags, *TINY, "MODEL.WEIGHTS", ""),
            *("MODEL.TRAINABLE", "heads", "SOLVER.LOG_PERIOD", 1, "OUTPUT_DIR", folder),
            *("SOLVER.MAX_ITER", iterations, *overrides),
        ]
        return run_tool(repository, "tools/train_net.py", *words)

    return call


def test_resumed_beyond_its_end_a_training_has_the_rates_of_the_longer_one(heads, tmp_path):
    rates = []
    schedule = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "DATASETS.VAL", "()"]
    for folder, *parts in ("whole", [4]), ("parts", [2], [4, "--resume"]):
        for part in parts:
            assert heads(tmp_path / folder, *part, overrides=schedule) == 0
        lines = (tmp_path / folder / "metrics.json").read_text().splitlines()
        rates.append([json.loads(line)["lr"] for line in lines])
    whole, parts = rates
    assert len(whole) == 4 and parts[2:] == whole[2:] and min(whole) > 0


def test_a_resumed_training_transfers_nothing_again(repository, prepared, monkeypatch, tmp_path):
    """What the weights of other classes gave is in its own checkpoint; their file may be gone."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)
    other = read_cfg("configs/seg_light.yaml", [*TINY, "MODEL.LESION_CLASSES", ["nodule"]])
    start = CTMaskNetCheckpointer(build_model(other), str(tmp_path), spec=spec_of(other))
    for folder, *parts in ("whole", [2]), ("parts", [1], [2, "--resume"]):
        start.save("start")
        for iterations, *flags in parts:
            words = [
                *("--config-file", "configs/seg_light.yaml", *flags, *TINY),
                *("MODEL.WEIGHTS", tmp_path / "start.pth", "MODEL.TRANSFER", "on"),
                # Of one rate, whatever the last iteration
                *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
                *("SOLVER.LOG_PERIOD", 1, "SOLVER.MAX_ITER", iterations, "DATASETS.VAL", "()"),
                *("OUTPUT_DIR", tmp_path / folder),
            ]
            assert run_tool(repository, "tools/train_net.py", *words) == 0
            (tmp_path / "start.pth").unlink(missing_ok=True)
    log = (tmp_path / "parts" / "log.txt").read_text()
    assert log.count("cls_score.weight starts anew (of other classes") == 1
    assert log.count("MODEL.TRANSFER: ") == log.count("starts anew (") + 1
    whole, parts = (
        torch.load(tmp_path / folder / "model_final.pth", weights_only=True)
        for folder in ("whole", "parts")
    )
    assert same(parts["model"], whole["model"])
    assert same(parts["trainer"]["_trainer"], whole["trainer"]["_trainer"])  # the optimizer's
    lines, of_whole = (
        [json.loads(line) for line in (tmp_path / folder / "metrics.json").read_text().splitlines()]
        for folder in ("parts", "whole")
    )
    assert lines == of_whole and len(lines) == 2


@pytest.mark.parametrize("ended", ["at its last iteration", "early"])
def test_resumed_at_its_very_end_a_training_is_recorded_as_an_unbroken_one(heads, tmp_path, ended):
    overrides = ["SOLVER.BEST_METRIC", "slices/loss", "TEST.EVAL_PERIOD", 1]
    if ended == "early":
        overrides += ["SOLVER.EARLY_STOPPING_PATIENCE", 1, "SOLVER.BASE_LR", 1e-30]
    assert heads(tmp_path, 4, overrides=overrides) == 0
    picture, record = tmp_path / "learning_curves.png", tmp_path / "run.json"
    drawn = picture.read_bytes()
    picture.unlink()
    assert heads(tmp_path, 4, "--resume", overrides=overrides) == 0
    assert picture.read_bytes() == drawn
    first, second = json.loads(record.read_text())["entries"]
    assert {"slices", "scans", "patients"} <= set(first["metrics"])
    assert first["iterations"] == (2 if ended == "early" else 4)
    for key in ("metrics", "iterations", "status", "best", "best_iteration"):
        assert second[key] == first[key], key


@pytest.mark.parametrize("fails_at", [2, 4])
def test_a_failing_evaluation_costs_nothing(heads, tmp_path, monkeypatch, capsys, fails_at):
    overrides = ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 0]
    overrides += ["SOLVER.EARLY_STOPPING_PATIENCE", 1, "SOLVER.BASE_LR", 1e-30]
    overrides += ["SOLVER.BEST_METRIC", "slices/accuracy"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert heads(whole, 6, overrides=overrides) == 0
    assert not list(whole.glob("*unevaluated*"))
    validate = Trainer.validate

    def failing(trainer):
        if trainer.iter + 1 == fails_at:
            raise CTMaskNetError("no")
        return validate(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", failing)
        for flags in ((), ("--resume",)):  # it fails again, and costs nothing again
            assert heads(broken, 6, *flags, overrides=overrides) == 2
            assert capsys.readouterr().err.strip().endswith("error: no")
            (left,) = (path.name for path in broken.glob("model_*.pth") if "best" not in path.name)
            assert left == "model_unevaluated.pth"
    assert heads(broken, 6, "--resume", overrides=overrides) == 0
    ours, theirs = (
        without_timings(torch.load(run / "model_final.pth", weights_only=True))
        for run in (broken, whole)
    )
    assert all(same(ours[part], theirs[part]) for part in theirs)
    assert ours["iteration"] == 3  # the second value is not better
    assert (broken / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert not list(broken.glob("*unevaluated*"))
    done = [json.loads((run / "run.json").read_text())["entries"][-1] for run in (broken, whole)]
    assert done[0]["iterations"] == done[1]["iterations"] == 4


@pytest.mark.parametrize("sets", ["('covidx_ct_val',)", "()"])
def test_weights_that_have_diverged_are_not_written(heads, tmp_path, capsys, sets):
    overrides = ["DATASETS.VAL", sets, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 3e38]
    overrides += ["SOLVER.WEIGHT_DECAY", 100.0]
    assert heads(tmp_path, 1, overrides=overrides) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(
        r"error: image_head\.\S+: is no finite number at iteration 0 \(last finite loss 0\.\d+\): "
        r"training has diverged; .* lower SOLVER\.BASE_LR$",
        error,
    ), error
    assert not list(tmp_path.glob("*.pth"))


def test_killed_after_its_last_checkpoint_a_training_is_finished_by_resuming(
    repository, prepared, tmp_path
):
    words = ["configs/cls_light.yaml", *TINY, "MODEL.WEIGHTS", "", "MODEL.TRAINABLE", "heads"]
    words = ["--config-file", *words, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path]
    assert train(repository, prepared, words, ("curves", 1)) == KILLED
    assert not (tmp_path / "learning_curves.png").exists()
    left = tmp_path / "inference" / "covidx_ct_val" / ".results.json.ab12.tmp"
    left.touch()
    assert train(repository, prepared, [*words[:2], "--resume", *words[2:]]) == 0
    assert (tmp_path / "learning_curves.png").exists() and not left.exists()
    killed, done = json.loads((tmp_path / "run.json").read_text())["entries"]
    assert (killed["status"], killed["error"]) == ("stopped", "killed")
    assert (done["status"], done["iterations"], done["run"]) == ("finished", 2, killed["run"])
    assert {"slices", "scans", "patients"} <= set(done["metrics"])


def test_the_terminal_writer_ends_before_it_was_timed(tmp_path, tiny_cfg):
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    trainer = Trainer.__new__(Trainer)
    trainer.cfg, trainer.max_iter, trainer.start_iter = tiny_cfg, 9, 0
    terminal, board = trainer.build_writers()
    with EventStorage() as storage:
        for _ in range(2):  # after the step, and after the training that ends there
            storage.put_scalar("lr", 0.1)
            terminal.write()
    board.close()
