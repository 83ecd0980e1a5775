"""The classifier as one program of tensors, for ``torch.export`` and ONNX.

N, the rows an image, is fixed, and so is everything before them: where Detectron2 drops boxes, this
program keeps them and marks them. Rows and logits are those of the model; of boxes with one
score, another may come first.

Shapes: H, W the slice's sides in px, L levels, T boxes proposed before suppression, R after it, K
lesion classes, N rows, C slice classes.
"""

from __future__ import annotations

import copy

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import nms, roi_align

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.meta_arch import CTMaskNet
from ctmasknet.modeling.roi_align import BagROIPooler, roi_align_levels


class ExportableClassifier(nn.Module):
    """From one slice to logits and ranked rows, without anything whose size depends on the data."""

    def __init__(
        self, model: CTMaskNet, height: int, width: int, *, standard_operators: bool = False
    ):
        """
        Args:
            model: the classifier in evaluation mode; it is left alone.
            height: of every slice, px; as the mapper resizes it.
            width: likewise.
            standard_operators: pool boxes by RoIAlign on every level, which other runtimes know,
                instead of by one weighted sum.

        Raises:
            CTMaskNetError: the pooler is not one of Detectron2's RoIAlign.
        """
        super().__init__()
        if not isinstance(model.roi_heads.box_pooler, BagROIPooler):
            raise CTMaskNetError(
                "MODEL.ROI_BOX_HEAD.POOLER_TYPE: only ROIAlign and ROIAlignV2 with a fixed "
                "POOLER_SAMPLING_RATIO can be exported"
            )
        model = copy.deepcopy(model).eval().requires_grad_(False)
        fold_norms(model.backbone)
        self.backbone = model.backbone
        self.rpn_head = model.proposal_generator.rpn_head
        self.box_head = model.roi_heads.box_head
        self.box_predictor = model.roi_heads.box_predictor
        self.image_head = model.image_head
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)
        self.size = (height, width)
        divisor = model.backbone.size_divisibility
        self.padding = (0, -width % divisor, 0, -height % divisor)
        self.standard_operators = standard_operators
        # Parts without weights of their own stay outside the program's modules.
        self._rpn, self._heads = [model.proposal_generator], [model.roi_heads]
        anchors = self._anchors()
        for number, level in enumerate(anchors):
            self.register_buffer(f"anchors{number}", level)
        # Plain numbers, which are constants of the program.
        rpn = model.proposal_generator
        self._best = [min(len(level), rpn.pre_nms_topk[False]) for level in anchors]
        self._proposals = min(sum(self._best), rpn.post_nms_topk[False])

    def _anchors(self) -> list[Tensor]:
        rpn = self._rpn[0]
        _, right, _, bottom = self.padding
        sides = (self.size[0] + bottom, self.size[1] + right)
        image = self.pixel_mean.new_zeros(1, len(self.pixel_mean), *sides)
        with torch.no_grad():
            features = self.backbone(image)
        levels = rpn.anchor_generator([features[name] for name in rpn.in_features])
        return [level.tensor for level in levels]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            image: (1, 3, H, W) float32 RGB, 0..255.

        Returns:
            logits (1, C) and ranked rows (1, N, 5).
        """
        x = nn.functional.pad((image - self.pixel_mean) / self.pixel_std, self.padding)
        features = self.backbone(x)
        boxes, real = self._propose(features)
        heads = self._heads[0]
        pooled = self._pool([features[name] for name in heads.box_in_features], boxes)
        class_logits, deltas = self.box_predictor(self.box_head(pooled))
        rows = self._rank(class_logits, deltas, boxes, real)
        return self.image_head(rows[None]), rows[None]

    def _propose(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (R, 4) xyxy px, best first, and which of them are proposals (R,)."""
        rpn = self._rpn[0]
        scores, boxes, kept = [], [], []
        objectness, deltas = self.rpn_head([features[name] for name in rpn.in_features])
        for number, best in enumerate(self._best):
            score = objectness[number].permute(0, 2, 3, 1).flatten()
            delta = deltas[number].permute(0, 2, 3, 1).reshape(-1, 4)
            score, index = score.topk(best)
            anchors = getattr(self, f"anchors{number}")
            box = self._clip(rpn.box2box_transform.apply_deltas(delta[index], anchors[index]))
            sides = box[:, 2:] - box[:, :2]
            real = (sides > rpn.min_box_size).all(dim=1)
            real = real & score.isfinite() & box.isfinite().all(dim=1)
            scores.append(score)
            boxes.append(box)
            kept.append(_suppress(box, score, real, rpn.nms_thresh))
        real = torch.cat(kept)
        score = torch.where(real, torch.cat(scores), -torch.inf)
        order = _best(score, self._proposals)
        return torch.cat(boxes)[order], real[order]

    def _pool(self, features: list[Tensor], boxes: Tensor) -> Tensor:
        """L maps and boxes (R, 4) -> (R, C, P, P)."""
        pooler = self._heads[0].box_pooler
        first = pooler.level_poolers[0]
        scales = [level.spatial_scale for level in pooler.level_poolers]
        bins = pooler.output_size[0]
        options = {"aligned": first.aligned}
        level = assign_boxes_to_levels(
            [Boxes(boxes)],
            *(pooler.min_level, pooler.max_level),
            *(pooler.canonical_box_size, pooler.canonical_level),
        )
        numbered = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
        if not self.standard_operators:
            return roi_align_levels(
                features, numbered, level, scales, bins=bins, ratio=first.sampling_ratio, **options
            )
        pooled = boxes.new_zeros(1)
        for number, (one, scale) in enumerate(zip(features, scales, strict=True)):
            found = roi_align(one, numbered, bins, scale, first.sampling_ratio, **options)
            pooled = torch.where((level == number)[:, None, None, None], found, pooled)
        return pooled

    def _rank(self, class_logits: Tensor, deltas: Tensor, boxes: Tensor, real: Tensor) -> Tensor:
        """Class logits (R, K + 1), deltas (R, 4 K) and boxes (R, 4) of which some are real (R,)
        -> rows (N, 5)."""
        heads = self._heads[0]
        scores = self.box_predictor.predict_probs((class_logits, deltas), [boxes])[0][:, :-1]
        decoded = self.box_predictor.box2box_transform.apply_deltas(deltas, boxes)
        decoded = self._clip(decoded.view(-1, 4)).view(self._proposals, -1, 4)
        sides = decoded[..., 2:] - decoded[..., :2]
        counts = (sides > 0).all(dim=2) & (scores > heads.ranked_score_thresh) & real[:, None]
        kept = torch.stack(
            [
                _suppress(decoded[:, k], scores[:, k], counts[:, k], heads.ranked_nms_thresh)
                for k in range(scores.shape[1])
            ],
            dim=1,
        ).flatten()
        num = heads.num_ranked_boxes
        most = min(num, self._proposals * heads.num_classes)
        order = _best(torch.where(kept, scores.flatten(), -torch.inf), most)
        found = torch.cat([scores.reshape(-1, 1), deltas.view(-1, 4)], dim=1)[order]
        # As pad_rows does it.
        count = kept.sum().clamp(max=num)
        rows = found[torch.arange(num, device=count.device) * count // num]
        return torch.where(count > 0, rows, 0)

    def _clip(self, boxes: Tensor) -> Tensor:
        """(n, 4) xyxy px, within the slice."""
        height, width = self.size
        x = boxes[:, 0::2].clamp(0, width)
        y = boxes[:, 1::2].clamp(0, height)
        return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def _suppress(boxes: Tensor, scores: Tensor, real: Tensor, threshold: float) -> Tensor:
    """Which of the real boxes (n, 4) no better one suppresses: (n,) bool."""
    # Beside the image and below every score, the others suppress nothing.
    aside = torch.where(real[:, None], boxes, -1e4)
    kept = nms(aside, torch.where(real, scores, -1e4), threshold)
    return (torch.zeros_like(scores).index_fill(0, kept, 1.0) > 0) & real


def _best(scores: Tensor, num: int) -> Tensor:
    """Indices (num,) of the best scores, of like ones the first."""
    if torch.onnx.is_in_onnx_export():
        # ONNX's TopK keeps the order of like scores, and its exporter knows no stable sort.
        return scores.topk(num).indices
    return scores.sort(descending=True, stable=True).indices[:num]


def fold_norms(module: nn.Module) -> None:
    """Replace the batch normalisations within a backbone's convolutions by their weights."""
    for conv in module.modules():
        norm = conv.norm if isinstance(conv, Conv2d) else None
        if not isinstance(norm, FrozenBatchNorm2d | _BatchNorm):
            continue
        values = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        mean, variance, factor, shift = (value.detach().double() for value in values)
        bias = None if conv.bias is None else conv.bias.detach().double()
        weight, bias = fuse_conv_bn_weights(
            conv.weight.detach().double(), bias, mean, variance, norm.eps, factor, shift
        )
        conv.weight, conv.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
        conv.norm = None
