"""Import of published checkpoints: variants, names, order of classes and anchors, refusals."""

import importlib.util

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from ctmasknet.config_file import read_cfg
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.engine.setup import inference_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.imported import import_checkpoint, import_file
from ctmasknet.weights.layout import (
    ANCHOR_RATIOS,
    ANCHOR_SIZES,
    AuthorsVariant,
    authors_layout,
    background_last,
    resnet_layout,
    sizes_outermost,
    without_background,
    without_background_boxes,
)
from tests.helpers.checkpoint_files import (
    pickled_anchors,
    save_stream,
    stream_file,
    tensor_instructions,
    text,
)
from tests.helpers.golden_state import build

VARIANTS = [
    *(AuthorsVariant(50, 0, lesions, True, False) for lesions in (1, 2)),
    *(AuthorsVariant(50, 0, lesions, False, True) for lesions in (1, 2)),
    *(AuthorsVariant(depth, cut, 1, True, False) for depth in (18, 34) for cut in (0, 1, 2)),
    *(AuthorsVariant(depth, cut, 1, False, True) for depth in (18, 34) for cut in (0, 1, 2)),
    AuthorsVariant(50, 0, 2, True, True),  # an earlier file, with the mask head kept
    *(AuthorsVariant(34, cut, 2, True, False) for cut in (0, 1, 2)),
    *(AuthorsVariant(18, cut, 2, False, True) for cut in (0, 1, 2)),
]


def without_configuration(spec):
    """The specification of published weights: what else they were trained with is their
    configuration's."""
    return {name: value for name, value in spec.items() if name != "configuration"}


def meta_state(variant: AuthorsVariant) -> dict[str, torch.Tensor]:
    """Tensors without numbers, as the authors name them."""
    layout = authors_layout(variant)
    return {name: torch.empty(slot.shape, device="meta") for name, slot in layout.items()}


SMALL = AuthorsVariant(18, 2, 1, False, True)


def small_state(variant: AuthorsVariant = SMALL) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(slot.shape) for name, slot in authors_layout(variant).items()}


@pytest.fixture(scope="module")
def tool(repository):
    path = repository / "tools" / "import_weights.py"
    spec = importlib.util.spec_from_file_location("import_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_is_detected_and_fits_the_model_of_its_config(repository, variant):
    converted, found = import_checkpoint(meta_state(variant))
    assert found.variant == variant
    cfg = read_cfg(str(repository / found.config), found.overrides)
    assert found.spec == without_configuration(spec_of(cfg))
    model = build(found.config, *found.overrides, device="meta")
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if variant.has_masks or not name.startswith("roi_heads.mask_head.")
    }
    assert {name: tuple(tensor.shape) for name, tensor in converted.items()} == expected


@pytest.mark.parametrize(
    ("variant", "mask_type", "config"),
    [
        (AuthorsVariant(50, 0, 2, True, False), None, "seg"),
        (AuthorsVariant(50, 0, 1, True, False), None, "seg_r50_merge"),
        (AuthorsVariant(50, 0, 1, True, False), "ggo", "seg_r50_ggo"),
        (AuthorsVariant(34, 1, 1, True, False), None, "seg_r34_t1_merge"),
        (AuthorsVariant(50, 0, 2, False, True), "both", "cls"),
        (AuthorsVariant(50, 0, 1, False, True), "ggo", "cls_r50_ggo"),
        (AuthorsVariant(18, 2, 1, False, True), "merge", "cls_r18_t2_merge"),
    ],
)
def test_the_config_that_fits_is_named(repository, variant, mask_type, config):
    _, found = import_checkpoint(meta_state(variant), mask_type)
    assert found.config == f"configs/{config}.yaml"
    assert found.spec == without_configuration(spec_of(read_cfg(str(repository / found.config))))


def test_a_lightweight_model_of_both_classes_names_the_overrides_it_needs(tmp_path):
    path = save_stream(tmp_path / "in.pth", small_state(AuthorsVariant(18, 1, 2, True, False)))
    found, lines = import_file(path, tmp_path / "out.pth")
    assert found.config == "configs/seg_r18_t1_merge.yaml"
    assert lines[-1] == (
        """overrides: MODEL.LESION_CLASSES '["ggo", "consolidation"]' """
        "MODEL.ROI_HEADS.NUM_CLASSES 2"
    )


