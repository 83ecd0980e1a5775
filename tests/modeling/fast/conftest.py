import pytest
import torch
from detectron2.modeling import build_model
from torch import nn


@pytest.fixture(params=[18, 50])
def model(request, tiny_cfg):
    """Basic and bottleneck blocks, batch normalisation with statistics of its own."""
    tiny_cfg.MODEL.RESNETS.DEPTH = request.param
    tiny_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    built = build_model(tiny_cfg).eval()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    # Levels that a trained detector has
    nn.init.normal_(built.roi_heads.box_predictor.cls_score.weight, std=0.3)
    return built
