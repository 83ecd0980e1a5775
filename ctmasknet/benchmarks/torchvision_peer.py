"""torchvision's detector, for comparison; Detectron2's is in :mod:`.stock_peer`."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.rpn import AnchorGenerator


class TorchvisionDetector:
    """torchvision's Mask R-CNN with ResNet-50 and FPN, with this detector's anchors, image side and
    thresholds; boxes alone, as a classifier needs no masks, and no slice class."""

    def __init__(self, cfg: CfgNode, batched_inputs: list[dict[str, Any]]):
        """
        Args:
            cfg: of a classifier.
            batched_inputs: slices that :func:`calibrate_norms` of the random weights.
        """
        anchors = cfg.MODEL.ANCHOR_GENERATOR
        levels = 5  # torchvision's pyramid has a level more
        self.detector: MaskRCNN = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            rpn_anchor_generator=AnchorGenerator(
                (tuple(anchors.SIZES[0]),) * levels, (tuple(anchors.ASPECT_RATIOS[0]),) * levels
            ),
            rpn_pre_nms_top_n_test=cfg.MODEL.RPN.PRE_NMS_TOPK_TEST,
            rpn_post_nms_top_n_test=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
            rpn_nms_thresh=cfg.MODEL.RPN.NMS_THRESH,
            box_score_thresh=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            box_nms_thresh=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        self.detector.roi_heads.mask_roi_pool = None
        self.detector.to(cfg.MODEL.DEVICE).eval()
        images = [item["image"].to(cfg.MODEL.DEVICE) / 255 for item in batched_inputs[:1]]
        calibrate_norms(self.detector.backbone, self.detector.transform(images)[0].tensors)

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """As the classifier's ``forward`` -> torchvision's detections of every slice."""
        device = next(self.detector.parameters()).device
        return self.detector([item["image"].to(device) / 255 for item in batched_inputs])


@torch.no_grad()
def calibrate_norms(backbone: nn.Module, images: Tensor) -> None:
    """Take the statistics of every batch normalisation of a random backbone from ``images``
    (B, 3, H, W), so that features, scores and boxes have a trained model's scale."""
    norms = [part for part in backbone.modules() if isinstance(part, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    backbone(images)
    for norm in norms:
        norm.eval()
