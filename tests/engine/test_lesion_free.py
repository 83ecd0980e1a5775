"""Slices without lesions in training: left out as the authors do, or not."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from ctmasknet.config_file import read_cfg
from ctmasknet.data.registry import register_prepared
from ctmasknet.engine.train_data import training_dicts
from ctmasknet.errors import CTMaskNetError
from tests.helpers.running import run_tool
from tests.test_train_net import TINY


@pytest.fixture
def emptied(prepared, tmp_path, monkeypatch):
    """The lesion sets, all lesions of half the training slices taken away."""
    folder = tmp_path / "sets" / "cncb_lesions" / "annotations"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        source = prepared / "cncb_lesions" / "annotations" / f"merge_{split}.json"
        document = json.loads(source.read_text())
        root = source.parent / document["info"]["image_root"]
        document["info"]["image_root"] = str(root.resolve())
        if split == "train":
            kept = {image["id"] for image in document["images"][::2]}
            document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
        (folder / source.name).write_text(json.dumps(document))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    register_prepared()


@pytest.mark.parametrize("skip", [True, False])
def test_the_key_decides_what_is_trained_on(repository, emptied, tmp_path, monkeypatch, skip):
    monkeypatch.chdir(repository)
    words = [*TINY, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", skip, "MODEL.WEIGHTS", ""]
    words = list(map(str, words))
    dicts = training_dicts(read_cfg("configs/seg_light.yaml", words))
    every = DatasetCatalog.get("cncb_lesions_merge_train")
    with_lesions = [entry for entry in every if entry["annotations"]]
    assert 0 < len(with_lesions) < len(every)
    assert len(dicts) == len(with_lesions if skip else every)
    words += ["SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path / "run"]
    config = ["--config-file", "configs/seg_light.yaml"]
    assert run_tool(repository, "tools/train_net.py", *config, *words) == 0


def test_nothing_left_to_train_on(repository, emptied, prepared, tmp_path):
    file = tmp_path / "sets" / "cncb_lesions" / "annotations" / "merge_train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    register_prepared()
    cfg = read_cfg(str(repository / "configs" / "seg_light.yaml"))
    with pytest.raises(CTMaskNetError, match=r"set DATALOADER.FILTER_EMPTY_ANNOTATIONS False"):
        training_dicts(cfg)


@pytest.mark.parametrize("masks", [True, False])
def test_a_batch_of_lesion_free_slices_only(tiny_cfg, slices, masks):
    tiny_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    tiny_cfg.MODEL.MASK_ON = masks
    torch.manual_seed(0)
    model = build_model(tiny_cfg).train()
    for item in slices:
        instances = Instances(tuple(item["image"].shape[1:]))
        instances.gt_boxes = Boxes(torch.zeros(0, 4))
        instances.gt_classes = torch.zeros(0, dtype=torch.int64)
        instances.gt_masks = BitMasks(torch.zeros(0, *item["image"].shape[1:], dtype=torch.bool))
        item["instances"] = instances
    with EventStorage():
        losses = model(slices)
    assert ("loss_mask" in losses) == masks
    for name in ("loss_box_reg", "loss_rpn_loc", *(["loss_mask"] if masks else [])):
        assert float(losses[name]) == 0, name
    assert float(losses["loss_cls"]) > 0 and float(losses["loss_rpn_cls"]) > 0
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
