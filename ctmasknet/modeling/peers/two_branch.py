"""The later models of the paper's author: a detector whose box and mask heads exist twice.

The segmentation branch learns lesions; the other, which feeds the image head, is trained by no loss
but copied from the first. A step of training shows lesion slices, then labelled ones
(:class:`ctmasknet.engine.solver.AlternatingTrainer`). Names: "single shot" (S on ranked rows),
affinity, LSTM with attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.finite import slices_named
from ctmasknet.modeling.meta_arch import CTMaskNet, slice_labels
from ctmasknet.modeling.roi_heads import RankedBoxROIHeads, pad_rows

#: Parts that can evaluate with the statistics of their own batch.
PARTS = ("backbone", "image_head")


@ROI_HEADS_REGISTRY.register()
class TwoBranchROIHeads(RankedBoxROIHeads):
    """The segmentation branch; :attr:`ranked` is the branch of the image head."""

    @configurable
    def __init__(self, *, ranked: RankedBoxROIHeads, **kwargs):
        super().__init__(**kwargs)
        self.ranked = ranked.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg, input_shape):
        other = cfg.clone()
        other.defrost()
        other.MODEL.MASK_ON = bool(cfg.MODEL.TWO_BRANCH.MASK_FEATURES)
        other.MODEL.ROI_MASK_HEAD.NAME = "MaskFeatureHead"
        # Not in place of the standard heads' own, which look at the class that is built
        ranked = RankedBoxROIHeads(other, input_shape)
        return {**super().from_config(cfg, input_shape), "ranked": ranked}

    @torch.no_grad()
    def copy_branch(self) -> None:
        """Take over box and mask heads for the image head, as far as both have them."""
        theirs = {k: v for k, v in self.state_dict().items() if not k.startswith("ranked.")}
        for name, value in self.ranked.state_dict().items():
            if name in theirs and theirs[name].shape == value.shape:
                value.copy_(theirs[name])

    def mask_features(
        self, features: dict[str, Tensor], ranked: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Mask features of N boxes of every slice.

        Args:
            features: maps by level.
            ranked: boxes of :meth:`RankedBoxROIHeads.ranked_instances` of :attr:`ranked`.

        Returns:
            (B, N, 256, 28, 28) and the boxes (B, N, 4) px; zero for a slice without any.
        """
        heads = self.ranked
        pooled = heads.mask_pooler(
            [features[name] for name in heads.mask_in_features],
            [image.pred_boxes for image in ranked],
        )
        found = heads.mask_head(pooled).split([len(image) for image in ranked])
        num = heads.num_ranked_boxes
        padded = [pad_rows(one.flatten(1), num).view(num, *one.shape[1:]) for one in found]
        boxes = [pad_rows(image.pred_boxes.tensor, num) for image in ranked]
        return torch.stack(padded), torch.stack(boxes)