def test_every_config_of_the_three_training_modes(repository):
    modes = {"cls": "heads", "cls_heads_bn": "heads_bn", "cls_full": "full"}
    for name, mode in modes.items():
        assert mode == read_cfg(str(repository / "configs" / f"{name}.yaml")).MODEL.TRAINABLE


@pytest.mark.parametrize("mask_type", ["both", "ggo"])
def test_a_mask_type_that_does_not_fit_is_refused(mask_type):
    with pytest.raises(CTMaskNetError, match="mask type"):
        import_checkpoint(meta_state(AuthorsVariant(18, 1, 1, True, False)), mask_type)


def test_background_and_anchors_are_reordered():
    rows = torch.arange(3)  # background, ggo, consolidation
    assert background_last(rows).tolist() == [1, 2, 0]
    assert without_background(rows).tolist() == [1, 2]
    assert without_background_boxes(torch.arange(12)).tolist() == list(range(4, 12))
    # One label an anchor, in the authors' order: ratio by ratio.
    labels = [(ratio, size) for ratio in ANCHOR_RATIOS for size in ANCHOR_SIZES]
    order = sizes_outermost(torch.arange(30)).tolist()
    assert [labels[index] for index in order] == [
        (ratio, size) for size in ANCHOR_SIZES for ratio in ANCHOR_RATIOS
    ]
    deltas = sizes_outermost(torch.arange(120)).view(30, 4)
    assert deltas.tolist() == [[4 * index + part for part in range(4)] for index in order]


def test_every_number_arrives_where_it_belongs():
    state = small_state(AuthorsVariant(18, 2, 2, True, True))
    for value, tensor in enumerate(state.values()):
        tensor.fill_(value)
    values = {name: float(tensor.flatten()[0]) for name, tensor in state.items()}
    converted, _ = import_checkpoint(state)
    for theirs, ours in {
        "backbone.body.bn1.running_var": "backbone.bottom_up.stem.conv1.norm.running_var",
        "backbone.body.layer1.1.conv2.weight": "backbone.bottom_up.res2.1.conv2.weight",
        "backbone.body.layer2.0.bn2.bias": "backbone.bottom_up.res3.0.conv2.norm.bias",
        "backbone.body.layer2.0.downsample.0.weight": "backbone.bottom_up.res3.0.shortcut.weight",
        "backbone.body.layer2.0.downsample.1.running_mean": (
            "backbone.bottom_up.res3.0.shortcut.norm.running_mean"
        ),
        "backbone.fpn.inner_blocks.0.weight": "backbone.fpn_lateral3.weight",
        "backbone.fpn.layer_blocks.0.bias": "backbone.fpn_output3.bias",
        "rpn.head.cls_logits.bias": "proposal_generator.rpn_head.objectness_logits.bias",
        "rpn.head.bbox_pred.weight": "proposal_generator.rpn_head.anchor_deltas.weight",
        "roi_heads.box_head.fc7.weight": "roi_heads.box_head.fc2.weight",
        "roi_heads.mask_head.mask_fcn1.weight": "roi_heads.mask_head.mask_fcn1.weight",
        "roi_heads.mask_predictor.conv5_mask.weight": "roi_heads.mask_head.deconv.weight",
        "roi_heads.mask_predictor.mask_fcn_logits.bias": "roi_heads.mask_head.predictor.bias",
        "s2new.fc_scores.weight": "image_head.fc1.weight",
        "s2new.fc_scores_2.bias": "image_head.fc2.bias",
        "s2new.fc_scores_img.weight": "image_head.logits.weight",
    }.items():
        assert (converted[ours] == values[theirs]).all(), theirs


