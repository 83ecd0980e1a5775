"""Which ranked boxes moved a slice's logits: exact occlusion, or integrated gradients, of rows.

Shapes: N rows of D numbers (5 for the paper's head S), n <= N boxes, C classes. Where there are
fewer boxes than rows, rows repeat boxes (:func:`ctmasknet.modeling.roi_heads.padding_index`); all
rows of a box are hidden together, because a box that is half hidden is not hidden.

A box can be hidden in two ways, which ask different questions:

``zero``
    Its rows become zero, what the image head is given for "no box"; all other rows stay where they
    are. This asks what the head made of these numbers in this place. Integrated gradients start
    from the same zero, so for a linear head the two agree to the last digit.
``removed``
    The box is struck from the ranked list, the rest moves up and is padded to N rows again, as
    if the detector had not found it. In a full list an N+1st box would now come last; the last one
    is repeated in its stead, for rows that far down are much alike. Boxes that the struck one
    suppressed do not come back. The head knows a box by its place, so moving all the others can
    change a logit more than the box itself did.

Either is a statement on the image head's input. It says nothing of why a patient is ill, and not
even which px the detector looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.roi_heads import pad_rows, padding_index

#: The sentence that goes with every picture and file of attributions.
CAVEAT = "input to the decision, not cause"
METHODS = ("occlusion", "integrated_gradients")
HIDDEN = ("zero", "removed")
#: Occluded slices that go through the head at once: 256 slices of 256 rows are 1.3 MB.
_AT_ONCE = 256
# Integration points: doubled from the first to the last until the weights add up.
_STEPS, _MOST_STEPS = 64, 4096
_TOLERANCE = 0.01
#: (B, N, D) rows -> (B, C) logits.
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BoxAttribution:
    """How far each box moved each logit.

    Attributes:
        method: one of :data:`METHODS`.
        logits: (C,) of the slice.
        without_boxes: (C,) logits of a slice without any box (rows all zero).
        weights: (n, C); positive speaks for the class, negative against it.
        box_of_row: (N,) index of each row's box, -1 where there is none.
        rest: (C,) ``logits - without_boxes - weights.sum(0)``: for occlusion what boxes do only
            together, for integrated gradients what the integration missed.
        complete: whether integrated gradients add up, to 1 % of the largest change of a logit;
            None for occlusion, which need not.
    """

    method: str
    logits: Tensor
    without_boxes: Tensor
    weights: Tensor
    box_of_row: Tensor
    rest: Tensor
    complete: bool | None = None


def attribute(
    head: Head, rows: Tensor, count: int, *, method: str = "occlusion", hidden: str = "zero"
) -> BoxAttribution:
    """Attribution of one slice.

    Args:
        head: the image head, in evaluation mode.
        rows: (N, D), ``ranked_rows`` of the model's result.
        count: n, the number of ``ranked_instances``.
        method: one of :data:`METHODS`.
        hidden: one of :data:`HIDDEN`; integrated gradients know ``zero`` alone.

    Raises:
        CTMaskNetError: an unknown method or way of hiding, more boxes than rows, or integrated
            gradients without captum.
    """
    check_method(method, hidden)
    if method == "occlusion":
        return occlude(head, rows, count, hidden=hidden)
    return integrate_gradients(head, rows, count)


def check_method(method: str, hidden: str) -> None:
    """Refuse what :func:`attribute` does not know, before a model is loaded.

    Raises:
        CTMaskNetError: says what there is.
    """
    if method not in METHODS:
        raise CTMaskNetError(f"method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    if hidden not in HIDDEN:
        raise CTMaskNetError(
            f"way of hiding {hidden!r} is unknown; choose one of {', '.join(HIDDEN)}"
        )
    if method == "integrated_gradients":
        if hidden != "zero":
            raise CTMaskNetError(
                f"integrated gradients start from zero rows; boxes {hidden} need the method "
                "occlusion"
            )
        _captum()


@torch.no_grad()
def occlude(head: Head, rows: Tensor, count: int, *, hidden: str = "zero") -> BoxAttribution:
    """Exact occlusion: the head is run once for every box hidden.

    The n occluded slices are one batch through the head (in portions of 256). Weight [k, c] is the
    logit of class c less the logit without box k. Arguments as :func:`attribute`.
    """
    box_of_row = _box_of_row(rows, count)
    logits, without_boxes = _ends(head, rows)
    weights = logits.new_zeros(count, len(logits))
    for start in range(0, count, _AT_ONCE):
        boxes = torch.arange(start, min(start + _AT_ONCE, count), device=rows.device)
        weights[boxes] = logits - head(_hide(rows, box_of_row, boxes, hidden))
    rest = logits - without_boxes - weights.sum(0)
    return BoxAttribution("occlusion", logits, without_boxes, weights, box_of_row, rest)


def integrate_gradients(head: Head, rows: Tensor, count: int) -> BoxAttribution:
    """Integrated gradients (Sundararajan et al. 2017) along the straight way from zero rows.

    By captum, with Gauss-Legendre points. Their number is doubled until the weights add up to the
    change of the logit within 1 %, or is 4096. A box' weight is the sum over its rows and their
    numbers. Heads that take boxes as a set jump where a row becomes zero, and then do not add up.
    Arguments as :func:`attribute`.

    Raises:
        CTMaskNetError: captum is not installed.
    """
    gradients = _captum()(head)
    box_of_row = _box_of_row(rows, count)
    with torch.no_grad():
        logits, without_boxes = _ends(head, rows)
    change = logits - without_boxes
    # A logit that hardly changed is held against the one that changed most
    tolerance = _TOLERANCE * change.abs().max()
    columns, complete = [], True
    for target in range(len(logits)) if count else ():
        steps = _STEPS
        while True:
            column = gradients.attribute(
                rows.detach()[None],
                baselines=0.0,
                target=target,
                n_steps=steps,
                internal_batch_size=_AT_ONCE,
            )
            column = column.detach()[0].sum(1).to(logits.dtype)
            close = bool((change[target] - column.sum()).abs() <= tolerance)
            if close or steps >= _MOST_STEPS:
                break
            steps *= 2
        complete = complete and close
        columns.append(column)
    weights = logits.new_zeros(count, len(logits))
    if count:
        weights.index_add_(0, box_of_row, torch.stack(columns, dim=1))
    rest = change - weights.sum(0)
    return BoxAttribution(
        "integrated_gradients", logits, without_boxes, weights, box_of_row, rest, complete
    )


def _box_of_row(rows: Tensor, count: int) -> Tensor:
    if count > len(rows):
        raise CTMaskNetError(
            f"{count} boxes do not fit {len(rows)} rows; give the rows and the boxes of one slice"
        )
    return padding_index(count, len(rows), rows.device)


def _ends(head: Head, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the rows and of no box."""
    return tuple(head(torch.stack([rows, torch.zeros_like(rows)])))


def _hide(rows: Tensor, box_of_row: Tensor, boxes: Tensor, hidden: str) -> Tensor:
    """(K, N, 5) rows, in each another one of the K ``boxes`` hidden."""
    if hidden == "zero":
        return rows * (box_of_row != boxes[:, None])[..., None]
    first = torch.searchsorted(
        box_of_row, torch.arange(int(box_of_row[-1]) + 1, device=rows.device)
    )
    alone = rows[first]
    hidden_rows = []
    for k in boxes.tolist():
        left = torch.cat([alone[:k], alone[k + 1 :]])
        if len(alone) == len(rows):
            left = torch.cat([left, left[-1:]])
        hidden_rows.append(pad_rows(left, len(rows)))
    return torch.stack(hidden_rows)


def _captum() -> Callable:
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise CTMaskNetError(
            "integrated gradients need captum; install it with `pip install captum`, "
            "or choose the method occlusion"
        ) from error
    return IntegratedGradients
