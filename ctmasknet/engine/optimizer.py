"""The optimiser of a training (paper section 4: Adam)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ctmasknet.engine.checkpoint import is_classifier
from ctmasknet.errors import CTMaskNetError

_OPTIMIZERS = {
    "ADAM": lambda parameters, cfg: torch.optim.Adam(
        parameters,
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        # One pass over the weights instead of one an operation; on CUDA torch chooses.
        fused=True if cfg.MODEL.DEVICE == "cpu" else None,
    ),
    "SGD": lambda parameters, cfg: torch.optim.SGD(
        parameters,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    ),
}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER`` over the trainable weights of ``model``.

    Raises:
        CTMaskNetError: an unknown optimiser.
    """
    if cfg.SOLVER.OPTIMIZER not in _OPTIMIZERS:
        raise CTMaskNetError(
            f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; choose one of {', '.join(_OPTIMIZERS)}"
        )
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: _lr_factor(cfg, name),
    )
    return maybe_add_gradient_clipping(cfg, _OPTIMIZERS[cfg.SOLVER.OPTIMIZER](parameters, cfg))


def _lr_factor(cfg: CfgNode, parameter: str) -> float:
    in_detector = is_classifier(cfg) and not parameter.startswith("image_head.")
    return cfg.SOLVER.DETECTOR_LR_FACTOR if in_detector else 1.0
