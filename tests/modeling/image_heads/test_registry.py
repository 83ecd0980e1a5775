import pkgutil
import sys

import pytest
import torch
from detectron2.config import configurable
from detectron2.modeling import build_model
from torch import nn

from ctmasknet.modeling import image_heads
from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.ranked_boxes import ROW_FEATURES


@pytest.fixture
def best_box_head():
    """The head of the package's docstring, registered for a test."""
    code = image_heads.__doc__.split("::\n", 1)[1]
    names = {
        "IMAGE_HEAD_REGISTRY": IMAGE_HEAD_REGISTRY,
        "ROW_FEATURES": ROW_FEATURES,
        "Tensor": torch.Tensor,
        "configurable": configurable,
        "nn": nn,
    }
    exec("if True:\n" + code, names)
    yield names["BestBoxImageHead"]
    IMAGE_HEAD_REGISTRY._obj_map.pop("BestBoxImageHead")


def test_the_head_of_the_docstring_names_slices(tiny_cfg, slices, best_box_head):
    tiny_cfg.MODEL.IMAGE_HEAD.NAME = "BestBoxImageHead"
    model = build_model(tiny_cfg).eval()
    assert isinstance(model.image_head, best_box_head)
    (result,) = model(slices[:1])
    expected = model.image_head(result["ranked_boxes"][None])[0]
    torch.testing.assert_close(result["logits"], expected)


def test_every_file_of_the_folder_is_imported_with_it():
    files = [
        f"{image_heads.__name__}.{one.name}" for one in pkgutil.iter_modules(image_heads.__path__)
    ]
    assert f"{image_heads.__name__}.s" in files and set(files) <= set(sys.modules)
    assert "RankedBoxImageHead" in IMAGE_HEAD_REGISTRY
