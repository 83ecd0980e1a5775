"""A registered lesion data set of three slices and detections on it."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

SIDE = 32


def box_mask(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def _detections(*rows: tuple[tuple[int, int, int, int], float, int], masks=True) -> Instances:
    """Instances from rows of (xyxy box, score, class), the masks filling the boxes."""
    boxes = [row[0] for row in rows]
    instances = Instances((SIDE, SIDE))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([row[1] for row in rows], dtype=torch.float32)
    instances.pred_classes = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    if masks:
        filled = [torch.from_numpy(box_mask(box)) for box in boxes]
        empty = torch.zeros((0, SIDE, SIDE), dtype=torch.uint8)
        instances.pred_masks = (torch.stack(filled) if filled else empty).bool()
    return instances


def _run(evaluator, outputs: list[Instances]) -> dict:
    """Image ids 1.. in order, one a batch."""
    evaluator.reset()
    for image_id, instances in enumerate(outputs, start=1):
        item = {"image_id": image_id, "file_name": f"{image_id}.png"}
        evaluator.process([item], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.fixture
def detections():
    """``detections((xyxy px, score, class), ..., masks=True)``: masks that fill their boxes."""
    return _detections


@pytest.fixture
def run():
    """``run(evaluator, outputs)``: evaluate Instances as those of images 1, 2, ..."""
    return _run


@pytest.fixture
def lesion_dataset(tmp_path):
    """Register a data set from a list of (xyxy px, class from 0) for each slice; gives its name."""
    made = []

    def make(slices, classes=("lesion",)):
        name = f"evaluated_lesions_{len(made)}"
        annotations = []
        for image_id, lesions in enumerate(slices, start=1):
            for box, category in lesions:
                rle = mask_util.encode(np.asfortranarray(box_mask(box)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category + 1,
                        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                        "area": int(mask_util.area(rle)),
                        "iscrowd": 0,
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    }
                )
        images = [
            {"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE}
            for i in range(1, len(slices) + 1)
        ]
        categories = [{"id": i, "name": n} for i, n in enumerate(classes, start=1)]
        path = tmp_path / f"{name}.json"
        path.write_text(
            json.dumps(
                {"info": {}, "images": images, "annotations": annotations, "categories": categories}
            )
        )
        DatasetCatalog.register(name, lambda: images)
        MetadataCatalog.get(name).set(
            json_file=str(path),
            thing_classes=list(classes),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
        )
        made.append(name)
        return name

    yield make
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
