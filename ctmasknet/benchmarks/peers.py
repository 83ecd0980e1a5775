"""The usual ways to do the same work, for comparison."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import nms
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.rpn import AnchorGenerator

from ctmasknet.modeling.meta_arch import CTMaskNet


class StockClassifier:
    """Detectron2's own detector with a plain image head behind it, a slice at a time.

    Proposals, box head and suppression are Detectron2's registered parts; boxes are ranked in a
    Python list.
    """

    def __init__(self, cfg: CfgNode, model: CTMaskNet):
        """
        Args:
            cfg: of ``model``.
            model: gives the weights.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        self.detector = build_model(cfg).eval()
        self.detector.load_state_dict(model.state_dict(), strict=False)
        head = model.image_head
        self.image_head = nn.Sequential(
            *(nn.Flatten(), head.fc1, nn.ReLU(), head.fc2, nn.ReLU(), head.logits)
        )
        self._num = cfg.MODEL.RANKED_BOXES.NUM
        self._nms_thresh = cfg.MODEL.RANKED_BOXES.NMS_THRESH

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """As the classifier's ``forward`` -> logits (C,) of every slice."""
        return [self._one(item) for item in batched_inputs]

    def _one(self, item: dict[str, Any]) -> Tensor:
        images = self.detector.preprocess_image([item])
        features = self.detector.backbone(images.tensor)
        proposals, _ = self.detector.proposal_generator(images, features, None)
        heads = self.detector.roi_heads
        pooled = heads.box_pooler(
            [features[name] for name in heads.box_in_features],
            [image.proposal_boxes for image in proposals],
        )
        predictions = heads.box_predictor(heads.box_head(pooled))
        boxes = heads.box_predictor.predict_boxes(predictions, proposals)[0].unflatten(1, (-1, 4))
        scores = heads.box_predictor.predict_probs(predictions, proposals)[0]
        deltas = predictions[1].unflatten(1, (-1, 4))
        found = []
        for label in range(boxes.shape[1]):
            clipped = Boxes(boxes[:, label].clone())
            clipped.clip(proposals[0].image_size)
            real = clipped.nonempty().nonzero()[:, 0]
            kept = nms(clipped.tensor[real], scores[real, label], self._nms_thresh)
            for place in real[kept].tolist():
                found.append([float(scores[place, label]), *deltas[place, label].tolist()])
        found.sort(key=lambda row: row[0], reverse=True)
        count = min(len(found), self._num)
        rows = [found[i * count // self._num] if count else [0.0] * 5 for i in range(self._num)]
        return self.image_head(torch.tensor([rows], device=images.tensor.device))[0]


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
