"""Runners of the author's later models: single shot, affinity, LSTM with attention."""

import re
from pathlib import Path

import numpy as np
import torch

from ctmasknet.weights.two_branch import import_two_branch
from tests.helpers.golden_state import build
from tests.helpers.peer_goldens import Golden, ct_slice, weight

#: Neighbouring rows whose scores are nearer than this may swap.
TIE = 2e-6


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _state(golden: Golden) -> dict[str, torch.Tensor]:
    first = {other: name for name, other in golden.stated["shared"]}
    rule = golden.stated["rule"]
    return {
        name: torch.from_numpy(weight(first.get(name, name), shape, rule))
        for name, shape in golden.tensors.items()
    }


def _model(golden: Golden):
    facts = golden.facts
    state, found = import_two_branch(_state(golden))
    before = [2000, facts["proposals"]] if isinstance(facts["proposals"], int) else None
    before, after = before or _numbers(facts["proposals"])
    options = {
        "MODEL.RPN.PRE_NMS_TOPK_TEST": before,
        "MODEL.RPN.POST_NMS_TOPK_TEST": after,
        "MODEL.RANKED_BOXES.NUM": facts.get("n", facts.get("rois")),
        "MODEL.RANKED_BOXES.NMS_THRESH": facts["row_nms"],
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": facts.get("det_score", 0.05),
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": facts.get("det_nms", 0.5),
        "TEST.DETECTIONS_PER_IMAGE": facts.get("det_per_image", 100),
    }
    if "sieve_stages" in facts:
        options["MODEL.IMAGE_HEAD.SIEVE_STAGES"] = facts["sieve_stages"]
    pairs = [item for pair in options.items() for item in pair]
    model = build(found.config, *found.overrides, *pairs)
    result = model.load_state_dict(state, strict=False)
    assert not result.missing_keys and not result.unexpected_keys
    elements = sum(np.prod(shape, dtype=int) for shape in golden.tensors.values())
    assert elements == golden.stated["state_dict_elements"]
    return model


def _order(rows: np.ndarray, expected: np.ndarray) -> list[int]:
    """The rows' numbers, those that tie in the expected order."""
    order = list(range(len(rows)))
    for i in range(len(rows) - 1):
        tied = expected[i, 0] - expected[i + 1, 0] < TIE
        straight = np.abs(rows[order[i : i + 2]] - expected[i : i + 2]).max()
        swapped = np.abs(rows[order[i : i + 2][::-1]] - expected[i : i + 2]).max()
        if tied and swapped < straight:
            order[i : i + 2] = order[i : i + 2][::-1]
    return order


@torch.no_grad()
def two_branch(path: Path) -> None:
    golden = Golden.read(path)
    model = _model(golden)
    model.return_instances = model.return_ranked_instances = True
    # Postprocessing drops flat boxes, which the golden detections keep
    model._postprocess = lambda found, *_: [{"instances": one} for one in found]
    side = int(re.search(r"ct_slice\(seed, (\d+)\)", golden.facts["input"])[1])
    features = {}
    heads = model.roi_heads.ranked
    if heads.mask_on:
        heads.mask_head.register_forward_hook(
            lambda module, given, out: features.update(means=out.mean((2, 3)).numpy())
        )
    for seed in golden.facts["inputs"]["seeds"]:
        pixels = torch.from_numpy(ct_slice(seed, side)).expand(3, -1, -1)
        output = model([{"image": pixels}])[0]
        key = f"seed{seed}_"
        expected = golden.outputs[f"{key}rows"]
        rows = output["ranked_boxes"].numpy()
        order = _order(rows, expected)
        golden.check(f"{key}logits", output["logits"])
        golden.check(f"{key}rows", rows[order], atol=1e-3)
        ranked = output["ranked_instances"]
        if f"{key}row_boxes" in golden.outputs:
            golden.check(f"{key}row_boxes", ranked.pred_boxes.tensor.numpy()[order], atol=0.05)
            golden.check(f"{key}mask_feature_means", features["means"][order])
        boxes = golden.outputs[f"{key}det_boxes"]
        found = output["instances"][: len(boxes)]
        golden.check(f"{key}det_boxes", found.pred_boxes.tensor, atol=0.05)
        golden.check(f"{key}det_scores", found.scores)
        assert (
            np.sort(found.pred_classes.numpy() + 1)
            == np.sort(golden.outputs[f"{key}det_labels"].astype(int))
        ).all()
        if f"{key}logits_their_eval" in golden.outputs:
            theirs = golden.facts["their_eval"]
            parts = ("backbone", "image_head") if "backbone" in theirs else ("image_head",)
            model.batch_statistics = parts
            before = {n: v.clone() for n, v in model.state_dict().items() if "running" in n}
            again = model([{"image": pixels}])[0]["logits"]
            with torch.backends.mkldnn.flags(enabled=False):
                other = model([{"image": pixels}])[0]["logits"]
            model.batch_statistics = ()
            # Statistics of a few boxes blow rounding up: as far as other convolutions are off
            noise = float((again - other).abs().max())
            assert noise < 1e-2
            golden.check(f"{key}logits_their_eval", again, atol=max(1e-4, 3 * noise))
            assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items())


RUNNERS = {"ssm": two_branch, "affinity": two_branch, "lstm": two_branch}
