"""Patches with their place, and noisy-or."""

import pytest
import torch
from torch.nn import functional as F

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers.patches import PatchClassifier, noisy_or, relative_places
from tests.helpers.golden_state import build


def test_noisy_or():
    found = noisy_or(torch.tensor([[0.5, 0.0], [0.5, 1.0]]).logit())
    torch.testing.assert_close(found.sigmoid(), torch.tensor([0.75, 1.0]))
    none = noisy_or(torch.zeros(0, 2))
    torch.testing.assert_close(none.sigmoid(), torch.zeros(2), atol=1e-6, rtol=0)


def test_a_slice_is_normal_where_all_its_patches_are():
    odds = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.2, 0.3]]).logit()
    found = noisy_or(odds, normal=0).sigmoid()
    torch.testing.assert_close(found, torch.tensor([0.4, 1 - 0.9 * 0.8, 1 - 0.9 * 0.7]))
    none = noisy_or(odds[:0], normal=0)
    assert none.isfinite().all() and none.argmax() == 0
    # Patches that are sure of two classes leave no tie
    sure = noisy_or(torch.tensor([[-40.0, 30.0, -30.0], [-40.0, -30.0, 20.0]]), normal=0)
    torch.testing.assert_close(sure, torch.tensor([-80.0, 30.0, 20.0]), atol=1e-3, rtol=0)


def test_places_are_shares_of_the_slice():
    found = relative_places(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), 80, 40)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))


def test_a_patch_is_named_by_its_pixels_and_place():
    torch.manual_seed(0)
    model = PatchClassifier(3, patch_px=32).eval()
    image = torch.full((1, 3, 64, 64), 0.5)
    boxes = torch.tensor([[8.0, 8.0, 24.0, 24.0], [32.0, 32.0, 48.0, 48.0]])
    with torch.no_grad():
        (logits,) = model(image, [boxes])
        moved = logits[1] - logits[0]
        expected = model.logits.weight[:, -4:] @ torch.tensor([0.375, 0.375, 0, 0])
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-4)
        none, one = model(image.expand(2, -1, -1, -1), [boxes[:0], boxes[:1]])
    assert none.shape == (0, 3)
    torch.testing.assert_close(one, logits[:1])


SMALL = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.RPN.POST_NMS_TOPK_TEST", 50),
    *("MODEL.RANKED_BOXES.NUM", 4, "MODEL.PATCHES.SIZE", 33),
)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    # A detector with random weights is sure of nothing
    return build("configs/peers/xu_resnet18.yaml", *SMALL, "MODEL.RANKED_BOXES.SCORE_THRESH", "-1")


def _item(seed, height=60, width=80, **more):
    random = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)
    return {"file_name": f"{seed}.png", "image": image, "label": 2, **more}


def test_a_slice_is_what_its_boxes_say(net):
    item = _item(1)
    net.eval().return_ranked_instances = True
    (found,) = net([item])
    boxes = found["ranked_instances"].pred_boxes.tensor
    assert found["ranked_boxes"].shape == (4, 5) and 0 < len(boxes) <= 4
    pixels = net.preprocess_image([item]).tensor
    assert pixels.shape[-2:] == (64, 96)
    with torch.no_grad():
        (logits,) = net.image_head(pixels, [boxes], [(60, 80)])
        # Places are shares of the slice, not of what it is padded to
        (padded,) = net.image_head(pixels, [boxes])
    assert (padded - logits).abs().max() > 1e-3
    expected = noisy_or(logits.softmax(1).logit(), normal=0)
    torch.testing.assert_close(found["logits"], expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found["scores"], found["logits"].sigmoid())


def test_every_patch_has_its_slices_class(net):
    items = [_item(1), _item(2, label=1)]
    net.train()
    assert not net.roi_heads.training
    head, given = net.image_head, []
    hook = head.register_forward_hook(lambda _, __, logits: given.append(logits))
    loss = net(items)["loss_image"]
    hook.remove()
    ((first, second),) = given
    expected = F.cross_entropy(
        torch.cat([first, second]), torch.tensor([2] * len(first) + [1] * len(second))
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    with_gradient = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None}
    assert with_gradient == {"image_head"}


def test_slices_without_a_box_are_normal_and_train_nothing():
    net = build("configs/peers/xu_resnet18.yaml", *SMALL, "MODEL.RANKED_BOXES.SCORE_THRESH", "1.0")
    (found,) = net.eval()([_item(1)])
    assert found["pred_class"] == 0 and found["logits"].isfinite().all()
    net.train()([_item(1)])["loss_image"].backward()
    assert all((p.grad == 0).all() for p in net.image_head.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.TRAINABLE", "full"], "a PatchNet's detector stays as it is"),
        (
            ["MODEL.IMAGE_HEAD.CLASSES", "['sick', 'ill']"],
            r"SCORE_THRESH is 0\.05, but a slice without",
        ),
        (["MODEL.PATCHES.SIZE", "20"], r"MODEL\.PATCHES\.SIZE is 20"),
    ],
)
def test_patches_that_cannot_be_are_refused(repository, overrides, message):
    with pytest.raises(CTMaskNetError, match=message):
        build("configs/peers/xu_resnet18.yaml", *overrides)
    if overrides[0] == "MODEL.PATCHES.SIZE":
        with pytest.raises(CTMaskNetError, match="has no effect: there is no network on patches"):
            read_cfg(repository / "configs/cls.yaml", ["MODEL.PATCHES.SIZE", "40"])
