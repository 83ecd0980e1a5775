"""Files of the compared systems: imported as their authors wrap them, they give what their networks
give."""

import pytest
import torch
from torch import nn

from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.imported import import_file
from ctmasknet.weights.peer_files import import_peer, peer_of
from tests.helpers.golden_state import build
from tests.helpers.peer_goldens import FOLDER, Golden, ct_slice, weight

needs_goldens = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER}: no folder of goldens")


def _state(golden):
    rule = golden.stated["rule"]
    return {n: torch.from_numpy(weight(n, s, rule)) for n, s in golden.tensors.items()}


def _loaded(tmp_path, content, *overrides, classes=None):
    """The model of an imported file, by the configuration that the import names."""
    path, output = tmp_path / "theirs.pth", tmp_path / "ours.pth"
    torch.save(content, path)
    found, lines = import_file(path, output, classes=classes)
    cfg, _ = inference_cfg("", ["MODEL.DEVICE", "cpu", *overrides], str(output))
    return load_model(cfg), found, lines


def _slices(golden, seed):
    size = golden.facts["inputs"][str(seed)]
    if isinstance(size, dict):
        seeds = range(seed * 100, seed * 100 + size["slices"])
        pictures = [ct_slice(one, size["h"], size["w"]) for one in seeds]
    else:
        pictures = [ct_slice(seed, *size)]
    return [{"image": torch.from_numpy(one).expand(3, -1, -1)} for one in pictures]


@needs_goldens
@torch.no_grad()
def test_covnet_from_several_gpus(tmp_path):
    golden = Golden.read(FOLDER / "covnet_c3.json")
    state = {f"module.{name}": value for name, value in _state(golden).items()}
    model, found, lines = _loaded(tmp_path, {"epoch": 3, "state_dict": state})
    assert found.config == "configs/peers/covnet.yaml" and found.overrides == []
    assert "here: normal, pneumonia, covid" in lines[1]
    # The file has COVID first, then pneumonia, then other
    expected = torch.from_numpy(golden.outputs["seed2_logits"])[[2, 1, 0]]
    for one in model(_slices(golden, 2)):
        torch.testing.assert_close(one["scores"], expected.softmax(0), atol=1e-5, rtol=1e-4)
    golden.check("seed2_logits", model.network(model.network_input(_slices(golden, 2)))[[2, 1, 0]])


@needs_goldens
@torch.no_grad()
def test_covid_ct(tmp_path):
    golden = Golden.read(FOLDER / "covid_ct_densenet169.json")
    model, found, lines = _loaded(tmp_path, _state(golden))
    assert found.config == "configs/peers/covid_ct_densenet169.yaml"
    assert found.classes == ("covid", "non_covid") and "self_trans" in "".join(lines)
    (item,) = _slices(golden, 1)
    golden.check("seed1_baseline_logits", model.network(model.network_input([item]))[0, :8])
    found, _ = inference_cfg(
        "configs/peers/covid_ct_self_trans.yaml",
        ["MODEL.DEVICE", "cpu"],
        str(tmp_path / "ours.pth"),
    )
    other = load_model(found)
    logits = other.network(other.network_input([item]))[0, :8]
    golden.check("seed1_selftrans_logits", logits)


@needs_goldens
@torch.no_grad()
def test_infnet(tmp_path):
    golden = Golden.read(FOLDER / "infnet_res2net50.json")
    model, found, _ = _loaded(tmp_path, {"net": _state(golden)})
    assert found.config == "configs/peers/infnet.yaml" and found.spec["task"] == "segmentation"
    (one,) = model(_slices(golden, 3))
    expected = torch.from_numpy(golden.outputs["seed3_lateral_map_2"])[None].sigmoid()
    torch.testing.assert_close(one["lesion_maps"], expected, atol=1e-4, rtol=1e-5)


@needs_goldens
@pytest.mark.parametrize(
    ("case", "config", "classes"),
    [
        ("jcs_classifier_r101", "jcs_classifier", ("normal", "covid")),
        ("jcs_single", "jcs", None),
        ("jcs_joint", "jcs_joint", None),
    ],
)
def test_names_of_jcs(case, config, classes):
    tensors = Golden.read(FOLDER / f"{case}.json").tensors
    state = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    found = peer_of(state)
    assert found.config == f"configs/peers/{config}.yaml" and found.classes == classes
    assert {n.removeprefix("network.") for n in import_peer(state, found)} == set(tensors)


def _meta(model: nn.Module):
    return {name.removeprefix("network."): value for name, value in model.state_dict().items()}


def test_other_depths_and_classes():
    resnet = _meta(build("configs/peers/resnet18.yaml", device="meta"))
    assert peer_of(resnet) is None  # ImageNet's, for a backbone
    found = peer_of(resnet, ["covid", "normal", "pneumonia"])
    assert found.config == "configs/peers/covid_ct_resnet50.yaml"
    assert found.overrides[:4] == [
        *("MODEL.SLICE_NETWORK.NUM_OUTPUTS", "3", "MODEL.SLICE_NETWORK.NAME", '"resnet18"')
    ]
    assert found.classes == ("normal", "pneumonia", "covid") and found.order == (1, 2, 0)
    covnet = _meta(
        build("configs/peers/covnet.yaml", "MODEL.SLICE_NETWORK.NAME", "resnet34", device="meta")
    )
    assert peer_of(covnet).keys == {"MODEL.SLICE_NETWORK.NAME": "resnet34"}
    with pytest.raises(CTMaskNetError, match="COVNet of 3 outputs, but 2 classes"):
        peer_of(covnet, ["covid", "other"])
    with pytest.raises(CTMaskNetError, match="of which this is none"):
        peer_of({"vgg16.conv1_1.conv.weight": torch.ones(1)}, ["a", "b"])


def test_files_that_do_not_fit_are_refused(tmp_path):
    small = ("MODEL.SLICE_NETWORK.NAME", "resnet18")
    state = build("configs/peers/covnet.yaml", *small).state_dict()
    state = {name.removeprefix("network."): value for name, value in state.items()}
    for change, message in (
        ({"classifer.bias": None}, r"classifer\.bias of shape \(3,\) is missing for COVNet"),
        ({"classifer.bias": torch.ones(5)}, r"classifer\.bias .* has \(5,\)"),
        ({"more": torch.ones(3)}, "tensor more has no place in COVNet"),
    ):
        changed = {n: v for n, v in (state | change).items() if v is not None}
        torch.save(changed, tmp_path / "theirs.pth")
        with pytest.raises(CTMaskNetError, match=rf"theirs\.pth: .*{message}"):
            import_file(tmp_path / "theirs.pth", tmp_path / "ours.pth")
        assert not (tmp_path / "ours.pth").exists()
    unet = {"inc.double_conv.0.weight": torch.ones(1), "outc.conv.weight": torch.ones(1)}
    with pytest.raises(CTMaskNetError, match=r"multi-class U-Net, .* has no configuration"):
        peer_of(unet)
