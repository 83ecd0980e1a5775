"""Result folders with known figures, and a prepared lesion set of three slices."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from ctmasknet.data.registry import register_prepared, unregister
from ctmasknet.paper.variants import peer_variants, variants

SIDE = 40


@pytest.fixture(scope="session")
def known():
    """All variants of the repository's configs."""
    return variants()


@pytest.fixture(scope="session")
def known_peers():
    """All configs of compared systems."""
    return peer_variants()


@pytest.fixture
def make_run(tmp_path, known, request):
    """``make_run(name, variant, figures, dataset, ...)``: a folder as train_net.py leaves it."""

    def make(
        name,
        variant,
        figures=None,
        dataset="covidx_ct_test",
        *,
        overrides=(),
        confusion=None,
        record=None,
    ):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        peer = variant.startswith("peers/")
        among = request.getfixturevalue("known_peers") if peer else known
        cfg = next(item for item in among if item.name == variant).cfg.clone()
        cfg.merge_from_list(list(overrides))
        (folder / "config.yaml").write_text(cfg.dump())
        if figures is not None:
            inference = folder / "inference" / dataset
            inference.mkdir(parents=True)
            (inference / "results.json").write_text(json.dumps(figures))
            if confusion is not None:
                counts = {
                    "n": int(np.sum(confusion)),
                    "class_names": ["normal", "pneumonia", "covid"],
                    "confusion_matrix": confusion,
                }
                (inference / "slices_metrics.json").write_text(json.dumps(counts))
        if record is not None:
            (folder / "run.json").write_text(json.dumps({"format": 1, "entries": record}))
        return folder

    return make


@pytest.fixture
def slices_figures():
    return {
        "slices": {
            "accuracy": 71.25,
            **{"sensitivity-normal": 80.5, "precision-normal": 60.25},
            **{"sensitivity-pneumonia": 70.0, "precision-pneumonia": None},
            **{"sensitivity-covid": 61.5, "precision-covid": 91.0},
            "loss": 0.4,
        }
    }


@pytest.fixture
def entry():
    """``entry(kind, config_file, **changes)``: a record of a finished run on phantoms."""

    def make(kind, config_file, **changes):
        def data(name, images, **more):
            return {"name": name, "images": images, "patients": 3, **more}

        phantom = {"phantoms": True, "fingerprint": "0"}
        sets = {
            "train": [data("covidx_ct_train", 40, **phantom)],
            "val": [data("covidx_ct_val", 12, **phantom)],
        }
        if kind == "evaluation":
            sets = {"test": [data("covidx_ct_test", 20, **phantom)]}
        flag = "--eval-only " if kind == "evaluation" else ""
        return {
            "kind": kind,
            "status": "finished",
            "config_file": config_file,
            "command": f"python tools/train_net.py --config-file {config_file} {flag}SEED 7",
            "seed": 7,
            "weights": "output/cls/model_best.pth",
            "max_iter": 300,
            "iterations": 300,
            "seconds": 90.0,
            "datasets": sets,
            "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None, "num_gpus": 0},
            **changes,
        }

    return make


@pytest.fixture
def lesion_set(tmp_path, monkeypatch):
    """``cncb_lesions_both_val``: slices with 2 GGO and 1 C, with 1 GGO, and with none."""
    root = tmp_path / "datasets"
    lesions = {  # image: (class from 1, xyxy px)
        1: [(1, (0, 0, 10, 8)), (1, (20, 20, 24, 24)), (2, (30, 30, 38, 40))],
        2: [(1, (5, 5, 25, 25))],
        3: [],
    }
    images, annotations = [], []
    for number, found in lesions.items():
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
        path = root / "cncb_lesions" / "images" / f"{number}_1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        images.append(
            {
                "id": number,
                "file_name": path.name,
                "height": SIDE,
                "width": SIDE,
                "patient": str(number),
            }
        )
        for category, (x0, y0, x1, y1) in found:
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
            mask[y0:y1, x0:x1] = 1
            rle = mask_util.encode(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    document = {
        "info": {"description": "", "mask_type": "both", "image_root": "images", "seed": 0},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}],
    }
    path = root / "cncb_lesions" / "annotations" / "both_val.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    names = register_prepared()
    yield "cncb_lesions_both_val"
    for name in names:
        unregister(name)
