"""Which weights of the classifier are trained (paper section 4, "three different ways").

- ``heads``: the image head S;
- ``heads_bn``: S, and weight and bias of every batch normalisation;
- ``heads_bn_no_shortcut``: the same without the norms of the shortcuts, as the authors' code picks
  them;
- ``full``: S and every weight of the detector that S depends on through differentiable steps.

In ``full``, the RPN and the mask head stay as they are: proposals reach the image head only through
the choice of boxes, which has no gradient (the authors' own training leaves the RPN's gradients
empty as well), and masks do not reach it at all. Stages that ``MODEL.BACKBONE.FREEZE_AT`` freezes
are trained in no mode, as in any Detectron2 model. Running means and variances move in no mode.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ctmasknet.errors import CTMaskNetError

TRAINABLE_MODES = ("heads", "heads_bn", "heads_bn_no_shortcut", "full")
_WITHOUT_GRADIENT = ("proposal_generator.", "roi_heads.mask_head.")


def set_trainable(model: nn.Module, mode: str, frozen: Collection[str] = ()) -> list[str]:
    """Set ``requires_grad`` of every parameter of a classifier after ``mode``.

    Args:
        model: has an ``image_head`` beside the detector's parts.
        mode: one of :data:`TRAINABLE_MODES`.
        frozen: names of parameters that no mode trains.

    Returns:
        names of the parameters that will be trained, in the model's order.

    Raises:
        CTMaskNetError: unknown mode, or batch normalisation is to be trained in a model without
            any.
    """
    if mode not in TRAINABLE_MODES:
        known = ", ".join(TRAINABLE_MODES)
        raise CTMaskNetError(f"MODEL.TRAINABLE is {mode!r}; choose one of {known}")
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and not name.startswith(_WITHOUT_GRADIENT)
        and not (mode == "heads_bn_no_shortcut" and ".shortcut." in name)
        for part in ("weight", "bias")
    }
    if mode.startswith("heads_bn") and not norms:
        raise CTMaskNetError(
            f"MODEL.TRAINABLE is {mode!r} but the model has no batch normalisation to train; "
            'set MODEL.RESNETS.NORM "BN" and MODEL.BACKBONE.FREEZE_AT 0'
        )
    trained = []
    for name, parameter in model.named_parameters():
        if mode == "full":
            wanted = not name.startswith(_WITHOUT_GRADIENT)
        else:
            wanted = name.startswith("image_head.") or (mode != "heads" and name in norms)
        wanted = wanted and name not in frozen
        parameter.requires_grad_(wanted)
        if wanted:
            trained.append(name)
    return trained
