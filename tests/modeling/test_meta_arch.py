import copy

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.roi_heads import padding_index


def test_evaluation_output_follows_the_contract(tiny_model, slices):
    results = tiny_model.eval()(slices)
    assert len(results) == 3
    for result in results:
        assert set(result) == {"logits", "scores", "pred_class", "ranked_boxes"}
        assert result["ranked_boxes"].shape == (16, 5)
        assert result["ranked_boxes"].dtype == torch.float32
        assert (result["ranked_boxes"][:, 0].diff() <= 0).all()
        torch.testing.assert_close(result["scores"], result["logits"].sigmoid())
        assert result["pred_class"] == int(result["logits"].argmax())
        torch.testing.assert_close(
            tiny_model.image_head(result["ranked_boxes"][None])[0], result["logits"]
        )


def test_one_pass_for_a_batch_of_unlike_sizes(tiny_model, slices, monkeypatch):
    calls = []
    backbone = type(tiny_model.backbone)
    forward = backbone.forward
    monkeypatch.setattr(
        backbone, "forward", lambda self, x: calls.append(len(x)) or forward(self, x)
    )
    tiny_model.eval()(slices)
    assert calls == [3]


def test_batch_equals_single_where_nothing_is_padded(tiny_model, slices):
    tiny_model.eval()
    alone = tiny_model(slices[:1])[0]
    twin = copy.deepcopy(slices[0])
    together = tiny_model([slices[0], twin])
    for result in together:
        torch.testing.assert_close(result["ranked_boxes"], alone["ranked_boxes"], atol=1e-5, rtol=0)


def test_input_is_left_alone_and_results_repeat(tiny_model, slices):
    before = copy.deepcopy(slices)
    first = tiny_model.eval()(slices)
    second = tiny_model(slices)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(before, slices, strict=True))
    assert all(torch.equal(a["logits"], b["logits"]) for a, b in zip(first, second, strict=True))


def test_no_surviving_box_still_gives_a_class(tiny_model, slices):
    tiny_model.roi_heads.ranked_score_thresh = 1.0
    result = tiny_model.eval()(slices)[0]
    assert torch.equal(result["ranked_boxes"], torch.zeros(16, 5))


def test_loss_is_mean_binary_cross_entropy(tiny_model, slices):
    logits = torch.stack([result["logits"] for result in tiny_model.eval()(slices)])
    loss = tiny_model.train()(slices)["loss_image"]
    target = torch.eye(3)
    expected = -(target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("label", [None, 3, -1])
def test_bad_label_is_named(tiny_model, slices, label):
    slices[1]["label"] = label
    with pytest.raises(CTMaskNetError, match=r"1\.png: label"):
        tiny_model.train()(slices)


def test_instances_come_from_the_same_pass(tiny_cfg, slices):
    tiny_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    model.return_instances = True
    result = model(slices)[1]
    instances = result["instances"]
    assert instances.image_size == (64, 96)
    assert instances.pred_masks.shape[1:] == (64, 96)
    assert instances.scores[0] == result["ranked_boxes"][0, 0]


def test_boxes_behind_the_rows_are_in_px_of_the_file(tiny_model, slices):
    tiny_model.eval()
    plain = tiny_model(slices)
    tiny_model.return_ranked_instances = True
    slices[1] |= {"height": 32, "width": 192}
    for before, after in zip(plain, tiny_model(slices), strict=True):
        assert torch.equal(before["ranked_boxes"], after.pop("ranked_boxes"))
        assert set(after) == {"logits", "scores", "pred_class", "ranked_instances"}
    tiny_model.return_instances = True
    tiny_model.roi_heads.box_predictor.test_score_thresh = 0.0
    result = tiny_model(slices)[1]
    ranked = result["ranked_instances"]
    assert ranked.image_size == result["instances"].image_size == (32, 192)
    assert ranked.scores[0] == result["instances"].scores[0]
    torch.testing.assert_close(
        ranked.pred_boxes.tensor[0], result["instances"].pred_boxes.tensor[0]
    )
    assert torch.equal(ranked.scores[padding_index(len(ranked), 16)], result["ranked_boxes"][:, 0])


def test_mask_branch_goes_when_weights_have_none(tiny_cfg, tiny_model, slices):
    weights = {k: v for k, v in tiny_model.state_dict().items() if "mask_head" not in k}
    model = build_model(tiny_cfg).eval()
    assert model.load_state_dict(weights, strict=False).missing_keys == []
    model.return_instances = True
    assert not model(slices)[0]["instances"].has("pred_masks")


EXPECTED_CHANGES = {
    "heads": lambda name: name.startswith("image_head."),
    "heads_bn": lambda name: name.startswith("image_head.") or ".norm." in name,
    "heads_bn_no_shortcut": lambda name: (
        name.startswith("image_head.") or (".norm." in name and "shortcut" not in name)
    ),
    # The RPN and the mask head have no differentiable way to the logits.
    "full": lambda name: not name.startswith(("proposal_generator.", "roi_heads.mask_head.")),
}


@pytest.mark.parametrize("mode", EXPECTED_CHANGES)
def test_three_steps_change_exactly_what_the_mode_says(tiny_model, slices, mode):
    tiny_model.set_trainable(mode)
    tiny_model.train()
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    trained = [parameter for parameter in tiny_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3, weight_decay=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        tiny_model(slices)["loss_image"].backward()
        optimizer.step()
    after = tiny_model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parameters = {name for name, _ in tiny_model.named_parameters()}
    assert changed == {name for name in parameters if EXPECTED_CHANGES[mode](name)}
    without_gradient = {name for name, value in tiny_model.named_parameters() if value.grad is None}
    assert without_gradient == parameters - changed


@pytest.mark.parametrize("without", ["rows", "proposals"])
@pytest.mark.parametrize("mode", EXPECTED_CHANGES)
def test_every_trained_weight_has_a_gradient_where_no_slice_has_a_row(
    tiny_cfg, slices, mode, without
):
    """Several processes wait for all of them."""
    tiny_cfg.MODEL.ROI_MASK_HEAD.NORM = "BN"
    tiny_cfg.MODEL.TRAINABLE = mode
    model = build_model(tiny_cfg).train()
    if without == "rows":
        model.roi_heads.ranked_score_thresh = 1.0
    else:
        model.proposal_generator.min_box_size = 1000.0
    loss = model(slices)["loss_image"]
    loss.backward()
    assert loss.isfinite()
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained and not any(".mask_head." in name for name in trained)
    gradients = {name: value.grad for name, value in model.named_parameters()}
    assert all(gradients[name] is not None and gradients[name].isfinite().all() for name in trained)


def test_training_mode_leaves_the_detector_in_evaluation(tiny_model):
    tiny_model.train()
    assert tiny_model.training and tiny_model.image_head.training
    detector = (tiny_model.backbone, tiny_model.proposal_generator, tiny_model.roi_heads)
    assert not any(module.training for part in detector for module in part.modules())


def test_unknown_mode_is_refused(tiny_model):
    with pytest.raises(CTMaskNetError, match=r"MODEL\.TRAINABLE is 'half'"):
        tiny_model.set_trainable("half")


def test_batch_normalisation_has_to_exist_to_be_trained(tiny_cfg):
    tiny_cfg.MODEL.RESNETS.NORM = "FrozenBN"
    tiny_cfg.MODEL.TRAINABLE = "heads_bn"
    with pytest.raises(CTMaskNetError, match=r"MODEL\.RESNETS\.NORM"):
        build_model(tiny_cfg)
