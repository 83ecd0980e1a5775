"""The command lines of every tool that writes, on tiny inputs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.special import expit

from ctmasknet.config_file import read_cfg
from ctmasknet.evaluation.predictions import SlicePrediction, write_predictions_csv
from ctmasknet.weights.layout import resnet_layout
from tests.helpers.running import run_tool
from tests.helpers.small_world import SMALL, save_model, write_scans

REPOSITORY = Path(__file__).parents[2]
#: Of a training of two iterations with an evaluation and a checkpoint after each.
_SHORT = [
    *("MODEL.DEVICE", "cpu", "SEED", 1, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
    *("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 1),
    *("SOLVER.WARMUP_ITERS", 0, "INPUT.RANDOM_FLIP", "none", "SOLVER.LOG_PERIOD", 1),
    *("TEST.PICTURES", 0),
]
_SETS = ("cncb_lesions_both_val", "covidx_ct_train", "covidx_ct_val")


@dataclass(frozen=True)
class Tool:
    """A way to call a tool.

    Attributes:
        words: from the place to write to, the words of the command line, the tool's path first.
        suffix: of the file it writes; "" where it writes a folder.
        content: what the file has to hold before, for the tool changes it.
        long: it takes minutes, so that only faults told at its start are tried.
    """

    words: Callable[[Path], list]
    suffix: str = ""
    content: bytes | None = None
    long: bool = False


def prepared_sets(root: Path) -> Path:
    """Phantoms, and the sets made of them; the folder for ``DETECTRON2_DATASETS``."""
    for words in (
        [*_PHANTOMS, "--output", root / "raw"],
        [*_LESIONS, "--source", root / "raw/cncb_lesions_raw", "--output-root", root / "sets"],
        [*_SLICES, "--source", root / "raw/covidx_ct_raw", "--output-root", root / "sets"],
    ):
        assert run_tool(REPOSITORY, *words) == 0
    return root / "sets"


_PHANTOMS = [
    *("datasets/prepare_phantom.py", "--side", 96, "--workers", 1, "--slices", 1),
    *("--lesion-patients", 5, "--lesion-slices", 2),
    *("--train-patients", 2, "--val-patients", 1, "--test-patients", 1),
]
_LESIONS = ["datasets/prepare_cncb_lesions.py", "--min-area-px", 6, "--workers", 1]
_SLICES = ["datasets/prepare_covidx_ct.py", "--workers", 1]


def all_tools(root: Path) -> dict[str, Tool]:
    """Every tool by name.

    Args:
        root: an empty folder for the inputs.
    """
    sets = prepared_sets(root)
    os.environ["DETECTRON2_DATASETS"] = str(sets)
    raw = root / "raw"
    lesions, images = raw / "cncb_lesions_raw", raw / "covidx_ct_raw"
    short = [*SMALL, "MODEL.RANKED_BOXES.NUM", 8, "INPUT.MIN_SIZE_TEST", 64]
    # A fork of a process that has loaded OpenVINO waits for its threads
    short += ["MODEL.INFERENCE.ENGINE", "torch"]
    (root / "models").mkdir()
    seg = save_model(read_cfg(REPOSITORY / "configs/seg_light.yaml", short), root / "models", "seg")
    cfg = read_cfg(REPOSITORY / "configs/cls_light.yaml", short)
    cls = save_model(cfg, root / "models", "cls", seg)
    scans = write_scans(root / "scans")
    resnet = root / "resnet18.pth"
    slots = resnet_layout(18).items()
    torch.save({k: torch.zeros(s.shape) for k, s in slots if "num_batches" not in k}, resnet)
    table = _predictions(root / "predictions.csv", "t")
    validation = _predictions(root / "validation.csv", "v")
    judge = ["tools/evaluate_predictions.py", "--predictions", table, "--resamples", 100]
    judge += ["--validation", validation]
    seg_words = ["--config-file", seg.config]
    cls_words = ["--config-file", cls.config]
    seg_weights, cls_weights = ["MODEL.WEIGHTS", seg.weights], ["MODEL.WEIGHTS", cls.weights]

    def train(*more):
        words = ["tools/train_net.py", *cls_words, *[w for w in more if str(w)[:2] == "--"]]
        words += [*_SHORT, *cls_weights, *[w for w in more if str(w)[:2] != "--"]]
        return lambda out: [*words, "OUTPUT_DIR", out]

    def output(*words):
        words = [*words[:1], "--output", None, *words[1:]]
        return lambda out: [out if word is None else word for word in words]

    answer = root / "answer"
    words = output("tools/predict.py", *cls_words, "--input", scans, *cls_weights)(answer)
    assert run_tool(REPOSITORY, *words) == 0
    cache = ["MODEL.TRAINABLE", "heads", "MODEL.RANKED_BOXES.CACHE", "always"]
    predict = ["tools/predict.py", *cls_words, "--input", scans, "--lesions"]
    predict += ["--overlays", "--masks", "nifti", "--score-threshold", 0.01]
    measured = [
        "tools/predict.py",
        *cls_words,
        "--input",
        scans / "a_dicom",
        "--burden",
        "threshold",
    ]
    measured += ["--masks", "nifti", "dicom-seg", "--sr", "--secondary-captures", "--viewer"]
    measured += cls_weights
    of_two = ["tools/predict.py", *cls_words, "--input", scans / "c_pictures"]
    of_two += ["--weights", cls.weights, save_model(cfg, root / "models", "second", seg).weights]
    annotated = sets / "cncb_lesions/annotations/both_train.json"
    volumes = "path,class,patient,split\na_dicom,covid,1,train\nb_nifti/ct.nii.gz,normal,2,val\n"
    (root / "volumes.csv").write_text(volumes)
    names = {"covid": "NCP*", "normal": "Normal*"}
    for name, pattern in names.items():
        files = sorted(path.name for path in (images / "images").glob(pattern))
        (root / f"{name}.txt").write_text("".join(f"{file}\n" for file in files))
    listed = [word for name in names for word in ("--class-list", root / f"{name}.txt")]
    bench = ["mask-conversion", "--repeats", 1, "--patients", 1]
    return {
        "train": Tool(train("MODEL.TRAINABLE", "full")),
        "train, cached rows": Tool(train(*cache)),
        "train, CACHE_DIR": Tool(
            lambda out: [
                *train("--overwrite", *cache)(root / "of_cache"),
                *("MODEL.RANKED_BOXES.CACHE_DIR", out),
            ]
        ),
        "train, folds": Tool(
            lambda out: [*train("MODEL.TRAINABLE", "heads")(out), "--folds", 2], long=True
        ),
        "evaluate": Tool(train("--eval-only")),
        "predict": Tool(output(*predict, *cls_weights)),
        "predict lesions": Tool(
            output("tools/predict.py", *seg_words, "--input", scans, *seg_weights)
        ),
        "predict, all else": Tool(output(*measured)),
        "predict, two models": Tool(output(*of_two)),
        "ctmasknet predict": Tool(
            lambda out: [
                *("tools/__init__.py", "predict", *cls_words, "--input", scans / "c_pictures"),
                *("--output", out, *cls_weights),
            ]
        ),
        "explain": Tool(
            output("tools/explain.py", *cls_words, "--input", scans / "c_pictures", *cls_weights)
        ),
        "visualize": Tool(
            output("tools/visualize.py", *seg_words, "--input", scans / "c_pictures", *seg_weights)
        ),
        "visualize ground truth": Tool(
            output("tools/visualize.py", "--dataset", _SETS[0], "--ground-truth-only")
        ),
        "visualize augmented": Tool(
            output(
                *("tools/visualize.py", "--augmented", *seg_words, "--dataset", _SETS[0]),
                *("INPUT.AUGMENTATION.ROTATION_DEG", 15.0),
            )
        ),
        "export": Tool(
            output("tools/export.py", *cls_words, "--height", 64, "--width", 64, *cls_weights),
            ".pt2",
        ),
        "import_weights": Tool(output("tools/import_weights.py", resnet), ".pth"),
        "lesion_burden": Tool(output("tools/lesion_burden.py", "--dataset", _SETS[0])),
        "model_table": Tool(lambda out: ["tools/paper_tables.py", "--models", out], ".md"),
        "model_table json": Tool(lambda out: ["tools/paper_tables.py", "--models", out], ".json"),
        "model_zoo": Tool(lambda out: ["tools/paper_tables.py", "--zoo", out], ".md"),
        "figure1": Tool(
            lambda out: [
                *("tools/paper_figures.py", "figure1", "--dataset", _SETS[0], "--output", out)
            ],
            ".png",
        ),
        "figure2": Tool(
            lambda out: [
                *("tools/paper_figures.py", "figure2", *seg_words, "--dataset", _SETS[0]),
                *("--index", 0, "--output", out, *seg_weights),
            ],
            ".png",
        ),
        "paper_tables": Tool(output("tools/paper_tables.py")),
        "report": Tool(output("tools/report.py", answer), ".html"),
        "evaluate_predictions": Tool(output(*judge)),
        "compare": Tool(output("tools/compare.py", f"a={table}", f"b={table}", "--resamples", 100)),
        "calibration": Tool(
            lambda out: [*(*judge, "--output", out.with_name("judged"), "--checkpoint", out)],
            ".pth",
            cls.weights.read_bytes(),
        ),
        "benchmark": Tool(
            lambda out: ["tools/benchmark.py", *bench, "--output", out], ".json", long=True
        ),
        "demo": Tool(output("tools/demo.py"), long=True),
        "experiments": Tool(
            lambda out: [
                *("tools/experiments.py", "configs/experiments/heads.yaml"),
                *("--results", out, "--work", out.with_name("work")),
            ],
            long=True,
        ),
        "check_leaks": Tool(output("datasets/check_leaks.py", *_SETS[1:]), ".csv"),
        "describe": Tool(output("datasets/describe.py", *_SETS[1:])),
        "phantom": Tool(output(*_PHANTOMS)),
        "prepare lesions": Tool(lambda out: [*_LESIONS, "--source", lesions, "--output-root", out]),
        "prepare lesions, a name": Tool(
            lambda out: [
                *(*_LESIONS, "--source", lesions),
                *("--output-root", out.parent, "--name", out.name),
            ]
        ),
        "prepare pairs": Tool(
            lambda out: [
                *(*_LESIONS, "--source", lesions, "--output-root", out),
                *("--pairs", "{patient}/{name}.jpg={patient}/{name}.png"),
            ]
        ),
        "prepare coco": Tool(
            lambda out: [
                *(_LESIONS[0], "--coco", annotated, "--images", lesions / "image"),
                *("--output-root", out),
            ]
        ),
        "prepare volumes": Tool(
            lambda out: [
                *(*_SLICES, "--volume-list", root / "volumes.csv", "--images", scans),
                *("--output-root", out),
            ]
        ),
        "prepare class lists": Tool(
            lambda out: [
                *(*_SLICES, "--images", images / "images", *listed, "--output-root", out),
                *("--split", "train:0.5,val:0.5"),
            ]
        ),
        "prepare slices": Tool(lambda out: [*_SLICES, "--source", images, "--output-root", out]),
        "prepare copies": Tool(
            lambda out: [
                *(*_SLICES, "--source", images, "--output-root", out, "--grey-window", "0,200")
            ]
        ),
    }


def _predictions(path: Path, prefix: str) -> Path:
    rng = random.Random(1)
    rows = []
    for number in range(36):
        logits = [rng.gauss(2.0 * (c == number % 3), 1) for c in range(3)]
        rows.append(
            SlicePrediction(
                file=f"{prefix}{number}.png",
                patient=f"{prefix}{number // 2}",
                scan="1",
                label=number % 3,
                pred=max(range(3), key=logits.__getitem__),
                logits=tuple(logits),
                scores=tuple(expit(logits).tolist()),
            )
        )
    write_predictions_csv(path, rows, ["normal", "pneumonia", "covid"])
    return path
