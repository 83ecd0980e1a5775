"""What trainings, predictions and measurements leave, and other commands read again."""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from ctmasknet import demo
from ctmasknet.config_file import read_cfg
from ctmasknet.ct.appearance import GreyLevels
from ctmasknet.data.bad_slices import BadSlices
from ctmasknet.data.registry import register_covidx_ct
from ctmasknet.engine import ranked_box_cache
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer
from ctmasknet.engine.trainer import Trainer
from ctmasknet.evaluation.attention_pooling import fit_attention_pooling, load_attention_pooling
from ctmasknet.evaluation.learned_pooling import LearnedPooling, feature_names, load_learned_pooling
from ctmasknet.evaluation.lesions.burden import SliceBurden, burdens
from ctmasknet.evaluation.lesions.burden_files import BURDEN_FORMAT
from ctmasknet.evaluation.predictions import read_predictions_csv, write_predictions_csv
from ctmasknet.paper.runs import find_runs
from ctmasknet.paper.tables import paper_tables
from ctmasknet.paper.variants import variants
from ctmasknet.paper.zoo import zoo_tables
from ctmasknet.predict.outputs import Outputs
from ctmasknet.predict.pooled import build_pooler
from ctmasknet.predict.shards import Shards
from ctmasknet.report.comparison import comparison_section, read_comparison, write_comparison
from ctmasknet.report.page import write_report
from tests.fuzz import mutations
from tests.fuzz.target import Target, csv_bytes, json_bytes, written

CONFIGS = Path(__file__).parents[2] / "configs"
_CLASSES = ["normal", "pneumonia", "covid"]
_NAMES = ("NCP_7_1_0001.png", "CP_8_1_0002.png", "Normal_9_2_0003.png")
_TRAINING_SET = "fuzz_training"


def trainings(folder: Path, tiny: list[Any]) -> dict[str, Target]:
    """Checkpoints to resume from, the name of the last one, cached rows.

    Args:
        folder: for the sound files; empty.
        tiny: overrides that make a small model.
    """
    folder.mkdir(parents=True)
    for number, name in enumerate(_NAMES):
        Image.fromarray(np.full((24, 32), 90 + number, np.uint8)).save(folder / name)
    slices = [
        {"file": name, "patient": f"p{n}", "scan": f"s{n}", "slice": str(n), "label": 2 - n}
        for n, name in enumerate(_NAMES)
    ]
    document = {"info": {"image_root": "."}, "classes": _CLASSES, "slices": slices}
    (folder / "x.json").write_text(json.dumps(document))
    if _TRAINING_SET in DatasetCatalog.list():
        DatasetCatalog.remove(_TRAINING_SET)
        MetadataCatalog.remove(_TRAINING_SET)
    register_covidx_ct(_TRAINING_SET, folder / "x.json", folder)
    words = [
        *(*tiny, "MODEL.IMAGE_HEAD.FC_DIM", 16, "MODEL.WEIGHTS", "", "MODEL.TRAINABLE", "heads"),
        *("DATASETS.TRAIN", (_TRAINING_SET,), "DATASETS.VAL", (), "DATASETS.TEST", ()),
        *("SOLVER.IMS_PER_BATCH", 1, "SOLVER.WARMUP_ITERS", 0, "DATALOADER.NUM_WORKERS", 0),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none", "SEED", 1),
        # A fork of a process that has loaded OpenVINO waits for its threads
        *("MODEL.RANKED_BOXES.CACHE", "never", "MODEL.INFERENCE.ENGINE", "torch"),
    ]

    def trainer(output: Path, iterations: int) -> Trainer:
        more = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", iterations]
        output.mkdir(parents=True, exist_ok=True)
        return Trainer(read_cfg(CONFIGS / "cls.yaml", [*words, *more]))

    first = trainer(folder / "run", 1)
    first.resume_or_load(False)
    first.train()
    content = torch.load(folder / "run" / "model_final.pth", weights_only=True)
    rows = torch.rand(len(slices), 8, 5)

    def state(made: Path, rng: random.Random) -> Path:
        """The training state and what else is beside the weights, most of the time."""
        changed = dict(content)
        if rng.random() < 0.8:
            key = rng.choice([*(["trainer"] * 4), *changed])
            changed[key] = mutations.tree(changed[key], rng)
        path = made / "model_final.pth"
        try:
            torch.save(changed, path)
        except Exception:
            torch.save(content, path)  # an odd value that cannot be saved
        if rng.random() < 0.2:
            path.write_bytes(mutations.raw(path.read_bytes(), rng))
        (made / "last_checkpoint").write_text(path.name)
        return path

    def resumed(path: Path) -> None:
        going = trainer(path.parent, 2)
        going.resume_or_load(True)
        going.train()

    names = ("model_final.pth", "model_0000001.pth", "model_best.pth", "../x.pth", "/etc/passwd")

    def last(made: Path, rng: random.Random) -> Path:
        text = rng.choice(names)
        data = mutations.raw(text.encode(), rng) if rng.random() < 0.7 else f"{text}\n".encode()
        return written(made / "last_checkpoint", data)

    def named(path: Path) -> None:
        checkpointer = CTMaskNetCheckpointer(nn.Linear(1, 1), str(path.parent), spec={})
        found = Path(checkpointer.get_checkpoint_file())
        assert found.parent == path.parent, found

    def cached(made: Path, rng: random.Random) -> Path:
        part = {"index": torch.arange(len(rows)), "rows": rows}
        value = rows if (whole := rng.random() < 0.5) else part
        path = made / ("rows.pt" if whole else "00000000.pt")
        try:
            torch.save(mutations.tree(value, rng) if rng.random() < 0.6 else value, path)
        except Exception:
            torch.save(value, path)
        if rng.random() < 0.4:
            path.write_bytes(mutations.raw(path.read_bytes(), rng))
        return path

    def read_cache(path: Path) -> None:
        found = ranked_box_cache._read(path, tuple(rows.shape))
        assert found is None or found.shape == rows.shape
        parts = ranked_box_cache._read_parts(path.parent, rows.shape[1:], len(rows))
        assert all(one.shape == rows.shape[1:] for one in parts.values())

    return {
        "resume": Target(state, resumed),
        "last": Target(last, named),
        "cache": Target(cached, read_cache),
    }


