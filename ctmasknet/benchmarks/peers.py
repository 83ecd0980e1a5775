"""What the benchmarks compare with: stock Detectron2 with a plain image head behind it, and
torchvision's detector."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.rpn import AnchorGenerator

from ctmasknet.modeling.meta_arch import CTMaskNet


def stock_cfg(cfg: CfgNode) -> CfgNode:
    """``cfg`` with Detectron2's own parts instead of ctmasknet's, sizes kept."""
    stock = cfg.clone()
    stock.defrost()
    stock.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    stock.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    stock.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    stock.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 0
    stock.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    stock.freeze()
    return stock


class StockClassifier(nn.Module):
    """Stock Detectron2's detector, an image at a time, and S on its ranked boxes; every weight has
    a gradient."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: of a classifier, as ctmasknet's.
        """
        super().__init__()
        self.detector = build_model(stock_cfg(cfg))
        self.rows = cfg.MODEL.RANKED_BOXES.NUM
        self.nms_thresh = cfg.MODEL.RANKED_BOXES.NMS_THRESH
        width = cfg.MODEL.IMAGE_HEAD.FC_DIM
        self.image_head = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(5 * self.rows, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, len(cfg.MODEL.IMAGE_HEAD.CLASSES)),
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> StockClassifier:
        """The detector always behaves as in evaluation."""
        super().train(mode)
        self.detector.eval()
        return self

    def take_weights(self, model: CTMaskNet) -> StockClassifier:
        """Use the weights of a classifier; without rounded anchors, its logits become this one's.
        Returns itself."""
        self.detector.load_state_dict(model.state_dict(), strict=False)
        mine = [layer for layer in self.image_head if isinstance(layer, nn.Linear)]
        head = model.image_head
        for layer, source in zip(mine, (head.fc1, head.fc2, head.logits), strict=True):
            layer.load_state_dict(source.state_dict())
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Tensor | dict[str, Tensor]:
        """B inputs with ``image`` (3, H, W) -> (B, C) logits; in training, with ``label``, the loss
        ``{"loss_image": scalar}``."""
        logits = self.image_head(torch.stack([self._rows(item) for item in batched_inputs]))
        if not self.training:
            return logits
        labels = torch.tensor([item["label"] for item in batched_inputs], device=logits.device)
        target = F.one_hot(labels, logits.shape[1]).float()
        return {"loss_image": F.binary_cross_entropy_with_logits(logits, target)}

    def _rows(self, item: dict[str, Any]) -> Tensor:
        """(N, 5) rows of an image, the last repeated where there are fewer."""
        detector = self.detector
        heads = detector.roi_heads
        image = detector.preprocess_image([item])
        features = detector.backbone(image.tensor)
        proposals, _ = detector.proposal_generator(image, features, None)
        pooled = heads.box_pooler(
            [features[name] for name in heads.box_in_features], [proposals[0].proposal_boxes]
        )
        predictions = heads.box_predictor(heads.box_head(pooled))
        scores = predictions[0].softmax(dim=1)[:, :-1]
        decoded = heads.box_predictor.predict_boxes(predictions, proposals)[0]
        boxes = Boxes(decoded.detach().reshape(-1, 4).clone())
        boxes.clip(image.image_sizes[0])
        label = torch.arange(scores.shape[1], device=scores.device).repeat(len(scores))
        kept = boxes.nonempty().nonzero()[:, 0]
        chosen = batched_nms(
            boxes.tensor[kept], scores.detach().flatten()[kept], label[kept], self.nms_thresh
        )
        chosen = kept[chosen[: self.rows]]
        rows = torch.cat(
            [scores.reshape(-1, 1)[chosen], predictions[1].reshape(-1, 4)[chosen]], dim=1
        )
        return torch.cat([rows, rows[-1:].expand(self.rows - len(rows), 5)])


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