@META_ARCH_REGISTRY.register()
class TwoBranchNet(CTMaskNet):
    """See the module. Unlike :class:`CTMaskNet` it trains detector and image head together, and the
    batch normalisation of its backbone learns from both."""

    @configurable
    def __init__(self, *, batch_statistics: tuple[str, ...], own_pixels: bool, **kwargs):
        """
        Args:
            batch_statistics: those of :data:`PARTS` whose batch normalisation uses the statistics
                of the batch in evaluation too, as the author's scripts evaluate.
            own_pixels: every channel of a slice minus its own mean, over its own unbiased standard
                deviation, in place of fixed numbers.
        """
        self.batch_statistics = tuple(batch_statistics)
        self.own_pixels = own_pixels
        super().__init__(**kwargs)
        wrong = set(self.batch_statistics) - set(PARTS)
        if wrong:
            raise CTMaskNetError(
                f"MODEL.TWO_BRANCH.BATCH_STATISTICS is {list(batch_statistics)}; choose among "
                f"{', '.join(PARTS)}"
            )

    @classmethod
    def from_config(cls, cfg):
        return {
            **super().from_config(cfg),
            "batch_statistics": cfg.MODEL.TWO_BRANCH.BATCH_STATISTICS,
            "own_pixels": cfg.MODEL.TWO_BRANCH.OWN_PIXELS,
        }

    def set_trainable(self, mode: str) -> list[str]:
        """See :meth:`CTMaskNet.set_trainable`; the copied branch is never trained."""
        super().set_trainable(mode)
        names = []
        for name, parameter in self.named_parameters():
            wanted = not name.startswith("roi_heads.ranked.") and name not in self._frozen
            parameter.requires_grad_(wanted)
            names += [name] if wanted else []
        return names

    def train(self, mode: bool = True) -> TwoBranchNet:
        super().train(mode)
        self.backbone.train(mode)
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]):
        """See :meth:`CTMaskNet.forward`. In training, inputs with ``instances`` give the losses of
        the RPN and of the segmentation branch instead; labelled ones give ``loss_image``, whose
        gradient reaches backbone and image head alone."""
        if not self.training:
            return self.inference(batched_inputs)
        with slices_named(lambda: batched_inputs):
            if all("instances" in item for item in batched_inputs):
                return self._lesion_losses(batched_inputs)
            logits, _, _ = self._named(batched_inputs)
        labels = torch.tensor(slice_labels(batched_inputs, logits.shape[1]), device=logits.device)
        target = F.one_hot(labels, logits.shape[1]).to(torch.float32)
        return {"loss_image": F.binary_cross_entropy_with_logits(logits.float(), target)}

    def _lesion_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Those of Detectron2's Mask R-CNN."""
        images = self.preprocess_image(batched_inputs)
        truth = [item["instances"].to(self.device) for item in batched_inputs]
        features = self.backbone(images.tensor)
        parts = (self.proposal_generator, self.roi_heads)
        for part in parts:
            part.train()
        try:
            proposals, losses = self.proposal_generator(images, features, truth)
            _, of_heads = self.roi_heads(images, features, proposals, truth)
        finally:
            for part in parts:
                part.eval()
        return losses | of_heads

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        if not self.own_pixels:
            return super().preprocess_image(batched_inputs)
        images = [item["image"].to(self.device).float() / 255 for item in batched_inputs]
        images = [
            (image - image.mean((1, 2), keepdim=True))
            / image.std((1, 2), keepdim=True).clamp_min(1e-6)
            for image in images
        ]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See :meth:`CTMaskNet.forward`."""
        with slices_named(lambda: batched_inputs), self._statistics():
            logits, rows, extras = self._named(batched_inputs)
            logits, scores = logits.float(), logits.float().sigmoid()
            results = [
                {"logits": a, "scores": b, "pred_class": int(a.argmax()), "ranked_boxes": row}
                for a, b, row in zip(logits, scores, rows.float(), strict=True)
            ]
            if self.return_instances or self.return_ranked_instances:
                for result, extra in zip(results, extras(), strict=True):
                    result.update(extra)
        return results

    def _named(self, batched_inputs: list[dict[str, Any]]):
        """Logits (B, C), rows (B, N, 5), and a function that gives what else was asked for."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        with torch.no_grad():
            proposals, _ = self.proposal_generator(images, features, None)
        heads = self.roi_heads.ranked
        if torch.is_grad_enabled():
            proposals = heads.keep_ranked(features, proposals)
        predictions = heads.predict(features, proposals)
        rows = heads.rank(predictions, proposals)
        ranked = heads.ranked_instances(predictions, proposals)
        if getattr(self.image_head, "reads_mask_features", False):
            logits = self.image_head(*self.roi_heads.mask_features(features, ranked))
        else:
            logits = self.image_head(rows)

        def extras() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = [{} for _ in batched_inputs]
            if self.return_instances:
                theirs = self.roi_heads.predict(features, proposals)
                detections = self.roi_heads.detect(features, theirs, proposals)
                found = self._postprocess(detections, batched_inputs, images.image_sizes)
            if self.return_ranked_instances:
                for extra, item, boxes in zip(found, batched_inputs, ranked, strict=True):
                    extra["ranked_instances"] = _in_file(boxes, item)
            return found

        return logits, rows, extras

    @contextlib.contextmanager
    def _statistics(self) -> Iterator[None]:
        """Batch statistics in the parts that evaluate so; running ones stay as they are."""
        norms = [
            module
            for part in self.batch_statistics
            for module in getattr(self, part).modules()
            if isinstance(module, _BatchNorm) and not module.training
        ]
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        try:
            yield
        finally:
            for norm in norms:
                norm.training, norm.track_running_stats = False, True


def _in_file(boxes: Instances, item: dict[str, Any]) -> Instances:
    height, width = boxes.image_size
    size = (item.get("height", height), item.get("width", width))
    found = Instances(size, **boxes.get_fields())
    found.pred_boxes = Boxes(boxes.pred_boxes.tensor.clone())
    found.pred_boxes.scale(size[1] / width, size[0] / height)
    found.pred_boxes.clip(size)
    return found
