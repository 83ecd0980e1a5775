"""Which reader takes which file: sound files to begin with, damage that fits, and the reader."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
import yaml
from PIL import Image
from scipy.special import expit

from ctmasknet.config_file import read_cfg
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.data.label_masks import read_mask
from ctmasknet.data.registry import dataset_dicts, register_cncb_lesions, register_covidx_ct
from ctmasknet.engine.record import read_record
from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.evaluation import DiceEvaluator, LesionEvaluator, PerImageAPEvaluator
from ctmasknet.evaluation.predictions import (
    SlicePrediction,
    read_predictions_csv,
    write_predictions_csv,
)
from ctmasknet.evaluation.report import evaluate_predictions
from ctmasknet.names import read_groups
from ctmasknet.predict.manifest import read_manifest
from ctmasknet.prepare.classified import read_volume_list
from ctmasknet.prepare.lists import read_slice_list
from ctmasknet.report.page import write_report
from ctmasknet.weights.imported import import_file
from tests.fuzz import asked_files, mutations, run_files, set_files
from tests.fuzz.target import Target, bytes_or, csv_bytes, json_bytes, written
from tests.helpers.checkpoint_files import Call
from tests.helpers.ct_samples import damage_seeds
from tests.helpers.small_world import SMALL, save_model

CONFIGS = Path(__file__).parents[2] / "configs"
#: A ResNet-50 of some 100 kB.
_TINY = [
    *SMALL,
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
]
_TAGS = (
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:os.system ['touch {marker}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!binary aGk=",
    "&a [*a]",
    "2001-01-01",
    "0o7",
    "{? [a] : b}",
)


def all_targets(folder: Path, marker: Path) -> dict[str, Target]:
    """Every kind of file, by name.

    Args:
        folder: for sound files; empty.
        marker: what code hidden in a file makes, so that it is seen to have run.
    """
    return {
        **_texts(folder, marker),
        **_lesions(folder / "lesions"),
        **_results(folder / "results"),
        **_checkpoints(folder / "checkpoints", marker),
        **_pictures(folder / "pictures"),
        **run_files.trainings(folder / "trainings", _TINY),
        **run_files.predictions(),
        **run_files.measured(folder / "results"),
        **run_files.tabulated(folder / "checkpoints" / "cls.yaml"),
        **set_files.lists(folder / "lists"),
        **set_files.archives(folder / "archives", marker),
        **set_files.volumes(folder / "volumes"),
        **set_files.tensorflow(),
        **asked_files.plans(folder / "plans"),
        **asked_files.bases(),
        **asked_files.arrays(),
        **asked_files.uploads(),
    }


def _texts(folder: Path, marker: Path) -> dict[str, Target]:
    """Configurations and lists."""
    sound = yaml.safe_load(read_cfg(CONFIGS / "cls.yaml").dump())
    names = ("NCP_96_1328_0035.png 2 9 9 41 40", "CP_1_3_0004.png 1 9 9 41 40")
    lists = "\n".join((*names, "Normal_7_8_0009.png 0 9 9 41 40\n"))
    for name in ("a.nii.gz", "b"):
        written(folder / name, b"")
    volumes = "path,class,patient,scan,split\na.nii.gz,normal,p1,s1,train\nb,covid,p2,s2,test\n"

    def configuration(made: Path, rng: random.Random) -> Path:
        def odd_text() -> str:
            changed = mutations.tree(sound, rng)
            try:
                text = yaml.safe_dump(changed, allow_unicode=True)
            except RecursionError:  # YAML's writer goes less deep than its reader
                text = json.dumps(changed)
            if rng.random() < 0.4:
                lines = text.splitlines()
                place = rng.randrange(len(lines))
                tag = rng.choice(_TAGS).replace("{marker}", str(marker))
                lines[place] = f"{lines[place].split(':')[0]}: {tag}"
                text = "\n".join(lines)
            return text

        data = mutations.raw(yaml.safe_dump(sound).encode(), rng)
        return written(
            made / "x.yaml",
            data if rng.random() < 0.2 else odd_text().encode(errors="surrogatepass"),
        )

    def listed(made: Path, rng: random.Random) -> Path:
        text = mutations.table(lists.replace(" ", ","), rng).replace(",", " ")
        return written(made / "x.txt", bytes_or(rng, lists, lambda: text))

    return {
        "yaml": Target(configuration, read_cfg),
        "list": Target(listed, read_slice_list),
        "volumes": Target(
            lambda made, rng: written(made / "x.csv", csv_bytes(rng, volumes)),
            lambda path: read_volume_list(path, folder),
        ),
        "groups": Target(
            lambda made, rng: written(made / "x.csv", csv_bytes(rng, "stem,patient\na,1\nb,2\n")),
            read_groups,
        ),
    }


def _lesions(folder: Path) -> dict[str, Target]:
    """Prepared json files, registered and evaluated."""
    for number in range(2):
        written(folder / f"{number}.png", b"")
        Image.fromarray(np.full((24, 32), 90, np.uint8)).save(folder / f"{number}.png")
    runs = {"size": [24, 32], "counts": [100, *([8, 16] * 7), 8, 492]}
    images = [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 32} for i in range(2)]
    images = [image | {"patient": f"p{i}"} for i, image in enumerate(images)]
    filled = np.zeros((24, 32), np.uint8, order="F")
    filled[4:12, 4:12] = 1
    packed = mask_util.encode(filled)
    packed = {"size": [24, 32], "counts": packed["counts"].decode()}
    shapes = ([[4, 4, 12, 4, 12, 12, 4, 12]], runs, packed)
    annotations = [
        {"id": n + 1, "image_id": n % 2, "category_id": 1 + n % 2, "bbox": [4, 4, 8, 8]}
        | {"area": 64, "iscrowd": 0, "segmentation": shape}
        for n, shape in enumerate(shapes)
    ]
    categories = [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}]
    info = {"mask_type": "both", "image_root": "."}
    coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    slices = {
        "info": {"image_root": "."},
        "classes": ["normal", "pneumonia", "covid"],
        "slices": [
            {"file": f"{i}.png", "patient": f"p{i}", "scan": f"s{i}", "slice": str(i), "label": i}
            | {"body_box": [0, 0, 30, 20]}
            for i in range(2)
        ],
    }

    def measured(path: Path) -> None:
        register_cncb_lesions("fuzzed", path, folder)
        dicts = dataset_dicts("fuzzed")
        for evaluator in (
            LesionEvaluator("fuzzed", fast="never"),
            LesionEvaluator("fuzzed", fast="auto"),
            PerImageAPEvaluator("fuzzed"),
            DiceEvaluator("fuzzed"),
        ):
            evaluator.reset()
            for item in dicts:
                found = _instances(item)
                evaluator.process([item], [{"instances": found}])
            evaluator.evaluate()

    def classified(path: Path) -> None:
        register_covidx_ct("fuzzed", path, folder)
        dataset_dicts("fuzzed")

    return {
        "coco": Target(lambda made, rng: written(made / "x.json", json_bytes(rng, coco)), measured),
        "slices": Target(
            lambda made, rng: written(made / "x.json", json_bytes(rng, slices)), classified
        ),
    }


def _instances(item: Mapping[str, Any]):
    from detectron2.structures import Boxes, Instances

    found = Instances((item["height"], item["width"]))
    found.pred_boxes, found.scores = Boxes(torch.tensor([[4.0, 4, 12, 12]])), torch.tensor([0.9])
    found.pred_classes = torch.zeros(1, dtype=torch.int64)
    found.pred_masks = torch.zeros((1, item["height"], item["width"]), dtype=torch.bool)
    return found


def _results(folder: Path) -> dict[str, Target]:
    """What evaluation and prediction wrote, read again."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    rows = []
    for number in range(12):
        logits = tuple(float(value) for value in chance.normal(0, 2, 3).round(3))
        scores = tuple(float(value) for value in expit(logits))
        names = (f"{number}.png", f"p{number}", f"s{number}")
        rows.append(SlicePrediction(*names, number % 3, int(np.argmax(logits)), logits, scores))
    names = ["normal", "pneumonia", "covid"]
    sound = folder / "predictions.csv"
    write_predictions_csv(sound, rows, names)
    evaluate_predictions(sound, folder, n_boot=100)
    text = sound.read_text()
    files = sorted(path.name for path in folder.iterdir())

    def source(made: Path, rng: random.Random) -> Path:
        for name in files:
            shutil.copy(folder / name, made)
        hit = made / rng.choice(files)
        content = hit.read_text()
        data = (
            csv_bytes(rng, content)
            if hit.suffix == ".csv"
            else json_bytes(rng, json.loads(content))
        )
        return written(hit, data)

    record = [{"kind": "training", "command": ["x"], "datasets": {"train": [], "test": []}}]
    record = {"format": 1, "entries": record}
    manifest = {
        "format": "ctmasknet prediction 1",
        "status": "running",
        "settings": {"a": 1},
        "started": "2020-03-01T12:00:00+00:00",
        "inputs": 3,
    }
    return {
        "predictions": Target(
            lambda made, rng: written(made / "x.csv", csv_bytes(rng, text)), read_predictions_csv
        ),
        "report": Target(source, lambda path: write_report(path.parent, path.parent / "page.html")),
        "record": Target(
            lambda made, rng: written(made / "run.json", json_bytes(rng, record)),
            lambda path: read_record(path.parent),
        ),
        "manifest": Target(
            lambda made, rng: written(made / "prediction.json", json_bytes(rng, manifest)),
            lambda path: read_manifest(path.parent),
        ),
    }


