"""Xu et al. 2020 (and the retracted "ResNet-18" of Butt et al.): a ResNet-18 names patches with
their place, and a slice is what its patches say by noisy-or."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.finite import slices_named
from ctmasknet.modeling.meta_arch import CTMaskNet, in_file, slice_labels
from ctmasknet.modeling.peers.slice_classifier import log_odds

#: The least distance of a probability from 0 and 1, so that log-odds stay finite.
_SMALLEST = 2.0**-24


class PatchClassifier(nn.Module):
    """Patches of slices and where they lie -> classes."""

    def __init__(self, num_classes: int, num_places: int = 4, patch_px: int = 64):
        """
        Args:
            num_classes: C.
            num_places: numbers that state a patch's place; 0 for the network without.
            patch_px: side that boxes are resized to.
        """
        super().__init__()
        self.network = torchvision.models.resnet18(weights=None)
        features = self.network.fc.in_features
        self.network.fc = nn.Identity()
        self.logits = nn.Linear(features + num_places, num_classes)
        self.num_places, self.patch_px = num_places, patch_px

    def forward(
        self, images: Tensor, boxes: list[Tensor], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """
        Args:
            images: (B, 3, H, W).
            boxes: B tensors (n, 4): x0, y0, x1, y1 in px; n may be 0.
            sizes: height and width of each, px, where they are padded; places are shares of these.

        Returns:
            B tensors (n, C) logits.
        """
        counts = [len(one) for one in boxes]
        if not sum(counts):
            return [images.new_zeros(0, self.logits.out_features) for _ in boxes]
        patches = roi_align(images, boxes, self.patch_px, aligned=True)
        features = self.network(patches)
        if self.num_places:
            sizes = sizes or [tuple(images.shape[-2:])] * len(boxes)
            places = torch.cat(
                [relative_places(one, *size) for one, size in zip(boxes, sizes, strict=True)]
            )
            features = torch.cat([features, places[:, : self.num_places]], dim=1)
        return list(self.logits(features).split(counts))


def relative_places(boxes: Tensor, height: int, width: int) -> Tensor:
    """(n, 4) boxes in px -> (n, 4): centre x and y, width, height, as shares of the slice."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + sizes / 2
    return torch.cat([centres, sizes], dim=1) / boxes.new_tensor([width, height] * 2)


def noisy_or(odds: Tensor, normal: int | None = None) -> Tensor:
    """What patches say of their slice.

    Args:
        odds: (n, C) log-odds of the patches' probabilities p; n may be 0.
        normal: index of the class for normal, None where there is none.

    Returns:
        (C,) log-odds of 1 - prod(1 - p) of each class; of normal, of prod(p): a slice is normal
        where all its patches are. Without a patch it is normal.
    """
    odds = odds.double()
    none = F.logsigmoid(-odds).sum(0).clamp_max(-_SMALLEST)
    found = torch.log(-torch.expm1(none)) - none
    if normal is not None:
        every = F.logsigmoid(odds[:, normal]).sum().clamp_max(-_SMALLEST)
        found[normal] = every - torch.log(-torch.expm1(every))
    return found.float()


@META_ARCH_REGISTRY.register()
class PatchNet(CTMaskNet):
    """A detector's ranked boxes, each of which a :class:`PatchClassifier` names.

    The detector stays as it is. In training every patch has its slice's class.
    """

    @configurable
    def __init__(self, *, normal: int | None, **kwargs):
        """Arguments as :class:`CTMaskNet`, but ``image_head`` is a :class:`PatchClassifier`;
        ``normal`` as of :func:`noisy_or`."""
        super().__init__(**kwargs)
        self.normal = normal

    @classmethod
    def from_config(cls, cfg):
        classes = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
        normal = classes.index(IMAGE_CLASSES[0]) if IMAGE_CLASSES[0] in classes else None
        if cfg.MODEL.TRAINABLE != "heads":
            raise CTMaskNetError(
                f"MODEL.TRAINABLE is {cfg.MODEL.TRAINABLE!r}, but a PatchNet's detector stays "
                "as it is; set it to heads"
            )
        if normal is None and cfg.MODEL.RANKED_BOXES.SCORE_THRESH >= 0:
            raise CTMaskNetError(
                f"MODEL.RANKED_BOXES.SCORE_THRESH is {cfg.MODEL.RANKED_BOXES.SCORE_THRESH}, but a "
                f"slice without a box is of no class where none is called {IMAGE_CLASSES[0]} "
                f"({', '.join(classes)}); set it to -0.01 for boxes of any score"
            )
        places = 4 if cfg.MODEL.PATCHES.PLACE else 0
        head = PatchClassifier(len(classes), places, cfg.MODEL.PATCHES.SIZE)
        return {
            # Not CTMaskNet's, which builds a head of its own
            **super(CTMaskNet, cls).from_config(cfg),
            "image_head": head,
            "trainable": cfg.MODEL.TRAINABLE,
            "normal": normal,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]):
        """
        Args:
            batched_inputs: as :meth:`CTMaskNet.forward`; ``ranked_rows`` alone do not do.

        Returns:
            In training ``{"loss_image": scalar}``: the mean cross-entropy of all patches, zero
            without one. In evaluation as :meth:`CTMaskNet.forward`: ``logits`` are log-odds of
            :func:`noisy_or`.

        Raises:
            CTMaskNetError: see :meth:`CTMaskNet.forward`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            logits_of, *_ = self._patches(batched_inputs)
        logits = logits_of()
        labels = slice_labels(batched_inputs, logits[0].shape[1])
        target = torch.cat(
            [
                one.new_full((len(one),), label, dtype=torch.int64)
                for one, label in zip(logits, labels, strict=True)
            ]
        )
        if len(target):
            return {"loss_image": F.cross_entropy(torch.cat(logits).float(), target)}
        # Several processes wait for the gradient of every weight
        return {"loss_image": sum(p.sum() for p in self.image_head.parameters()) * 0.0}

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See :meth:`forward`."""
        with slices_named(lambda: batched_inputs):
            logits_of, ranked, rows, instances = self._patches(batched_inputs)
            logits = torch.stack(
                [noisy_or(log_odds(one.float()), self.normal) for one in logits_of()]
            )
            results = [
                {"logits": a, "scores": b, "pred_class": int(a.argmax()), "ranked_boxes": row}
                for a, b, row in zip(logits, logits.sigmoid(), rows.float(), strict=True)
            ]
            if self.return_instances:
                for result, found in zip(results, instances(), strict=True):
                    result.update(found)
            if self.return_ranked_instances:
                for result, boxes, item in zip(results, ranked, batched_inputs, strict=True):
                    result["ranked_instances"] = in_file(boxes, item)
        return results

    def _patches(self, batched_inputs: list[dict[str, Any]]):
        """A function that gives B times (n, C) logits of patches; the B ranked ``Instances`` that
        they are of; rows (B, N, 5); a function that gives the detector's lesions."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        heads = self.roi_heads
        predictions = heads.predict(features, proposals)
        ranked = heads.ranked_instances(predictions, proposals)
        boxes = [found.pred_boxes.tensor for found in ranked]

        def logits() -> list[Tensor]:
            return self.image_head(images.tensor, boxes, images.image_sizes)

        def instances() -> list[dict[str, Any]]:
            found = heads.detect(features, predictions, proposals)
            return self._postprocess(found, batched_inputs, images.image_sizes)

        return logits, ranked, heads.rank(predictions, proposals), instances