def predictions() -> dict[str, Target]:
    """The parts of a prediction that is to be continued."""
    lesion = {"class": 1, "score": 0.9, "box_px": [1.0, 2.0, 9.0, 8.0]}
    line = {
        **{"file": "a.png", "patient": "p", "scan": "s", "height": 24, "width": 32},
        **{"spacing_mm": [0.7, 0.8], "position_mm": 1.5, "pred": 2},
        **{"logits": [-1.5, 0.25, 2.0], "scores": [0.18, 0.56, 0.88]},
        **{"problems": ["looks odd"], "grey_levels": [10.0, None, 160.0]},
        **{"boxes": [lesion], "lesions": [{**lesion, "rle": "T38`00000000000000l>"}, lesion]},
        **{"calibrated_scores": [0.2, 0.5, 0.8], "overlay": "overlays/1.png"},
    }
    masks = {"masks": {"nifti": "masks/1.nii.gz"}, "problems": ["no dicom-seg volume"]}
    lines = [line, {**line, "file": "b.png"}, {"file": "c.png", "bad": "truncated"}, masks]
    unit = {
        "scans": [
            {
                "patient": "p",
                "scan": "s",
                "kind": "dicom",
                "slices": 3,
                "problems": [],
                "series": None,
            }
        ],
        **{"bad": [["d.png", "empty"]], "left_out": 1, "pieces": [[0, 0, 3]]},
    }
    predictor = SimpleNamespace(
        image_classes=_CLASSES,
        lesion_classes=["ggo", "consolidation"],
        box_classes=["ggo", "consolidation"],
        all_cautions=("made for a trial",),
        expected_levels=GreyLevels(0.0, 120.0, 160.0),
        sees_scans=False,
        pooler=build_pooler(_CLASSES, None),
        lesions=True,
    )

    def damage(made: Path, rng: random.Random) -> Path:
        texts = {"0000000.json": [unit], "0000000-00000-0000000.jsonl": lines}
        hit = rng.choice(list(texts))
        for name, values in texts.items():
            if name == hit and rng.random() < 0.8:
                values = [*values]
                at = rng.randrange(len(values))
                values[at] = mutations.tree(values[at], rng)
            text = "".join(f"{json.dumps(value)}\n" for value in values)
            text += json.dumps({"crc32": zlib.crc32(text.encode())}) + "\n"
            data = text.encode()
            if name == hit and rng.random() < 0.3:
                data = mutations.raw(data, rng)
            written(made / ".parts" / "0000" / name, data)
        return made / ".parts" / "0000" / hit

    def put_together(path: Path) -> None:
        output = path.parents[2]
        shards = Shards(output)
        shards.remove_unfinished()
        if shards.is_finished(0):
            Outputs(shards, 1, output, predictor, 0.5).write(
                BadSlices({}, mode="skip", max_share=1.0)
            )

    return {"shards": Target(damage, put_together)}


