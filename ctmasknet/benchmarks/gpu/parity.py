"""Whether a device computes what the CPU does, part by part on the same inputs.

A whole model is no fair question: where two boxes score alike to the last digits, rounding orders
them either way, and the rest differs. So every part gets what the CPU's part before it gave.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ctmasknet.benchmarks.gpu.point import Point, held_to, relative
from ctmasknet.benchmarks.inference import calibrated_classifier, noise_slices
from ctmasknet.benchmarks.training import phantom_inputs

#: Largest difference over the largest value; of a gradient, which passes all layers twice.
_LIMIT, _GRADIENT_LIMIT = 1e-3, 1e-2


def parity(point: Point) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Compare a classifier's parts, and a detector's losses and gradients, with the CPU's.

    TensorFloat-32 is off meanwhile, which rounds to 10 bits.

    Returns:
        no results, and what has to hold (:func:`ctmasknet.benchmarks.gpu.point.held_to`).
    """
    rounded = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        found = {**_classifier(point), **_losses(point)}
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = rounded
    return [], [
        held_to(
            f"as on the CPU: {what}",
            share,
            _GRADIENT_LIMIT if what.startswith("gradient") else _LIMIT,
        )
        for what, share in found.items()
    ]


def _pair(point: Point, kind: str, slices, *more: Any) -> tuple[GeneralizedRCNN, GeneralizedRCNN]:
    """The same model on the CPU and on the device."""
    ours = calibrated_classifier(point.cfg(kind, *more, device="cpu"), point.seed, slices)
    # Random masks are grey else, whatever goes wrong before them
    nn.init.normal_(ours.roi_heads.mask_head.predictor.weight, std=0.1)
    theirs = build_model(point.cfg(kind, *more)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@torch.no_grad()
def _classifier(point: Point) -> dict[str, float]:
    slices = noise_slices(point.batch, point.side, point.seed)
    ours, theirs = _pair(point, "heads", slices)
    maps, their_maps = (
        model.backbone(model.preprocess_image(slices).tensor) for model in (ours, theirs)
    )
    found = {f"feature map {name}": relative(maps[name], their_maps[name]) for name in maps}
    same = {name: one.to(point.device) for name, one in maps.items()}
    scored, theirs_scored = (
        model.proposal_generator.rpn_head(
            [given[name] for name in ours.proposal_generator.in_features]
        )
        for model, given in ((ours, maps), (theirs, same))
    )
    for what, one, other in zip(
        ("objectness", "anchor deltas"), scored, theirs_scored, strict=True
    ):
        found[what] = max(map(relative, one, other))
    proposals, _ = ours.proposal_generator(ours.preprocess_image(slices), maps, None)
    moved = [one.to(point.device) for one in proposals]
    heads, their_heads = ours.roi_heads, theirs.roi_heads
    predicted, their_predicted = heads.predict(maps, proposals), their_heads.predict(same, moved)
    found["box scores"] = relative(predicted[0], their_predicted[0])
    found["box deltas"] = relative(predicted[1], their_predicted[1])
    rows = heads.rank(predicted, proposals)
    their_rows = their_heads.rank(tuple(one.to(point.device) for one in predicted), moved)
    found["ranked rows"] = relative(rows, their_rows)
    found["logits"] = relative(ours.image_head(rows), theirs.image_head(rows.to(point.device)))
    boxed = [_as_detections(one) for one in proposals]
    masks, their_masks = (
        torch.cat([one.pred_masks for one in part.forward_with_given_boxes(given, boxes)])
        for part, given, boxes in (
            (heads, maps, boxed),
            (their_heads, same, [one.to(point.device) for one in boxed]),
        )
    )
    found["masks"] = relative(masks, their_masks)
    return found


def _as_detections(proposals: Instances) -> Instances:
    few = proposals[:20]
    return Instances(
        few.image_size,
        pred_boxes=few.proposal_boxes,
        pred_classes=torch.zeros(len(few), dtype=torch.long),
    )


def _losses(point: Point) -> dict[str, float]:
    """Every loss of the detector, and the gradient of their sum by part."""
    # As many as there may be anchors and proposals: all are taken, and nothing is drawn
    every = ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 3 * point.side**2)
    every += ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**4)
    cfg = point.cfg("segmentation", *every, device="cpu")
    inputs = phantom_inputs(cfg, point.batch, point.side, point.seed)
    ours, theirs = _pair(point, "segmentation", inputs, *every)
    for model in (ours, theirs):
        model.train()
    with torch.no_grad(), EventStorage():
        proposals = _training_proposals(ours, inputs)
    lost, their_lost = (_backward(model, inputs, proposals) for model in (ours, theirs))
    return {name: relative(value, their_lost[name]) for name, value in lost.items()}


def _training_proposals(model: GeneralizedRCNN, inputs: list[dict[str, Any]]) -> list[Instances]:
    images = model.preprocess_image(inputs)
    truth = [one["instances"].to(model.device) for one in inputs]
    return model.proposal_generator(images, model.backbone(images.tensor), truth)[0]


def _backward(
    model: GeneralizedRCNN, inputs: list[dict[str, Any]], proposals: list[Instances]
) -> dict[str, Tensor]:
    images = model.preprocess_image(inputs)
    truth = [one["instances"].to(model.device) for one in inputs]
    with EventStorage():
        features = model.backbone(images.tensor)
        losses = model.proposal_generator(images, features, truth)[1]
        given = [one.to(model.device) for one in proposals]
        losses |= model.roi_heads(images, features, given, truth)[1]
    sum(losses.values()).backward()
    by_part = {
        f"gradient of {name}": [one.grad.flatten() for one in part.parameters()]
        for name, part in _learning_parts(model).items()
    }
    return {**losses, **{name: torch.cat(parts) for name, parts in by_part.items()}}


def _learning_parts(model: GeneralizedRCNN) -> dict[str, nn.Module]:
    heads = model.roi_heads
    return {
        "backbone": model.backbone,
        "region proposal network": model.proposal_generator,
        "box head": nn.ModuleList([heads.box_head, heads.box_predictor]),
        "mask head": heads.mask_head,
    }
