"""Classes by lesions: areas and places, the area rule, what learns, scans of maps."""

import math

import pytest
import torch
from torch.nn import functional as F

from ctmasknet.config_file import read_cfg
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers.lesion_maps.heads import AreaRule, lesion_features
from tests.helpers.golden_state import REPOSITORY, build

SMALL_RCNN = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
)
SMALL_UNET = ("MODEL.SEMANTIC.ENCODER", "resnet18")


def _item(seed, **more):
    random = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 64, 64), generator=random, dtype=torch.uint8)
    return {"file_name": f"{seed}.png", "image": image, "label": 2, "patient": "a", **more}


def test_areas_and_places():
    masks = torch.zeros(2, 10, 20, dtype=torch.bool)
    masks[1, 5:, :10] = True
    masks[1, 5:, 10:12] = True
    found = lesion_features(masks, torch.tensor([0, 3]))
    assert found.shape == (17,)
    area = math.log(301)
    torch.testing.assert_close(found[:9], torch.tensor([area, *[0.0] * 8]))
    # The centre is (6 px of 20, 7.5 px of 10); a twelfth of the squared side is the variance
    places = [2 * 6 / 20 - 1, 0.5, 0.1 * math.sqrt(143 / 12), 0.2 * math.sqrt(24 / 12)]
    torch.testing.assert_close(found[9:], torch.tensor([area, math.log(4), *places, 10 / 12, 1.0]))


def test_the_larger_the_area_the_later_the_class():
    rule = AreaRule(3)
    logs = rule(torch.tensor([[0.0], [1.5], [2.0], [6.0]]))
    torch.testing.assert_close(logs.logsumexp(1), torch.zeros(4), atol=1e-5, rtol=0)
    assert logs.argmax(1).tolist() == [0, 1, 1, 2]
    assert (logs.exp()[:, 2].diff() > 0).all() and (logs.exp()[:, 0].diff() < 0).all()
    logs[0, 1].backward()
    assert all(p.grad.isfinite().all() for p in rule.parameters())
    # Classes keep their order, whatever is learned
    with torch.no_grad():
        rule.steps.fill_(-3.0)
    assert (rule.areas.diff() > 0).all() and rule(torch.zeros(1, 1)).isfinite().all()
    # Of two classes one area remains
    assert AreaRule(2)(torch.tensor([[0.0], [6.0]])).argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("config", "key", "small"),
    [
        ("ark20_r50", "LESION_HEAD", SMALL_RCNN),
        ("unet_logistic", "SEMANTIC", SMALL_UNET),
        ("unet_mlp", "SEMANTIC", SMALL_UNET),
    ],
)
def test_the_head_alone_learns_from_lesions(config, key, small):
    torch.manual_seed(0)
    model = build(f"configs/peers/{config}.yaml", *small, f"MODEL.{key}.THRESHOLD", 0.02)
    assert model.lesion_threshold == 0.02
    model.return_instances = True
    items = [_item(seed, height=32, width=48) for seed in (1, 2)]
    found = model(items)
    assert all(one["instances"].image_size == (32, 48) for one in found)
    maps = [model._maps(one) for one in found if config == "ark20_r50"]
    for one, map_ in zip(found, maps, strict=False):
        counted = one["instances"].pred_classes.bincount(minlength=2)
        logs = model.image_head(lesion_features(map_ >= 0.02, counted)[None])
        torch.testing.assert_close(one["scores"], logs[0].exp(), atol=1e-5, rtol=1e-4)
    model.train()
    assert [n for n, part in model.named_children() if part.training] == ["image_head"]
    loss = model(items)["loss_image"]
    expected = -torch.stack([one["scores"] for one in found]).log()[:, 2].mean()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    loss.backward()
    learns = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert learns == {"image_head"}


