"""The author's later models beyond their goldens: copying, files that do not fit."""

import pytest
import torch

from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.two_branch import import_two_branch
from tests.helpers.golden_state import build
from tests.helpers.peer_goldens import FOLDER, Golden
from tests.modeling.peers.runners_author import _state


def test_the_copied_branch_is_the_segmentations_and_never_trained():
    model = build("configs/peers/affinity.yaml")
    heads = model.roi_heads
    assert not torch.equal(heads.box_head.fc1.weight, heads.ranked.box_head.fc1.weight)
    reduce = heads.ranked.mask_head.reduce.weight.clone()
    heads.copy_branch()
    assert torch.equal(heads.box_head.fc1.weight, heads.ranked.box_head.fc1.weight)
    assert torch.equal(heads.mask_head.deconv.weight, heads.ranked.mask_head.deconv.weight)
    assert torch.equal(heads.ranked.mask_head.reduce.weight, reduce)
    assert not any(p.requires_grad for p in heads.ranked.parameters())


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER}: no folder of goldens")
def test_files_that_do_not_fit_are_refused():
    state = _state(Golden.read(FOLDER / "affinity_r18_a64.json"))
    shared = "affinity_layer.sieve.1.bn.weight"
    with pytest.raises(CTMaskNetError, match=f"{shared} differs"):
        import_two_branch({**state, shared: state[shared] + 1})
    with pytest.raises(CTMaskNetError, match="no_such has no place"):
        import_two_branch({**state, "no_such": torch.zeros(1)})
    state.pop("affinity_layer.bn3.bias")
    with pytest.raises(CTMaskNetError, match=r"image_head.vectors.bn3.bias .*is missing"):
        import_two_branch(state)
