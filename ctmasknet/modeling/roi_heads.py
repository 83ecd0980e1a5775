"""RoI heads that hand on their N best boxes, ranked and still encoded (paper section 3.2).

Shapes in this module: B images a batch, R_i proposals in image i (R in all), K lesion classes, N
rows an image. A row is [score, dx, dy, dw, dh]: the softmax score of one class and that class's raw
regression outputs, before decoding and before division by the box weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.finite import check_boxes
from ctmasknet.modeling.masks import WAYS, PublishedBitMasks, PublishedROIMasks, SharedBitMasks
from ctmasknet.modeling.ranked_boxes import RowLayout, relative_boxes
from ctmasknet.modeling.roi_align import BagROIPooler, Float32ROIPooler

#: Side of the box that is pooled from p4. The published models add 1e-6 to side / 224 before taking
#: the logarithm (reference), so boxes a hair below a power of two times 224 go one level up.
CANONICAL_BOX_PX = 224 * (1 - 1e-6)


def padding_index(count: int, num: int, device: torch.device | None = None) -> Tensor:
    """Which of ``count`` boxes each of ``num`` rows repeats: row i is box ``floor(i * n / num)``.

    Returns:
        (N,) int64, rising; all -1 for no box.
    """
    if count == 0:
        return torch.full((num,), -1, device=device)
    return torch.arange(num, device=device) * count // num


def pad_rows(rows: Tensor, num: int) -> Tensor:
    """Make ``num`` rows of n <= num by repeating rows evenly, order kept.

    Which row goes where is told by :func:`padding_index`, so the result depends on nothing but
    ``rows`` (the authors repeat rows at random places, reference). Without any row the result is
    zero: no box, no score. It then still hangs on ``rows``, for several processes wait for the
    gradient of every weight.

    Args:
        rows: (n, 5).
        num: N.

    Returns:
        (N, 5)
    """
    if len(rows) == 0:
        return rows.new_zeros(num, rows.shape[1]) + rows.sum()
    return rows[padding_index(len(rows), num, rows.device)]


def select_ranked(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    *,
    num: int,
    score_thresh: float,
    nms_thresh: float,
) -> tuple[Tensor, Tensor]:
    """Choose the boxes that become rows: clip, drop empty ones, suppress a class at a time, best N.

    Args:
        boxes: (R_i, K, 4) decoded boxes, xyxy px.
        scores: (R_i, K) softmax scores of the lesion classes.
        image_size: (height, width) px of the image before padding.
        num: N, the most that are chosen.
        score_thresh: a box counts when its score is above this.
        nms_thresh: IoU above which the lower-scoring box of a class is dropped.

    Returns:
        proposal index and class index of the chosen, each (n,), n <= N, best score first.
    """
    clipped = Boxes(boxes.detach().reshape(-1, 4).clone())
    clipped.clip(image_size)
    scores = scores.detach()
    keep = clipped.nonempty().view_as(scores) & (scores > score_thresh) & torch.isfinite(scores)
    proposal, label = keep.nonzero(as_tuple=True)
    chosen = batched_nms(
        clipped.tensor.view_as(boxes)[proposal, label], scores[proposal, label], label, nms_thresh
    )[:num]
    return proposal[chosen], label[chosen]


@ROI_HEADS_REGISTRY.register()
class RankedBoxROIHeads(StandardROIHeads):
    """Detectron2's standard RoI heads with a second way out: ranked rows for an image head."""

    @configurable
    def __init__(
        self,
        *,
        num_ranked_boxes: int,
        ranked_nms_thresh: float,
        ranked_score_thresh: float,
        mask_paste: str = "detectron2",
        mask_targets: str = "detectron2",
        **kwargs,
    ):
        """
        Args:
            num_ranked_boxes: N.
            ranked_nms_thresh: IoU of the non-maximum suppression before ranking.
            ranked_score_thresh: scores have to be above this; negative keeps all.
            mask_paste: how predicted masks get into the image, see :mod:`.masks`.
            mask_targets: how ground-truth masks are cut to boxes in training.

        Raises:
            CTMaskNetError: an unknown way of pasting or cutting masks.
        """
        super().__init__(**kwargs)
        for key, way in (("PASTE", mask_paste), ("TARGETS", mask_targets)):
            if way not in WAYS:
                raise CTMaskNetError(
                    f"MODEL.ROI_MASK_HEAD.{key} is {way!r}; choose one of {', '.join(WAYS)}"
                )
        self.mask_paste = mask_paste
        self.mask_targets = mask_targets
        self.box_pooler = Float32ROIPooler.of(BagROIPooler.of(self.box_pooler))
        if self.mask_on:
            self.mask_pooler = Float32ROIPooler.of(self.mask_pooler)
        for pooler in (self.box_pooler, getattr(self, "mask_pooler", None)):
            if pooler is not None:
                pooler.canonical_box_size = CANONICAL_BOX_PX
        self.num_ranked_boxes = num_ranked_boxes
        self.ranked_nms_thresh = ranked_nms_thresh
        self.ranked_score_thresh = ranked_score_thresh

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            **super().from_config(cfg, input_shape),
            "num_ranked_boxes": cfg.MODEL.RANKED_BOXES.NUM,
            "ranked_nms_thresh": cfg.MODEL.RANKED_BOXES.NMS_THRESH,
            "ranked_score_thresh": cfg.MODEL.RANKED_BOXES.SCORE_THRESH,
            "mask_paste": cfg.MODEL.ROI_MASK_HEAD.PASTE,
            "mask_targets": cfg.MODEL.ROI_MASK_HEAD.TARGETS,
        }

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """See Detectron2's; the proposals of a lesion share its mask."""
        masks = PublishedBitMasks if self.mask_targets == "published" else SharedBitMasks
        for image in targets:
            if image.has("gt_masks") and isinstance(image.gt_masks, BitMasks):
                image.gt_masks = masks(image.gt_masks.tensor)
        return super().label_and_sample_proposals(proposals, targets)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        result = super()._forward_mask(features, instances)
        if self.mask_on and not self.training:
            masks = torch.cat([image.pred_masks for image in result])
            check_boxes("mask head", [masks], [len(image) for image in result])
        if self.mask_on and not self.training and self.mask_paste == "published":
            for image in result:
                image.pred_masks = PublishedROIMasks(image.pred_masks[:, 0])
        return result

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        if self.training:
            return super()._forward_box(features, proposals)
        return self.box_predictor.inference(self.predict(features, proposals), proposals)[0]

    def predict(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Run the box head once on the proposals of all images.

        Returns:
            class logits (R, K + 1), background last, and box deltas (R, 4 K).

        Raises:
            NotFiniteError: one of them is no finite number.
        """
        return self.predict_with_features(features, proposals)[0]

    def predict_with_features(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """:meth:`predict`, and what the box head computed for it (R, F)."""
        pooled = self.box_pooler(
            [features[name] for name in self.box_in_features],
            [image.proposal_boxes for image in proposals],
        )
        hidden = self.box_head(pooled)
        predictions = self.box_predictor(hidden)
        check_boxes("box head", predictions, [len(image) for image in proposals])
        return predictions, hidden

    def rank(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Tensor:
        """The N best boxes of every image as rows; gradients reach scores and deltas.

        Args:
            predictions: from :meth:`predict`.
            proposals: B instances with ``proposal_boxes``; any of them may be empty.

        Returns:
            (B, N, 5) rows [score, dx, dy, dw, dh], best score first.
        """
        chosen = self._select(predictions, proposals)
        return torch.stack(
            [
                pad_rows(found, self.num_ranked_boxes)
                for found in self._encoded(predictions, proposals, chosen)
            ]
        )

    def rank_with(
        self,
        layout: RowLayout,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        features: dict[str, Tensor],
        hidden: Tensor,
        lungs: Sequence[Sequence[float] | None] | None = None,
    ) -> Tensor:
        """The rows of :meth:`rank` with all that an image head reads; gradients reach scores,
        deltas, ``features`` and ``masks``.

        Args:
            layout: what a row holds.
            predictions, hidden: from :meth:`predict_with_features`.
            proposals: B instances with ``proposal_boxes``; any of them may be empty.
            features: of the backbone.
            lungs: where boxes are relative to them, of each image the box around its lungs, xyxy
                px, or None where there are none.

        Returns:
            (B, N, D) rows, see :mod:`ctmasknet.modeling.ranked_boxes`.
        """
        chosen = self._select(predictions, proposals)
        more = self._read(layout, predictions, proposals, chosen, features, hidden, lungs)
        rows = []
        for encoded, columns in zip(
            self._encoded(predictions, proposals, chosen), more, strict=True
        ):
            rows.append(pad_rows(torch.cat([encoded, *columns], dim=1), self.num_ranked_boxes))
        return torch.stack(rows)

    def _encoded(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        chosen: list[tuple[Tensor, Tensor]],
    ) -> list[Tensor]:
        """Of each image score and deltas (n, 5) of the chosen."""
        probabilities = self.box_predictor.predict_probs(predictions, proposals)
        deltas = predictions[1].split([len(image) for image in proposals])
        return [
            torch.cat(
                [
                    probability[proposal, label].unsqueeze(1),
                    delta.unflatten(1, (-1, 4))[proposal, label],
                ],
                dim=1,
            )
            for probability, delta, (proposal, label) in zip(
                probabilities, deltas, chosen, strict=True
            )
        ]

    def _read(
        self,
        layout: RowLayout,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        chosen: list[tuple[Tensor, Tensor]],
        features: dict[str, Tensor],
        hidden: Tensor,
        lungs: Sequence[Sequence[float] | None] | None,
    ) -> list[list[Tensor]]:
        """Of each image the columns (n, ...) that a layout has beside the five numbers."""
        columns: list[list[Tensor]] = [[] for _ in proposals]
        decoded = self.box_predictor.predict_boxes(predictions, proposals)
        ranked = []
        for image, boxes, (proposal, label) in zip(proposals, decoded, chosen, strict=True):
            found = Boxes(boxes.detach().unflatten(1, (-1, 4))[proposal, label])
            found.clip(image.image_size)
            ranked.append(found)
        if "boxes" in layout.reads:
            for own, image, boxes, (proposal, label), lung in zip(
                columns, proposals, ranked, chosen, lungs or [None] * len(columns), strict=True
            ):
                classes = torch.nn.functional.one_hot(label, layout.num_classes)
                frame = image.image_size if lung is None else lung
                own += [
                    relative_boxes(boxes.tensor, frame),
                    relative_boxes(image.proposal_boxes.tensor[proposal], frame),
                    classes.to(boxes.tensor.dtype),
                ]
                if layout.needs_lungs:
                    own.append(boxes.tensor.new_full((len(boxes), 1), float(lung is not None)))
        if "features" in layout.reads:
            every = hidden.split([len(image) for image in proposals])
            for own, values, (proposal, _) in zip(columns, every, chosen, strict=True):
                own.append(values[proposal].float())
        if "masks" in layout.reads:
            labels = torch.cat([label for _, label in chosen])
            means = self._mask_means(features, ranked, labels)
            for own, values in zip(columns, means.split(list(map(len, ranked))), strict=True):
                own.append(values)
        return columns

    def _mask_means(
        self, features: dict[str, Tensor], boxes: list[Boxes], labels: Tensor
    ) -> Tensor:
        """(n, M + 1) of all images: means over space of the mask head's last hidden layer, and of
        the mask of the box' class."""
        pooled = self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
        *layers, predictor = self.mask_head.children()
        for layer in layers:
            pooled = layer(pooled)
        masks = predictor(pooled).float().sigmoid()
        # One mask for all classes, where the head is agnostic of them
        own = masks[torch.arange(len(masks)), labels if masks.shape[1] > 1 else 0 * labels]
        return torch.cat([pooled.float().mean((2, 3)), own.mean((1, 2))[:, None]], dim=1)

    @torch.no_grad()
    def ranked_instances(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """The boxes behind the rows of :meth:`rank`, decoded.

        Row i of an image with n boxes is box ``padding_index(n, N)[i]``.

        Args:
            predictions: from :meth:`predict`.
            proposals: B instances with ``proposal_boxes``.

        Returns:
            B instances of n <= N boxes each, best score first: ``pred_boxes`` (xyxy px of the image
            as the model has it, clipped to it), ``scores``, ``pred_classes``.
        """
        boxes = self.box_predictor.predict_boxes(predictions, proposals)
        probabilities = self.box_predictor.predict_probs(predictions, proposals)
        chosen = self._select(predictions, proposals)
        found = []
        for image, decoded, probability, (proposal, label) in zip(
            proposals, boxes, probabilities, chosen, strict=True
        ):
            ranked = Instances(image.image_size)
            ranked.pred_boxes = Boxes(decoded.unflatten(1, (-1, 4))[proposal, label])
            ranked.pred_boxes.clip(image.image_size)
            ranked.scores = probability[proposal, label]
            ranked.pred_classes = label
            found.append(ranked)
        return found

    @torch.no_grad()
    def keep_ranked(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """The proposals that become rows, in their order.

        :meth:`predict` and :meth:`rank` give the same rows for them as for all: what outranks or
        suppresses a box becomes a row itself. No other proposal has a gradient, so training saves
        the way back through the rest, which is most of them.
        """
        chosen = self._select(self.predict(features, proposals), proposals)
        return [
            image[proposal.unique()] for image, (proposal, _) in zip(proposals, chosen, strict=True)
        ]

    @torch.no_grad()
    def _select(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[tuple[Tensor, Tensor]]:
        """:func:`select_ranked` of every image; which boxes are chosen is not differentiable."""
        boxes = self.box_predictor.predict_boxes(predictions, proposals)
        probabilities = self.box_predictor.predict_probs(predictions, proposals)
        return [
            select_ranked(
                decoded.unflatten(1, (-1, 4)),
                probability[:, :-1],
                image.image_size,
                num=self.num_ranked_boxes,
                score_thresh=self.ranked_score_thresh,
                nms_thresh=self.ranked_nms_thresh,
            )
            for image, decoded, probability in zip(proposals, boxes, probabilities, strict=True)
        ]

    def detect(
        self,
        features: dict[str, Tensor],
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
    ) -> list[Instances]:
        """The detections that Mask R-CNN would give for ``predictions``, masks included where there
        is a mask head.

        Score threshold, suppression and count are the test settings of the detector, not those of
        :meth:`rank`.
        """
        instances, _ = self.box_predictor.inference(predictions, proposals)
        return self.forward_with_given_boxes(features, instances)

    def drop_mask_branch(self) -> None:
        """Forget the mask head, for weights that come without one."""
        self.mask_on = False
        self.mask_head = self.mask_pooler = None
