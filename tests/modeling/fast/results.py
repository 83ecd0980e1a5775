"""What two forms of a model give, compared."""

import torch


def assert_same(found, expected) -> None:
    """Rows, logits, boxes and masks but for rounding."""
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs["ranked_boxes"][:, 0].std() > 0.001
        assert (ours["ranked_boxes"] - theirs["ranked_boxes"]).abs().max() < 1e-3
        assert (ours["logits"] - theirs["logits"]).abs().max() < 1e-4
        boxes = [one["instances"].pred_boxes.tensor for one in (ours, theirs)]
        torch.testing.assert_close(*boxes, atol=1e-2, rtol=0)
        masks = [one["instances"].pred_masks for one in (ours, theirs)]
        assert len(masks[0]) and (masks[0] == masks[1]).float().mean() > 0.999


def assert_near(rows, others) -> None:
    """Scores of like boxes differ, and little; compared by box, as one that suppression decides
    otherwise, which rounding may do, shifts all ranks behind it."""
    distances = (rows[None, :, 1:] - others[:, None, 1:]).abs().amax(dim=2)
    differences = (rows[distances.argmin(dim=1), 0] - others[:, 0]).abs()
    assert differences.median() > 0
    assert (differences < 0.01).float().mean() > 0.8
