"""The works that are killed: tools with tiny inputs, a few seconds each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctmasknet.config_file import read_cfg
from ctmasknet.engine import ranked_box_cache
from tests.helpers.running import run_tool
from tests.helpers.small_world import SMALL, save_model, words, write_scans
from tests.kills.runner import REPOSITORY
from tests.test_train_net import TINY


@dataclass(frozen=True)
class Work:
    """A call of a tool.

    Attributes:
        tool: its path in the project.
        words: of the first call.
        again: of the next one, after the first was ended.
        watched: below the folder of the work; only there it is killed. Default: anywhere in it.
        given: a folder that is copied to the folder of the work first.
        prepare: called in the process of the tool first.
        starter: words for Python that start the tool in a process of its own, which has to load its
            libraries; it is then ended at random moments alone, for its steps cannot be told.
        needs: the inputs it reads, in the words of :func:`make_inputs`.
    """

    tool: str
    words: list[Any]
    again: list[Any]
    watched: str = ""
    given: Path | None = None
    prepare: Callable[[], None] | None = None
    starter: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ("raw", "sets", "run")


_TRAIN_NET = "tools/train_net.py"
_CLASSIFIER, _DETECTOR = "configs/cls_light.yaml", "configs/seg_light.yaml"
_PREPARE_LESIONS, _PREPARE_SLICES = (
    f"datasets/prepare_{name}.py" for name in ("cncb_lesions", "covidx_ct")
)
_LESIONS = ["--min-area-px", 6]
_TWO = ("--num-gpus", 2)


def _train(config: str, output: Path, overrides: list[Any], *flags: str) -> list[Any]:
    return ["--config-file", config, *flags, *TINY, *overrides, "OUTPUT_DIR", output]


def _phantoms(output: Path, *more: Any) -> list[Any]:
    return [
        *("--output", output, "--seed", 3, "--side", 96, *more, "--lesion-patients", 6),
        *("--lesion-slices", 4, "--slices", 2, "--train-patients", 3, "--val-patients", 2),
        *("--test-patients", 2),
    ]


def make_inputs(folder: Path, needed: set[str]) -> None:
    """Make what works read: ``raw`` trees, prepared ``sets`` of them, the ``run`` of a classifier
    trained and evaluated on these; ``models`` and scans."""
    torch.set_num_threads(1)
    os.chdir(REPOSITORY)
    raw, run = folder / "raw", folder / "cls"
    prepare = ["--output-root", folder / "sets", "--workers", 1]
    short = ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 2, "MODEL.TRAINABLE", "heads"]
    calls = {
        "raw": [["datasets/prepare_phantom.py", *_phantoms(raw, "--workers", 1)]],
        "sets": [
            [_PREPARE_LESIONS, "--source", raw / "cncb_lesions_raw", *prepare, *_LESIONS],
            [_PREPARE_SLICES, "--source", raw / "covidx_ct_raw", *prepare],
        ],
        "run": [
            [_TRAIN_NET, *_train(_CLASSIFIER, run, short)],
            [_TRAIN_NET, *_train(_CLASSIFIER, run, [], "--eval-only")],
        ],
    }
    for tool, *call in (call for name, calls in calls.items() if name in needed for call in calls):
        assert run_tool(REPOSITORY, tool, *call) == 0, tool
    if "models" not in needed:
        return
    (folder / "models").mkdir(parents=True)
    detector, classifier = (
        read_cfg(str(REPOSITORY / config), [*SMALL, *more])
        for config, more in ((_DETECTOR, []), (_CLASSIFIER, ["MODEL.RANKED_BOXES.NUM", 16]))
    )
    saved = save_model(detector, folder / "models", "seg")
    save_model(classifier, folder / "models", "cls", saved)
    save_model(classifier, folder / "models", "second", saved)
    write_scans(folder / "scans")
    volumes = "path,class,patient,split\na_dicom,covid,1,train\nb_nifti/ct.nii.gz,normal,2,val\n"
    (folder / "scans.csv").write_text(volumes)


def _small_parts() -> None:
    """The rows of a few slices are written in several parts, as those of many are."""
    ranked_box_cache._PART = 4


@dataclass(frozen=True)
class _Model:
    config: Path
    weights: Path


def all_works(inputs: Path, out: Path) -> dict[str, Work]:
    """The works by name.

    Args:
        inputs: of :func:`make_inputs`.
        out: folder of the work, which is empty or missing before it.
    """
    raw, run = inputs / "raw", out / "run"
    cls = _Model(inputs / "models" / "cls.yaml", inputs / "models" / "cls.pth")
    model = ["--config-file", cls.config, "--weights", cls.weights]
    sliced = inputs / "cls" / "inference"
    schedule = ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 2]
    schedule += ["TEST.EVAL_PERIOD", 3, "SOLVER.LOG_PERIOD", 1]
    rows = ["MODEL.TRAINABLE", "heads", "MODEL.RANKED_BOXES.CACHE", "always"]
    predict = words(cls, [inputs / "scans"], run, "--lesions", "--overlays", "--masks", "nifti")

    def train(config: str, *more: Any, flags: tuple = (), **kind: Any) -> Work:
        overrides = [*schedule, *more]
        first = _train(config, run, overrides, *flags)
        again = _train(config, run, overrides, *flags, "--resume")
        return Work(_TRAIN_NET, first, again, needs=("raw", "sets"), **kind)

    def goes_on(*call: Any, **kind: Any) -> Work:
        again = [*call[:2], "--resume", *call[2:]]
        return Work("tools/predict.py", list(call), again, needs=("models",), **kind)

    def same_again(tool: str, *call: Any, **kind: Any) -> Work:
        return Work(tool, list(call), list(call), **kind)

    dicom, pictures = ([inputs / "scans" / name] for name in ("a_dicom", "c_pictures"))
    answers = ["--masks", "nifti", "dicom-seg", "--burden", "threshold", "--sr", "--viewer"]
    of_two = ["--config-file", cls.config, "--weights", cls.weights, inputs / "models/second.pth"]
    of_two += ["--input", *pictures, "--output", run, "MODEL.INFERENCE.ENGINE", "torch"]
    systems = [f"{name}={sliced / 'covidx_ct_test' / 'predictions.csv'}" for name in ("a", "b")]
    prepare = ["--output-root", out, "--workers", 2]
    raw_lesions = raw / "cncb_lesions_raw"
    return {
        "training": train(_DETECTOR),
        "caching": train(*(_CLASSIFIER, *rows), watched="run/ranked_boxes", prepare=_small_parts),
        "folds": train(*(_CLASSIFIER, "MODEL.TRAINABLE", "heads"), flags=("--folds", 2)),
        "training-2": train(_DETECTOR, flags=_TWO, starter=()),
        "prediction": goes_on(*predict),
        "prediction-dicom-seg": goes_on(*words(cls, dicom, run, *answers, "--secondary-captures")),
        "prediction-of-two": goes_on(*of_two),
        "prediction-2": goes_on(*_TWO, *predict, starter=()),
        "conversion-lesions": same_again(
            *(_PREPARE_LESIONS, "--source", raw_lesions, *prepare, *_LESIONS), needs=("raw",)
        ),
        "conversion-pairs": same_again(
            *(_PREPARE_LESIONS, "--source", raw_lesions, *prepare, *_LESIONS),
            *("--pairs", "{patient}/{name}.jpg={patient}/{name}.png", "--name", "paired"),
            needs=("raw",),
        ),
        "conversion-coco": same_again(
            *(_PREPARE_LESIONS, "--images", raw_lesions / "image", "--name", "annotated"),
            *("--coco", inputs / "sets/cncb_lesions/annotations/both_train.json", *prepare),
            needs=("raw", "sets"),
        ),
        "conversion-volumes": same_again(
            *(_PREPARE_SLICES, "--volume-list", inputs / "scans.csv", "--name", "volumes"),
            *("--images", inputs / "scans", *prepare),
            needs=("models",),
        ),
        "conversion-slices": same_again(
            _PREPARE_SLICES, "--source", raw / "covidx_ct_raw", *prepare, needs=("raw",)
        ),
        "phantoms": same_again(
            "datasets/prepare_phantom.py", *_phantoms(out, "--workers", 2), needs=()
        ),
        "report": same_again("tools/report.py", inputs / "cls", "--output", out / "report.html"),
        "evaluation": same_again(
            *(_TRAIN_NET, *_train(_CLASSIFIER, run, [], "--eval-only")), given=inputs / "cls"
        ),
        "evaluation-of-predictions": same_again(
            *("tools/evaluate_predictions.py", "--output", run, "--resamples", 300),
            *("--predictions", sliced / "covidx_ct_test" / "predictions.csv"),
            *("--validation", sliced / "covidx_ct_val" / "predictions.csv"),
        ),
        "comparison": same_again("tools/compare.py", *systems, "--output", run),
        "explanation": same_again(
            *("tools/explain.py", *model, "--dataset", "covidx_ct_test", "--output", run),
            needs=("raw", "sets", "models"),
        ),
        "pictures": same_again(
            *("tools/visualize.py", "--dataset", "cncb_lesions_both_val", "--ground-truth-only"),
            *("--output", run),
        ),
        "burden": same_again(
            *("tools/lesion_burden.py", "--dataset", "cncb_lesions_both_val", "--output", run)
        ),
        "export": same_again(
            *("tools/export.py", *model, "--output", out / "model.pt2"),
            *("--height", 64, "--width", 64),
            needs=("models",),
        ),
        "card": same_again("datasets/describe.py", "covidx_ct_train", "--output", run),
    }


def begin(work: Work, out: Path) -> None:
    """Make the folder of a work as it is before its first call."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if work.given is not None:
        shutil.copytree(work.given, out / "run")
