"""The sizes the paper and the authors' code state, exactly.

In the authors' layout a background class has rows of its own: 4 box outputs (516 numbers) and one
mask (257, or 129 in a lightweight model). Detectron2's models have none, and nothing else differs.
"""

import pytest
import torch

from ctmasknet.modeling.trainable import set_trainable
from ctmasknet.weights.imported import import_checkpoint
from ctmasknet.weights.layout import AuthorsVariant, authors_layout
from tests.helpers.golden_state import build

BACKGROUND_BOX = 4 * (128 + 1)
BACKGROUND_MASK = 256 + 1
BACKGROUND_MASK_LIGHT = 128 + 1
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def count(layout) -> tuple[int, int]:
    """Parameters, and all numbers of the state dict, in the authors' layout."""
    sizes = {name: _numel(slot.shape) for name, slot in layout.items()}
    learned = sum(size for name, size in sizes.items() if not name.endswith(STATISTICS))
    return learned, sum(sizes.values())


def _numel(shape) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("variant", "learned", "whole", "config"),
    [
        (AuthorsVariant(50, 0, 2, True, False), 31_728_744, 31_781_917, "seg"),
        (AuthorsVariant(50, 0, 1, True, False), 31_727_842, 31_781_015, "seg_r50_merge"),
        (AuthorsVariant(34, 0, 1, True, False), 24_619_234, None, "seg_r34_t0_merge"),
        (AuthorsVariant(34, 1, 1, True, False), 11_439_330, None, "seg_r34_t1_merge"),
        (AuthorsVariant(34, 2, 1, True, False), 4_584_162, None, "seg_r34_t2_merge"),
        (AuthorsVariant(18, 0, 1, True, False), 14_511_074, None, "seg_r18_t0_merge"),
        (AuthorsVariant(18, 1, 1, True, False), 6_051_810, None, "seg_r18_t1_merge"),
        (AuthorsVariant(18, 2, 1, True, False), 3_919_330, None, "seg_r18_t2_merge"),
    ],
    ids=str,
)
def test_segmentation_models(variant, learned, whole, config):
    theirs = count(authors_layout(variant))
    assert theirs[0] == learned and whole in (None, theirs[1])
    mask = BACKGROUND_MASK_LIGHT if variant.lightweight else BACKGROUND_MASK
    ours = build(f"configs/{config}.yaml", device="meta")
    assert parameters(ours) == learned - BACKGROUND_BOX - mask


@pytest.mark.parametrize(
    ("variant", "learned", "head", "config"),
    [
        (AuthorsVariant(50, 0, 2, False, True), 31_469_672, 2_364_419, "cls"),
        (AuthorsVariant(34, 1, 1, False, True), 11_670_755, 592_387, "cls_r34_t1_merge"),
        (AuthorsVariant(18, 1, 1, False, True), 6_283_235, 592_387, "cls_r18_t1_merge"),
    ],
    ids=str,
)
def test_classifiers_without_mask_head(variant, learned, head, config):
    layout = authors_layout(variant)
    assert count(layout)[0] == learned
    assert count({n: s for n, s in layout.items() if n.startswith("s2new.")})[0] == head
    ours = build(f"configs/{config}.yaml", device="meta")
    assert parameters(ours.image_head) == head
    ours.roi_heads.drop_mask_branch()
    assert parameters(ours) == learned - BACKGROUND_BOX


def test_the_papers_figures_in_millions():
    # Table 1: 31.78M is the whole state dict; 34.14M adds S (34,146,336, cut off, not rounded).
    _, whole = count(authors_layout(AuthorsVariant(50, 0, 2, True, False)))
    _, with_head = count(authors_layout(AuthorsVariant(50, 0, 2, True, True)))
    assert (whole, with_head) == (31_781_917, 34_146_336)
    assert (whole // 10_000, with_head // 10_000) == (3178, 3414)
    assert with_head - whole == 2_364_419


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("heads", 2_364_419),
        ("heads_bn", 2_364_419 + 53_120),
        ("heads_bn_no_shortcut", 2_364_419 + 45_440),
    ],
)
def test_trainable_parameters(mode, expected):
    model = build("configs/cls.yaml", "MODEL.TRAINABLE", mode, device="meta")
    trained = [item for item in model.parameters() if item.requires_grad]
    assert sum(item.numel() for item in trained) == expected
    names = set_trainable(model, mode)
    assert len(names) == len(trained)


def test_nothing_but_the_background_is_lost_on_import():
    variant = AuthorsVariant(50, 0, 2, True, True)
    layout = authors_layout(variant)
    state = {name: torch.empty(slot.shape, device="meta") for name, slot in layout.items()}
    converted, _ = import_checkpoint(state)
    before = sum(tensor.numel() for tensor in state.values())
    after = sum(tensor.numel() for tensor in converted.values())
    assert before - after == BACKGROUND_BOX + BACKGROUND_MASK