def _checkpoints(folder: Path, marker: Path) -> dict[str, Target]:
    """Checkpoints, in torch's zip and as a pickle of arrays."""
    folder.mkdir(parents=True)
    detector = save_model(read_cfg(CONFIGS / "seg.yaml", _TINY), folder, "seg")
    made_of = read_cfg(CONFIGS / "cls.yaml", [*_TINY, "MODEL.IMAGE_HEAD.FC_DIM", 16])
    classifier = save_model(made_of, folder, "cls", detector)
    content = torch.load(classifier.weights, weights_only=True)
    config = str(classifier.config)
    arrays = {"model": {key: value.numpy() for key, value in content["model"].items()}}
    arrays = content | arrays | {"__author__": "x"}

    def loaded(path: Path) -> None:
        cfg, _ = inference_cfg(config, ["MODEL.WEIGHTS", str(path)])
        load_model(cfg)

    def call(rng: random.Random) -> Call:
        function = rng.choice((os.system, eval, open))
        words = {os.system: [f"touch {marker}"], open: [str(marker), "w"]}
        return Call(function, *words.get(function, [f"open({str(marker)!r}, 'w')"]))

    def damaged(sound: Any, save: Callable[[Any, Path], None], name: str):
        def damage(made: Path, rng: random.Random) -> Path:
            path = made / name
            value = sound if rng.random() < 0.3 else mutations.tree(sound, rng)
            if rng.random() < 0.2 and isinstance(value, dict):
                value = dict(value) | {rng.choice((*value, "x")): call(rng)}
            try:
                save(value, path)
            except Exception:
                save(sound, path)  # an odd value that cannot be saved: bytes are damaged below
            if value is sound or rng.random() < 0.1:
                path.write_bytes(mutations.raw(path.read_bytes(), rng))
            return path

        return damage

    def pickled(value: Any, path: Path) -> None:
        path.write_bytes(pickle.dumps(value, protocol=2))

    return {
        "checkpoint": Target(damaged(content, torch.save, "x.pth"), loaded),
        "pickle": Target(damaged(arrays, pickled, "x.pkl"), loaded),
        "import": Target(
            damaged(content["model"], torch.save, "x.pth"),
            lambda path: import_file(path, path.parent / "out.pth"),
        ),
    }


def _pictures(folder: Path) -> dict[str, Target]:
    """Pictures, DICOM, NIfTI, and label masks."""
    seeds = damage_seeds(folder)
    labels = np.zeros((24, 32), np.uint8)
    labels[4:12, 4:12] = 2
    masks = [folder / "mask.png", folder / "mask.tif"]
    for path in masks:
        Image.fromarray(labels).save(path)

    def of(sound: list[Path]) -> Callable[[Path, random.Random], Path]:
        def damage(made: Path, rng: random.Random) -> Path:
            source = rng.choice(sound)
            return written(made / source.name, mutations.raw(source.read_bytes(), rng))

        return damage

    def pixels(path: Path) -> None:
        for scan in read_scans([path], rescale=(1.0, -1024.0)):
            for one in scan.slices:
                one.pixels(Window())

    kinds = {
        "picture": [p for p in seeds if p.suffix in (".png", ".jpg", ".tif", ".bmp")],
        "dicom": [p for p in seeds if p.suffix == ".dcm"],
        "nifti": [p for p in seeds if ".nii" in p.name],
    }
    return {
        **{name: Target(of(sound), pixels) for name, sound in kinds.items()},
        "mask": Target(of(masks), read_mask),
    }
