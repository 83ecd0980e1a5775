"""Slices of any size: one resize on every way to the model, and results in px of the file."""

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as rle

from ctmasknet.ct.pictures import MAX_SIDE_PX
from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict import CTPredictor

#: (H, W) px -> (H, W) the model sees with the paper's sides: shorter 512, longer at most 1024.
SIZES = {
    (512, 512): (512, 512),
    (300, 420): (512, 717),
    (420, 300): (717, 512),
    (1024, 256): (1024, 256),
    (64, 4096): (16, 1024),
    (4096, 64): (1024, 16),
    (1, 1): (512, 512),
    (2, 128): (16, 1024),
    (4096, 1200): (1024, 300),
}


def write(path, height, width):
    rows, columns = np.mgrid[:height, :width]
    pixels = ((rows * 7 + columns * 3) % 256).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


class Identity(torch.nn.Module):
    def forward(self, batch):
        return batch


@pytest.mark.parametrize("size", SIZES)
def test_training_test_and_prediction_resize_alike(size, tiny_cfg, tmp_path, monkeypatch):
    pixels = write(tmp_path / "a.png", *size)
    entry = {"file_name": str(tmp_path / "a.png"), "image_id": 1}
    detector = tiny_cfg.clone()
    detector.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    items = {
        "lesions, training": LesionMapper(tiny_cfg, True)({**entry, "annotations": []}),
        "lesions, test": LesionMapper(tiny_cfg, False)(entry),
        "slices, training": SliceMapper(tiny_cfg, True)(entry),
        "slices, test": SliceMapper(tiny_cfg, False)(entry),
        "slices, in memory": SliceMapper(tiny_cfg, False).map_pixels(entry, pixels),
    }
    for name, cfg in (("lesions", detector), ("slices", tiny_cfg)):
        items[f"{name}, predicted"] = CTPredictor(cfg, model=Identity()).mapped(entry, pixels)
    for name, item in items.items():
        assert tuple(item["image"].shape) == (3, *SIZES[size]), name
        assert torch.equal(item["image"], items["slices, test"]["image"]), name
        assert (item["height"], item["width"]) == size, name


@pytest.mark.parametrize("size", [(200, 600), (600, 200), (1200, 2048)])
def test_lesions_scale_with_the_image(size, tiny_cfg, tmp_path):
    write(tmp_path / "a.png", *size)
    height, width = size
    top, left = height // 4, width // 2
    mask = np.zeros(size, np.uint8, order="F")
    mask[top : top + 40, left : left + 80] = 1
    entry = {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 1,
        "annotations": [
            {
                "bbox": [left, top, 80, 40],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "segmentation": rle.encode(mask),
            }
        ],
    }
    item = LesionMapper(tiny_cfg, True)(entry)
    new_height, new_width = item["image"].shape[1:]
    down, across = new_height / height, new_width / width
    assert abs(down - across) < 0.01
    box = [left * across, top * down, (left + 80) * across, (top + 40) * down]
    # Boxes are those of the masks, so whole px.
    np.testing.assert_allclose(item["instances"].gt_boxes.tensor[0], box, atol=1)
    rows, columns = np.nonzero(item["instances"].gt_masks.tensor[0].numpy())
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, box, atol=1)


@pytest.mark.parametrize("size", [(64, 64), (50, 130), (2600, 60), (60, 3840)])
def test_results_are_in_px_of_the_file(size, tiny_cfg, tiny_model, tmp_path):
    write(tmp_path / "a.png", *size)
    tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = 64, 640
    tiny_model.return_instances = True
    tiny_model.roi_heads.box_predictor.test_score_thresh = 0.0
    item = SliceMapper(tiny_cfg, False)({"file_name": str(tmp_path / "a.png")})
    with torch.no_grad():
        found = tiny_model.eval()([item])[0]
    assert torch.isfinite(found["logits"]).all()
    instances = found["instances"]
    assert len(instances) > 0
    assert instances.image_size == size
    assert tuple(instances.pred_masks.shape[1:]) == size
    far = instances.pred_boxes.tensor[:, 2:].max(dim=0).values.flip(0)
    assert (far <= torch.tensor(size)).all()
    # Boxes reach the ends of the file, though the model saw a smaller or larger image.
    assert (far > 0.7 * torch.tensor(size)).all()


REFUSED = {
    (100, MAX_SIDE_PX + 1): "the width is 4097 px, above the limit of 4096 px a side",
    (MAX_SIDE_PX + 1, 100): "the height is 4097 px, above the limit of 4096 px a side",
    (4096, 63): "is 63 x 4096 px .*, more than 64 times as long as it is wide",
}


@pytest.mark.parametrize("size", REFUSED)
@pytest.mark.parametrize("mapper", [LesionMapper, SliceMapper])
def test_larger_and_narrower_images_are_refused(size, mapper, tiny_cfg, tmp_path):
    pixels = write(tmp_path / "a.png", *size)
    entry = {"file_name": str(tmp_path / "a.png"), "image_id": 1}
    message = f"{entry['file_name']}: {REFUSED[size]}"
    with pytest.raises(CTMaskNetError, match=message):
        mapper(tiny_cfg, False)(entry)
    if mapper is SliceMapper:
        with pytest.raises(CTMaskNetError, match=message):
            mapper(tiny_cfg, False).map_pixels(entry, pixels)