def measured(folder: Path) -> dict[str, Target]:
    """Burdens, comparisons, listings, learned poolings, tables and summaries.

    Args:
        folder: has ``predictions.csv`` of labelled slices.
    """
    labelled = folder / "predictions.csv"
    rows, _ = read_predictions_csv(labelled)
    unlabelled = folder / "unlabelled.csv"
    write_predictions_csv(unlabelled, [replace(row, label=None) for row in rows], _CLASSES)
    names = [row.file for row in rows[:2]]
    counts = {"ggo": 30, "any": 30}
    at = [
        SliceBurden(name, "p", "s", counts, 700, pixel_mm2=0.5, position_mm=5.0 * n)
        for n, name in enumerate(names)
    ]
    levels = {name: [one.to_json() for one in its] for name, its in burdens(at).items()}
    burden = {"format": BURDEN_FORMAT, "lesions": "x", "of": "lung", "classes": ["ggo"]}
    burden |= {"outside_lung_px": 7, "cautions": ["a trial"], **levels}
    write_comparison([f"a={labelled}", f"b={labelled}"], folder / "comparison", n_boot=100)
    comparison = json.loads((folder / "comparison" / "comparison.json").read_text())
    scores = dict(zip(_CLASSES, (0.2, 0.3, 0.9), strict=True))
    pooled = {"patient": "p", "scan": "s", "pooling": "mean", "pred": "covid", "scores": scores}
    listing = [
        {"level": "slice", "file": names[0], "problems": ["odd"]},
        {**pooled, "level": "scan", "slices": 3, "problems": ["few"], "cautions": ["a trial"]},
        {**pooled, "level": "patient", "slices": 3, "scan": None},
    ]
    bad = {"max_share": 0.1, "sets": {"inputs": {"total": 9, "bad": 1, "share": 0.1, "files": []}}}
    record = {"entries": [{"kind": "prediction", "window_hu": [-600, 1500], "datasets": {}}]}
    features = len(feature_names(_CLASSES))
    arrays = [np.zeros(features), np.ones(features), np.ones((3, features)), np.zeros(3)]
    learned = LearnedPooling(tuple(_CLASSES), 5, *arrays, fit={"seed": 0}).to_json()
    attention = fit_attention_pooling(rows, _CLASSES).to_json()
    files = {
        "predictions.csv": unlabelled.read_text(),
        **{"burden/burden.json": burden, "burden_truth/burden.json": burden},
        **{"bad_slices.json": bad, "run.json": record, "predictions.jsonl": listing},
    }

    def parts(made: Path, rng: random.Random) -> Path:
        hit = rng.choice(list(files))
        for name, content in files.items():
            if name.endswith(".csv"):
                data = csv_bytes(rng, content) if name == hit else content
            elif name.endswith(".jsonl"):
                lines = mutations.tree(content, rng) if name == hit else content
                lines = lines if isinstance(lines, list) else [lines]
                data = "".join(f"{json.dumps(line)}\n" for line in lines)
            else:
                data = json_bytes(rng, content) if name == hit else json.dumps(content)
            written(made / name, data)
        return made / hit

    def page(path: Path) -> None:
        home = path.parents[path.parent.name.startswith("burden")]
        write_report(home, home / "page.html", gallery=0)

    of_detector = [
        {"level": "scan", "patient": "p", "scan": "", "slices": 3, "slices_with": {"ggo": 1}},
        {"level": "slice", "file": "a.png", "boxes": [{"score": 0.5}], "lesions": 1},
    ]

    def lesions(made: Path, rng: random.Random) -> Path:
        lines = [mutations.tree(line, rng) for line in of_detector]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        return written(made / "predictions.jsonl", text)

    return {
        "lesions": Target(lesions, page),
        "parts": Target(parts, page),
        "comparison": Target(
            lambda made, rng: written(made / "comparison.json", json_bytes(rng, comparison)),
            lambda path: comparison_section(read_comparison(path)),
        ),
        "compared": Target(
            lambda made, rng: written(made / "x.csv", csv_bytes(rng, labelled.read_text())),
            lambda path: write_comparison(
                [f"a={labelled}", f"b={path}"], path.parent / "out", n_boot=100
            ),
        ),
        "pooling": Target(
            lambda made, rng: written(made / "pooling.json", json_bytes(rng, learned)),
            lambda path: load_learned_pooling(path, _CLASSES)(np.zeros((2, 3))),
        ),
        "attention": Target(
            lambda made, rng: written(made / "attention.json", json_bytes(rng, attention)),
            lambda path: load_attention_pooling(path, _CLASSES)(np.zeros((2, 3))),
        ),
    }


