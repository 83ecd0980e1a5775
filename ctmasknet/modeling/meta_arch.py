"""CTMaskNet: a frozen-behaviour detector and an image head, in one model (paper section 3.2)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Instances
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.finite import slices_named
from ctmasknet.modeling.image_heads import build_image_head
from ctmasknet.modeling.ranked_boxes import ROW_FEATURES, RowLayout
from ctmasknet.modeling.trainable import set_trainable


@META_ARCH_REGISTRY.register()
class CTMaskNet(GeneralizedRCNN):
    """Classifier of whole slices by the ranked boxes of a lesion detector.

    The detector part always behaves as in evaluation: no sampling, no detector loss,
    batch-normalisation statistics as loaded. ``train()`` only switches what ``forward`` returns and
    puts the image head into training mode.
    """

    @configurable
    def __init__(
        self, *, image_head: nn.Module, trainable: str, layout: RowLayout | None = None, **kwargs
    ):
        """
        Args:
            image_head: (B, N, D) rows -> (B, C) logits.
            layout: what a row holds; default the five numbers of the paper.
            trainable: what is trained, see :mod:`ctmasknet.modeling.trainable`.
        """
        super().__init__(**kwargs)
        self.image_head = image_head
        self.layout = layout
        #: Also return the detector's ``Instances`` in evaluation, for overlays.
        self.return_instances = False
        #: Also return the boxes behind the rows in evaluation, decoded, for attributions.
        self.return_ranked_instances = False
        # What MODEL.BACKBONE.FREEZE_AT froze while the backbone was built.
        self._frozen = frozenset(
            name for name, value in self.named_parameters() if not value.requires_grad
        )
        self.set_trainable(trainable)
        self.register_load_state_dict_post_hook(_drop_masks_without_weights)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg):
        return {
            **super().from_config(cfg),
            "image_head": build_image_head(cfg),
            "layout": RowLayout.from_config(cfg),
            "trainable": cfg.MODEL.TRAINABLE,
        }

    def set_trainable(self, mode: str) -> list[str]:
        """Choose what is trained; returns the names of those parameters."""
        names = set_trainable(self, mode, self._frozen)
        self._detector_learns = any(not name.startswith("image_head.") for name in names)
        return names

    def train(self, mode: bool = True) -> CTMaskNet:
        super().train(mode)
        for part in (self.backbone, self.proposal_generator, self.roi_heads):
            part.eval()
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]):
        """
        Args:
            batched_inputs: B dicts with ``image`` (3, H, W), values 0..255, RGB; in training also
                ``label`` (int); ``height`` and ``width`` (px) scale returned instances. Inputs with
                ``ranked_rows`` (N, D) need no image: the detector is not run. Where boxes are
                relative to the lungs, ``lung_box`` (x0, y0, x1, y1 px of ``image``), None for none.

        Returns:
            In training ``{"loss_image": scalar}``: binary cross-entropy of the logits against the
            one-hot label, mean over classes and batch. In evaluation B dicts: ``logits`` (C,),
            ``scores`` (C,) sigmoid of the logits, ``pred_class`` int, ``ranked_boxes`` (N, 5),
            where the image head reads more ``ranked_rows`` (N, D), ``instances`` when
            ``return_instances`` is set, and ``ranked_instances`` when
            ``return_ranked_instances`` is: the n <= N boxes of the rows, best first
            (``pred_boxes`` px of ``height`` x ``width``, ``scores``, ``pred_classes``); row i is
            box ``padding_index(n, N)[i]``.

        Raises:
            CTMaskNetError: in training, an input has no label or one outside 0..C-1; the detector
                gives a number that is not finite (:mod:`ctmasknet.modeling.finite`).
        """
        if not self.training:
            return self.inference(batched_inputs)
        # A detector that does not learn is that of evaluation and of cached rows, in float32.
        precise = contextlib.nullcontext()
        if not self._detector_learns:
            precise = torch.autocast(self.device.type, enabled=False)
        learns = torch.set_grad_enabled(self._detector_learns)
        with learns, precise, slices_named(lambda: batched_inputs):
            rows, _ = self._ranked_boxes(batched_inputs)
        logits = self.image_head(rows)
        labels = torch.tensor(slice_labels(batched_inputs, logits.shape[1]), device=logits.device)
        target = F.one_hot(labels, logits.shape[1]).to(torch.float32)
        return {"loss_image": F.binary_cross_entropy_with_logits(logits.float(), target)}

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See :meth:`forward`. No gradients are recorded."""
        with slices_named(lambda: batched_inputs):
            rows, extras = self._ranked_boxes(batched_inputs)
        logits = self.image_head(rows).float()
        scores = logits.sigmoid()
        results = [
            {
                "logits": logit,
                "scores": score,
                "pred_class": int(logit.argmax()),
                "ranked_boxes": row[:, : len(ROW_FEATURES)],
                **({"ranked_rows": row} if row.shape[1] > len(ROW_FEATURES) else {}),
            }
            for logit, score, row in zip(logits, scores, rows.float(), strict=True)
        ]
        if self.return_instances or self.return_ranked_instances:
            with slices_named(lambda: batched_inputs):
                found = extras()
            for result, extra in zip(results, found, strict=True):
                result.update(extra)
        return results

    def _ranked_boxes(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[Tensor, Callable[[], list[dict[str, Any]]]]:
        """Rows (B, N, D), and a function that makes what else was asked for from the same pass."""
        if all("ranked_rows" in item for item in batched_inputs):
            rows = torch.stack([item["ranked_rows"] for item in batched_inputs])
            return rows.to(self.device), _no_boxes
        images = self.preprocess_image(batched_inputs)
        features: dict[str, Tensor] = self.backbone(images.tensor)
        # Proposals are boxes, not values: nothing flows back through them in any mode.
        with torch.no_grad():
            proposals, _ = self.proposal_generator(images, features, None)
        if torch.is_grad_enabled():
            proposals = self.roi_heads.keep_ranked(features, proposals)
        heads = self.roi_heads
        if self.layout is None or not self.layout.reads:
            predictions = heads.predict(features, proposals)
            rows = heads.rank(predictions, proposals)
        else:
            predictions, hidden = heads.predict_with_features(features, proposals)
            lungs = list(map(_lung_box, batched_inputs)) if self.layout.needs_lungs else None
            rows = heads.rank_with(self.layout, predictions, proposals, features, hidden, lungs)

        def extras() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = [{} for _ in batched_inputs]
            if self.return_instances:
                detections = self.roi_heads.detect(features, predictions, proposals)
                found = self._postprocess(detections, batched_inputs, images.image_sizes)
            if self.return_ranked_instances:
                ranked = self.roi_heads.ranked_instances(predictions, proposals)
                for extra, item, boxes in zip(found, batched_inputs, ranked, strict=True):
                    extra["ranked_instances"] = in_file(boxes, item)
            return found

        return rows, extras


def head_rows(result: dict[str, Any]) -> Tensor:
    """(N, D) what the image head was given for a result of :meth:`CTMaskNet.inference`."""
    return result.get("ranked_rows", result["ranked_boxes"])


def in_file(boxes: Instances, item: dict[str, Any]) -> Instances:
    """Boxes in px of the input's ``height`` x ``width``. Unlike Detectron2's postprocessing this
    drops none: rows are known by their number."""
    height, width = boxes.image_size
    size = (item.get("height", height), item.get("width", width))
    boxes = Instances(size, **boxes.get_fields())
    boxes.pred_boxes.scale(size[1] / width, size[0] / height)
    boxes.pred_boxes.clip(size)
    return boxes


def _lung_box(item: dict[str, Any]) -> Sequence[float] | None:
    name = item.get("file_name", "a slice")
    if "lung_box" not in item:
        raise CTMaskNetError(
            f"{name}: its input has no lung_box, which the image head's boxes are relative to "
            "(MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO lungs); give it, None for no lung"
        )
    if item["lung_box"] is None:
        told = f"{name}: no lung was found, so its boxes are relative to the image (told once)"
        log_first_n(logging.WARNING, told, key="caller")
    return item["lung_box"]


def _no_boxes() -> list[dict[str, Any]]:
    raise CTMaskNetError(
        "return_instances: inputs with ranked_rows hold no image to find boxes in; give images"
    )


def slice_labels(batched_inputs: Sequence[dict[str, Any]], num_classes: int) -> list[int]:
    """The inputs' labels.

    Raises:
        CTMaskNetError: a slice has none, or one outside 0..num_classes - 1.
    """
    for item in batched_inputs:
        label = item.get("label")
        if label is None or not 0 <= label < num_classes:
            raise CTMaskNetError(
                f"{item.get('file_name', 'a slice')}: label {label!r} is not one of "
                f"0..{num_classes - 1}; "
                "prepare the data set again, or set MODEL.IMAGE_HEAD.CLASSES to its classes"
            )
    return [item["label"] for item in batched_inputs]


def _drop_masks_without_weights(model: CTMaskNet, incompatible) -> None:
    """Published classifiers come without a mask head; a random one must not draw masks. One that
    the image head reads stays missing."""
    if model.layout is not None and "masks" in model.layout.reads:
        return
    prefix = "roi_heads.mask_head."
    missing = [name for name in incompatible.missing_keys if name.startswith(prefix)]
    if missing and len(missing) == sum(name.startswith(prefix) for name in model.state_dict()):
        model.roi_heads.drop_mask_branch()
        for name in missing:
            incompatible.missing_keys.remove(name)