def test_both_spellings_of_the_pyramid_are_read():
    state = small_state()
    todays = {
        name.replace("blocks.0.", "blocks.0.0.") if ".fpn." in name else name: tensor
        for name, tensor in state.items()
    }
    assert todays.keys() != state.keys()
    assert import_checkpoint(todays)[0].keys() == import_checkpoint(state)[0].keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rpn.head.conv.weight": None}, "rpn.head.conv.weight of shape (256, 256, 3, 3) is miss"),
        (
            {"roi_heads.box_head.fc6.weight": (128, 6272)},
            "fc6.weight has shape (128, 6272), expected (128, 12544)",
        ),
        ({"s2new.fc_scores.weight": (512, 1280)}, "has shape (512, 1280), expected (512, 640)"),
        ({"s2new.fc_scores.bias": None}, "s2new.fc_scores.bias of shape (512,) is missing"),
        ({"rpn.head.extra.weight": (1, 2)}, "rpn.head.extra.weight of shape (1, 2) has no place"),
        ({"roi_heads.box_predictor.cls_score.weight": (9, 128)}, "2 or 3 classes"),
        ({"roi_heads.box_predictor.cls_score.weight": ()}, "2 or 3 classes"),
        ({"roi_heads.box_predictor.cls_score.weight": None}, "neither a published checkpoint"),
        ({"backbone.body.layer1.0.conv1.weight": None}, "neither a published checkpoint"),
        ({"backbone.body.layer1.1.bn2.running_var": None}, "running_var of shape (64,) is missing"),
    ],
)
@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_wrong_missing_and_unknown_tensors_are_named(tmp_path, change, words, layout):
    state = small_state()
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.zeros(shape)
    path, output = tmp_path / "in.pth", tmp_path / "out" / "out.pth"
    torch.save({"model_weights": state}, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(CTMaskNetError) as caught:
        import_file(path, output)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message
    assert not output.exists() and not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("s2new.fc_scores_img.bias", torch.tensor([1.0, 2.0, float("nan")]), "are not finite"),
        ("backbone.body.bn1.running_var", torch.full((64,), -1.0), "holds variances below 0"),
        ("s2new.fc_scores_img.bias", torch.tensor([1, 2, 3]), "holds int64 where weights are"),
    ],
)
def test_weights_that_no_training_leaves_are_not_imported(tmp_path, name, value, words):
    path = save_stream(tmp_path / "in.pth", {"model_weights": small_state() | {name: value}})
    with pytest.raises(CTMaskNetError, match=rf"in\.pth: tensor {name} .*{words}"):
        import_file(path, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_the_tool_writes_a_checkpoint_that_detectron2_loads(repository, tmp_path, tool, capsys):
    state = small_state()
    state["s2new.fc_scores_img.bias"] = torch.tensor([1.0, 2.0, 3.0])
    path = save_stream(
        tmp_path / "in.pth", {"epoch": "7", "model_name": "x", "model_weights": state}
    )
    output = tmp_path / "new" / "out.pth"
    assert tool([str(path), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "config: configs/cls_r18_t2_merge.yaml"
    assert "epoch: 7" in lines and "model_name: x" in lines

    model = build("configs/cls_r18_t2_merge.yaml")
    rest = DetectionCheckpointer(model).load(str(output))
    assert rest["__author__"] == "COVID-CT-Mask-Net" and rest["ctmasknet"]["num_boxes"] == 128
    assert model.image_head.logits.bias.tolist() == [1.0, 2.0, 3.0]
    assert not model.roi_heads.mask_on  # the file has no mask head, so no random one may draw

    alone, _ = inference_cfg(overrides=["MODEL.DEVICE", "cpu"], weights=output)
    given, _ = inference_cfg(repository / "configs/cls_r18_t2_merge.yaml", weights=output)
    assert spec_of(alone) == spec_of(given) and alone.MODEL.RESNETS.DEPTH == 18
    content = torch.load(output, weights_only=True)
    content["ctmasknet"]["config_file"] = f"../{tmp_path}/other.yaml"
    torch.save(content, tmp_path / "astray.pth")
    with pytest.raises(CTMaskNetError, match=r"astray\.pth: does not state .* `config_file`"):
        inference_cfg(weights=tmp_path / "astray.pth")

    cfg = read_cfg(str(repository / lines[-1].removeprefix("config: ")))
    model = build("configs/cls_r18_t2_merge.yaml")
    CTMaskNetCheckpointer(model, spec=spec_of(cfg), complete=True).load(str(output))


def test_the_tool_ends_with_one_line_and_no_file_on_an_error(tmp_path, tool, capsys):
    path = tmp_path / "in.pth"
    path.write_text("<html>404</html>")
    output = tmp_path / "out.pth"
    assert tool([str(path), "--output", str(output)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith(f"error: {path}: not a torch")
    assert captured.out == "" and not output.exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    path = save_stream(tmp_path / "in.pth", small_state())
    (tmp_path / "file").write_text("in the way")
    for output, word in (
        (tmp_path / "file" / "out.pth", "cannot be written"),
        (tmp_path, "cannot be written"),
        (path, "is the file to read"),
    ):
        with pytest.raises(CTMaskNetError, match=word) as caught:
            import_file(path, output)
        assert str(caught.value).startswith(f"{output}: ")
    assert len(import_file(path, tmp_path / "out.pth")[1]) > 0


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_torchvision_files_become_imagenet_starts(repository, tmp_path, depth):
    state = {name: torch.zeros(slot.shape) for name, slot in resnet_layout(depth).items()}
    state = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    state["conv1.weight"].fill_(2.0)
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 8), torch.zeros(1000)
    path = save_stream(tmp_path / "resnet.pth", state)
    found, lines = import_file(path, tmp_path / "out.pth")
    assert lines[0] == f"found: ResNet-{depth} without a detector"
    cfg = read_cfg(str(repository / found.config))
    model = build(found.config)
    CTMaskNetCheckpointer(model, spec=spec_of(cfg)).load(str(tmp_path / "out.pth"))
    assert (model.backbone.bottom_up.stem.conv1.weight == 2.0).all()


@pytest.mark.parametrize(
    ("sizes", "ratios", "word"),
    [
        (((2, 4, 8, 16, 32),) * 5, ((0.1, 0.25, 0.5, 1, 1.5, 2),) * 4, None),
        (((32,), (64,), (128,)), ((0.1, 0.25, 0.5, 1, 1.5, 2),), "sizes (32)"),
        (((2, 4, 8, 16, 32),), ((0.5, 1.0, 2.0),), "aspect_ratios (0.5, 1.0, 2.0)"),
        ((), ((0.5, 1.0, 2.0),), "no sizes"),
    ],
)
def test_the_files_anchors_have_to_be_the_configs(tmp_path, sizes, ratios, word):
    anchors = pickled_anchors("models.mask_net.rpn.AnchorGenerator", sizes, ratios)
    body = b"\x80\x02}(" + text("anchor_generator") + anchors + text("model_weights") + b"}"
    body += text("weight") + tensor_instructions(1, 0, (1,), (1,)) + b"su."
    path = stream_file(tmp_path / "in.pth", body, {"0": bytes(4)})
    # The weights are no model's, so a file with the right anchors fails later and otherwise.
    with pytest.raises(CTMaskNetError, match="neither" if word is None else None) as caught:
        import_file(path, tmp_path / "out.pth")
    assert word is None or word in str(caught.value)


def test_published_anchors_are_those_of_the_configs(repository):
    for name in ("seg", "cls", "seg_r34_t2_merge"):
        anchors = read_cfg(str(repository / "configs" / f"{name}.yaml")).MODEL.ANCHOR_GENERATOR
        assert [list(ANCHOR_SIZES)] == anchors.SIZES and anchors.ROUND
        assert [list(ANCHOR_RATIOS)] == anchors.ASPECT_RATIOS


def test_a_checkpoint_of_this_project_needs_no_import(tmp_path):
    theirs, ours = tmp_path / "in.pth", tmp_path / "ours.pth"
    torch.save({"model_weights": small_state()}, theirs)
    import_file(theirs, ours)
    with pytest.raises(CTMaskNetError, match=r"ours\.pth: is a checkpoint of this project already"):
        import_file(ours, tmp_path / "again.pth")
    assert not (tmp_path / "again.pth").exists()