def tabulated(config: Path) -> dict[str, Target]:
    """What the paper's tables and the demo's are made of.

    Args:
        config: a classifier's.
    """
    known = variants()
    tests = [{"name": "covidx_ct_test", "images": 3, "phantoms": True, "fingerprint": None}]
    common = {"status": "finished", "config_file": "configs/cls.yaml", "seed": 1, "command": "x"}
    common |= {"datasets": {"train": tests, "val": tests, "test": tests}, "weights": "a/x.pth"}
    common["hardware"] = {"cpu": "x", "cores": 2, "gpu": None, "num_gpus": 0}
    record = [
        {**common, "kind": "training", "iterations": 3, "max_iter": 3, "run": "x"},
        {**common, "kind": "evaluation", "weights_run": "x"},
    ]
    slices = {"accuracy": 50.0, "sensitivity-covid": 40.0, "precision-covid": None}
    matrix = [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    folder = f"inference/{tests[0]['name']}"
    files = {
        "run.json": {"format": 1, "entries": record},
        f"{folder}/results.json": {"slices": slices},
        f"{folder}/slices_metrics.json": {
            **{"n": 3, "class_names": _CLASSES, "confusion_matrix": matrix}
        },
    }
    sound = yaml.safe_load(config.read_text())
    of_demo = {
        f"seg/inference/{demo.LESION_TEST_SET}/results.json": {
            **{"bbox": {"AP50": 60.0, "AP": None}, "segm": {"AP50": 70.0}}
        },
        **{
            f"{run}/inference/{demo.SLICE_TEST_SET}/{name}": content
            for run in ("cls", "cls_s", "control")
            for name, content in (
                ("results.json", {"slices": slices}),
                ("slices_metrics.json", {"n": 3}),
            )
        },
    }

    def run(made: Path, rng: random.Random) -> Path:
        hit = rng.choice([*files, "config.yaml"])
        for name, content in files.items():
            data = json_bytes(rng, content) if name == hit else json.dumps(content)
            written(made / name, data)
        changed = mutations.tree(sound, rng) if hit == "config.yaml" else sound
        written(made / "config.yaml", json.dumps(changed))
        return made / "run.json"

    def made_tables(path: Path) -> None:
        runs = find_runs([path.parent], known)
        tables = [*paper_tables(runs, known).values(), *zoo_tables(known, runs, "train {}")]
        for table in tables:
            table.markdown(), table.csv()

    def demo_run(made: Path, rng: random.Random) -> Path:
        hit = rng.choice(list(of_demo))
        for name, content in of_demo.items():
            data = json_bytes(rng, content) if name == hit else json.dumps(content)
            written(made / name, data)
        return made / hit

    figures = {"n": 3, "accuracy": 0.5, "sensitivity": {"covid": 0.4}}
    summary = {
        **{"lesions": {"box_ap50": 60.0, "segm_ap50": 70.0}, "control": {"accuracy": 0.3}},
        **{"slices": figures, "slices_s": figures},
        **{"seconds": {"phantoms": 1.5}, "command": "make demo"},
        "hardware": {"cpu": "x", "cores": 2, "device": "cpu"},
    }

    def readme(path: Path) -> None:
        page = path.with_name("README.md")
        page.write_text("<!-- demo: begin -->\n<!-- demo: end -->\n")
        demo.write_readme_table(page, [path])

    return {
        "tables": Target(run, made_tables),
        "demo": Target(demo_run, lambda path: demo.summarize(path.parents[3], {"phantoms": 1.5})),
        "summary": Target(
            lambda made, rng: written(made / "summary.json", json_bytes(rng, summary)), readme
        ),
    }