def test_a_scans_maps_are_seen_together():
    torch.manual_seed(0)
    model = build(
        *("configs/peers/zhang.yaml", "MODEL.SEMANTIC.ENCODER", "resnet18"),
        *("MODEL.LESION_HEAD.SIZE", 32, "MODEL.LESION_HEAD.DEPTH", 4),
    )
    a = [_item(seed, scan="1") for seed in range(9)]
    b = [_item(seed, scan="2", label=1) for seed in (20, 21)]
    (alone, *_), (other, *_) = model(a), model(b)
    mixed = model([a[0], b[0], *a[1:], b[1]])
    for number, one in enumerate(mixed):
        torch.testing.assert_close(one["logits"], (other if number in (1, 10) else alone)["logits"])
    assert (alone["logits"] - other["logits"]).abs().max() > 1e-5
    # Order counts: the maps are a volume
    turned = model(a[::-1])[0]["logits"]
    assert (turned - alone["logits"]).abs().max() > 1e-5
    logits = torch.tensor([0.0, 1.0, 2.0])
    with torch.no_grad():
        model.image_head.network.fc.weight.zero_()
        model.image_head.network.fc.bias.copy_(logits)
    loss = model.train()([*a, *b])["loss_image"]
    expected = F.cross_entropy(logits.expand(2, 3), torch.tensor([2, 1]))
    torch.testing.assert_close(loss, expected)


def test_a_training_starts_from_a_lesion_model(tmp_path):
    overrides = [str(word) for word in ("MODEL.DEVICE", "cpu", *SMALL_UNET)]
    cfg = read_cfg(str(REPOSITORY / "configs/peers/unet.yaml"), overrides)
    lesions = build("configs/peers/unet.yaml", *SMALL_UNET)
    CTMaskNetCheckpointer(lesions, str(tmp_path), spec=spec_of(cfg)).save("model_best")
    model = build("configs/peers/unet_logistic.yaml", *SMALL_UNET)
    cfg = read_cfg(str(REPOSITORY / "configs/peers/unet_logistic.yaml"), overrides)
    loader = CTMaskNetCheckpointer(model, spec=spec_of(cfg))
    loader.load(str(tmp_path / "model_best.pth"))
    for name, value in lesions.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    # Areas are those of masks: a detector without its mask head does not do
    rcnn = build("configs/peers/ark20_r50.yaml", *SMALL_RCNN)
    state = {n: v for n, v in rcnn.state_dict().items() if "mask_head" not in n}
    torch.save({"model": state}, tmp_path / "no_masks.pth")
    with pytest.raises(CTMaskNetError, match=r"such as roi_heads\.mask_head"):
        CTMaskNetCheckpointer(rcnn, spec={}).load(str(tmp_path / "no_masks.pth"))
    with pytest.raises(CTMaskNetError, match=r"do not fit, such as roi_heads\.mask_head"):
        CTMaskNetCheckpointer(rcnn, spec={}, transfer=True).load(str(tmp_path / "no_masks.pth"))


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("ark20_r50", ["MODEL.TRAINABLE", "full"], "stays as it is; set it to heads"),
        ("ark20_r50", ["MODEL.MASK_ON", "False"], "areas of lesions are those of their masks"),
        ("ark20_r50", ["MODEL.IMAGE_HEAD.CLASSES", "['ill']"], "nothing to tell from"),
        ("ark20_r50", ["MODEL.LESION_HEAD.SIZE", "32"], "it is of volume"),
        ("zhang", ["MODEL.LESION_HEAD.THRESHOLD", "0.7"], "volume reads the maps as they are"),
        ("unet_mlp", ["MODEL.LESION_HEAD.THRESHOLD", "0.7"], "lesion by MODEL.SEMANTIC.THRESH"),
        ("unet", ["MODEL.LESION_HEAD.NAME", "mlp"], "no head reads lesions"),
    ],
)
def test_heads_that_cannot_be_are_refused(config, overrides, message):
    with pytest.raises(CTMaskNetError, match=message):
        build(f"configs/peers/{config}.yaml", *overrides)
