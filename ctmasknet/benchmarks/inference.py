"""What naming a slice costs: the classifier in its forms, its peers, and the machine's limit.

Four benchmarks: :func:`inference` and :func:`engines` on noise slices with random weights;
:func:`agreement`, whether a trained model's other forms decide as the model does; :func:`exported`,
its exported files.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from ctmasknet.benchmarks.harness import Apart, comparison, interleaved, spread
from ctmasknet.benchmarks.peers import (
    StockClassifier,
    TorchvisionDetector,
    calibrate_norms,
    stock_cfg,
)
from ctmasknet.config import ranks_boxes
from ctmasknet.config_file import read_cfg
from ctmasknet.engine.export import calibration_slices, export_classifier, load_exported
from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.engine.trainer import Trainer
from ctmasknet.modeling.fast.inference import has_bfloat16, in_torch, rechecked, second_looks
from ctmasknet.modeling.fast.int8 import calibrated, nncf_installed, quantized
from ctmasknet.modeling.fast.openvino import computes_bfloat16, installed, to_openvino
from ctmasknet.modeling.meta_arch import CTMaskNet

_STOCK = "stock Detectron2, image head behind it"
_STOCK_DETECTOR = "stock Detectron2's detector with masks, no slice class"
_TORCHVISION = "torchvision detector, no masks, no slice class"
_PLAIN = "ctmasknet, model as trained"
_HALF = "ctmasknet, model in bfloat16"
_OPENVINO = "ctmasknet, OpenVINO"
_OPENVINO_HALF = "ctmasknet, OpenVINO in bfloat16"
_INT8 = "ctmasknet, OpenVINO in int8"
_COMPILED = "ctmasknet, backbone by torch.compile"
#: Side of the square matrices whose product is the machine's limit.
_GEMM_SIDE = 2048


def inference(
    *, config_file: str, side: int, batch: int, repeats: int, seed: int
) -> dict[str, Any]:
    """The classifier against stock Detectron2 and torchvision on noise slices.

    Weights are random, with batch normalisation's statistics taken from such slices, so that
    proposals are as many and as large as a trained detector's. Stock Detectron2 has the same
    weights and has to give the same logits, which the figures state. The peers have processes of
    their own, so that they handle memory as they do. Where the device has no bfloat16, rows in it
    are left out, and a note says so.

    Args:
        config_file: of a classifier with ResNet-50.
        side: of the slices, px.
        batch: slices a call; stock Detectron2 takes them one by one.
    """
    point = (config_file, side, batch, seed)
    cfg, slices, model = _classifier(*point)
    device = cfg.MODEL.DEVICE
    ways = _forms(model, device)
    dtypes = [torch.float32, *([torch.bfloat16] if _HALF in ways else [])]
    if device == "cpu" and shutil.which("g++"):
        ways[_COMPILED] = _compiled(model)
    gemms = {dtype: _gemms(dtype, device) for dtype in dtypes}
    with Apart(_stock_call, *point) as stock_call, Apart(_torchvision_call, *point) as other_call:
        calls: dict[str, Callable[[], Any]] = {_STOCK: stock_call, _TORCHVISION: other_call}
        calls |= {name: _call(way, device, slices) for name, way in ways.items()}
        for products in gemms.values():
            calls |= {name: _call(product, device) for name, product in products.items()}
        times = interleaved(calls, repeats, warm=1)
    rates = {
        dtype: {name: 2 * _GEMM_SIDE**3 / times.pop(name)["median_s"] for name in products}
        for dtype, products in gemms.items()
    }
    limits = {dtype: max(found.values()) for dtype, found in rates.items()}
    work = 2 * batch * multiply_adds(model, slices[0]["image"])
    stock, plain = _stock(cfg, model)(slices), model(slices)
    figures = {"multiply-adds a slice, 10^9": work / 2 / batch / 1e9}
    for found in rates.values():
        figures |= {f"{name}, GFLOP/s": rate / 1e9 for name, rate in found.items()}
    figures["largest logit difference, model and stock"] = _largest(plain, stock)
    if _OPENVINO in ways:
        found = [result["logits"] for result in ways[_OPENVINO](slices)]
        figures[
            f"{_OPENVINO}: largest logit difference from the model (random weights: rows of like "
            "score swap)"
        ] = _largest(plain, found)
    for name in (_PLAIN, _OPENVINO, _HALF, _OPENVINO_HALF):
        if name in ways:
            dtype = torch.bfloat16 if name in (_HALF, _OPENVINO_HALF) else torch.float32
            share = work / times[name]["median_s"] / limits[dtype]
            figures[f"{name}: share of the {str(dtype).removeprefix('torch.')} limit"] = share
    return comparison(
        f"classifier inference, ResNet-50, {batch} x {side} px",
        times,
        _STOCK,
        device,
        figures=figures,
        notes=bfloat16_notes(device),
        config_file=config_file,
    )


def engines(*, config_file: str, side: int, batch: int, repeats: int, seed: int) -> dict[str, Any]:
    """CPU seconds of a detector with masks, or a classifier, by each engine and in each precision,
    on noise slices; stock Detectron2 has the same weights. A classifier in int8 has no second looks
    here, which depend on what it is trained on.

    Args:
        config_file: of a detector or classifier.
        side: of the slices, px.
        batch: slices a call.
    """
    cfg = read_cfg(config_file, ["MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", str(side)])
    slices = noise_slices(batch, side, seed)
    model = calibrated_detector(cfg, seed, slices)
    reference, stock = _stock_of(cfg, model)
    ways = {reference: stock, **_forms(model, cfg.MODEL.DEVICE)}
    if ranks_boxes(cfg) and _OPENVINO in ways and nncf_installed():
        ways[_INT8] = to_openvino(model, dense=quantized(model, slices))
    with torch.no_grad():
        calls = {name: _call(way, cfg.MODEL.DEVICE, slices) for name, way in ways.items()}
        times = interleaved(calls, repeats, clock=time.process_time)
    return comparison(
        f"engines, {config_file}, {batch} x {side} px, CPU seconds",
        times,
        reference,
        cfg.MODEL.DEVICE,
        notes=bfloat16_notes(cfg.MODEL.DEVICE),
        config_file=config_file,
        seed=seed,
    )


def _stock_of(cfg: CfgNode, model: nn.Module) -> tuple[str, nn.Module]:
    """Stock Detectron2 with a model's weights, and its name: with S behind it where the model has
    S, else the detector alone."""
    if ranks_boxes(cfg) and cfg.MODEL.IMAGE_HEAD.NAME == "RankedBoxImageHead":
        return _STOCK, _stock(cfg, model)
    stock = build_model(stock_cfg(cfg)).eval().requires_grad_(False)
    stock.load_state_dict(model.state_dict(), strict=False)
    return _STOCK_DETECTOR, stock


def _forms(model: nn.Module, device: str) -> dict[str, nn.Module]:
    """The model and what evaluation and prediction may make of it on this machine."""
    forms = {_PLAIN: model}
    if has_bfloat16(device):
        forms[_HALF] = in_torch(model, torch.bfloat16)
    if device == "cpu" and installed():
        forms[_OPENVINO] = to_openvino(model)
        if _HALF in forms and computes_bfloat16():
            forms[_OPENVINO_HALF] = to_openvino(model, torch.bfloat16)
    return forms


def bfloat16_notes(device: str) -> list[str]:
    """What a result says where it has no rows in bfloat16."""
    return [] if has_bfloat16(device) else [f"No rows in bfloat16: {device} does not compute in it"]


def _classifier(
    config_file: str, side: int, batch: int, seed: int
) -> tuple[CfgNode, list[dict[str, Any]], CTMaskNet]:
    """Configuration, noise slices, and the classifier that all ways are made of."""
    # Anchors and small boxes as Detectron2 has them, so that both are to give the same logits.
    same = ["MODEL.ANCHOR_GENERATOR.ROUND", "False", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "0"]
    sides = ["INPUT.MIN_SIZE_TEST", str(side)]
    cfg = read_cfg(config_file, ["MODEL.WEIGHTS", "", *sides, *same])
    slices = noise_slices(batch, side, seed)
    return cfg, slices, calibrated_classifier(cfg, seed, slices)


def _stock(cfg: CfgNode, model: CTMaskNet) -> StockClassifier:
    peer = StockClassifier(cfg).to(cfg.MODEL.DEVICE).eval()
    return peer.take_weights(model).requires_grad_(False)


def _stock_call(*point: Any) -> Callable[[], None]:
    cfg, slices, model = _classifier(*point)
    return _call(_stock(cfg, model), cfg.MODEL.DEVICE, slices)


def _torchvision_call(*point: Any) -> Callable[[], None]:
    cfg, slices, _ = _classifier(*point)
    return _call(TorchvisionDetector(cfg, slices), cfg.MODEL.DEVICE, slices)


def multiply_adds(model: CTMaskNet, image: Tensor) -> float:
    """Multiply-adds of one slice in convolutions and linear layers, as fvcore counts them.

    Args:
        model: the classifier itself, not another form of it.
        image: (3, H, W).
    """
    tensor = model.preprocess_image([{"image": image}]).tensor
    with torch.no_grad():
        features = list(model.backbone(tensor).values())
    pooler = model.roi_heads.box_pooler
    boxes = model.proposal_generator.post_nms_topk[False]
    pooled = tensor.new_zeros(boxes, features[0].shape[1], *pooler.output_size)
    rows = tensor.new_zeros(1, model.roi_heads.num_ranked_boxes, 5)
    parts = (
        (model.backbone, tensor),
        (model.proposal_generator.rpn_head, (features,)),
        (nn.Sequential(model.roi_heads.box_head, model.roi_heads.box_predictor), pooled),
        (model.image_head, rows),
    )
    total = 0.0
    for part, inputs in parts:
        counter = FlopCountAnalysis(part, inputs).unsupported_ops_warnings(False)
        counts = counter.uncalled_modules_warnings(False).by_operator()
        total += sum(counts[name] for name in ("conv", "linear"))
    return total


def noise_slices(count: int, side: int, seed: int) -> list[dict[str, Any]]:
    """Inputs of the classifier, squares with a side of ``side`` px."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.randint(0, 256, (3, side, side), generator=generator).float()}
        for _ in range(count)
    ]


def calibrated_classifier(cfg: CfgNode, seed: int, slices: list[dict[str, Any]]) -> CTMaskNet:
    """:func:`calibrated_detector` of a classifier's configuration."""
    return calibrated_detector(cfg, seed, slices)


def calibrated_detector(cfg: CfgNode, seed: int, slices: list[dict[str, Any]]) -> nn.Module:
    """A detector or classifier with random weights whose features, scores and boxes on ``slices``
    have a trained one's scale."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    # Scores that differ as a trained detector's do.
    nn.init.normal_(model.proposal_generator.rpn_head.objectness_logits.weight, std=0.1)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
    calibrate_norms(model.backbone, model.preprocess_image(slices[:1]).tensor)
    return model.eval()


def _compiled(model: CTMaskNet) -> CTMaskNet:
    """A copy whose backbone torch compiles at the first call, weights as constants."""
    compiled = copy.deepcopy(model).requires_grad_(False)
    compiled.backbone = torch.compile(compiled.backbone, options={"freezing": True})
    return compiled


def _gemms(dtype: torch.dtype, device: str) -> dict[str, Callable[[], Tensor]]:
    """Ways to multiply two square matrices; the fastest is the machine's limit."""
    left, right = (torch.randn(_GEMM_SIDE, _GEMM_SIDE).to(device, dtype) for _ in range(2))
    kind = str(dtype).removeprefix("torch.")
    found = {f"torch's matrix product in {kind}": lambda: left @ right}
    if device == "cpu" and torch.backends.mkldnn.is_available():
        # torch takes MKL for float32, which is slow on other makers' processors.
        packed = torch.ops.mkldnn._reorder_linear_weight(right, _GEMM_SIDE)
        one_dnn = torch.ops.mkldnn._linear_pointwise
        rest = (packed, None, "none", [], "")
        found[f"oneDNN's matrix product in {kind}"] = lambda: one_dnn(left, *rest)
    return found


def _call(way, device: str, *arguments):
    def call() -> None:
        way(*arguments)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return call


def _largest(ours: list[dict[str, Any]], logits: list[Tensor]) -> float:
    pairs = zip(ours, logits, strict=True)
    return max(float((one["logits"] - other).abs().max()) for one, other in pairs)


_AGAIN = ", close calls again in float32"


def agreement(
    *, config_file: str, weights: str, calibration: str, slices: int, repeats: int, seed: int
) -> dict[str, Any]:
    """A trained classifier's classes and logits in its forms, on the first of ``DATASETS.TEST``,
    and their CPU seconds.

    Stock Detectron2 with its weights is timed beside them. Where the device has no bfloat16, or
    NNCF is not installed, rows in it are left out; a model that int8 does not fit is an error.

    Args:
        config_file: of the classifier.
        weights: its checkpoint.
        calibration: registered set that int8 is calibrated on, what the model was trained on.
        slices: so many of it.
        repeats: passes over the set; every batch goes through all forms in turn.
        seed: of the slices drawn from ``calibration``.
    """
    cfg, _ = inference_cfg(config_file, weights=weights, test_sets=True)
    model = load_model(cfg)
    reference, stock = _stock_of(cfg, model)
    forms = _forms(model, cfg.MODEL.DEVICE)
    judge, figures = forms.get(_OPENVINO, model), {}
    for half in (_OPENVINO_HALF, _HALF):
        if half in forms:
            margin = cfg.MODEL.INFERENCE.RECHECK_MARGIN
            forms[half + _AGAIN] = rechecked(copy.deepcopy(forms[half]), judge, margin)
            break
    if _OPENVINO in forms and nncf_installed():
        drawn = calibration_slices(cfg, calibration, slices, seed)[1]
        forms[_INT8], _, told = calibrated(model, drawn)
        forms[_INT8 + _AGAIN] = rechecked(copy.deepcopy(forms[_INT8]), judge, told["margin"])
        figures[f"{_INT8}: slices of {calibration} that it is calibrated on"] = len(drawn)
        figures[f"{_INT8}: lead below which it looks again"] = told["margin"]
    dataset = cfg.DATASETS.TEST[0]
    seconds: dict[str, list[float]] = {name: [] for name in (reference, *forms)}
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in forms}
    for _ in range(repeats):
        for batch in Trainer.build_test_loader(cfg, dataset):
            for name, form in ((reference, stock), *forms.items()):
                begin = time.process_time()
                with torch.no_grad():
                    found = form(batch)
                seconds[name].append((time.process_time() - begin) / len(batch))
                if name in logits:
                    logits[name] += [one["logits"] for one in found]
    stacked = {name: torch.stack(found) for name, found in logits.items()}
    figures[f"slices of {dataset}"] = float(len(stacked[_PLAIN]) // repeats)
    for name, found in stacked.items():
        if name == _PLAIN:
            continue
        looks, again = second_looks(forms[name])
        if looks:
            # Medians hide the few slices that are named twice
            total = sum(seconds[reference]) / sum(seconds[name])
            figures[f"{name}: ratio of the seconds of all slices"] = total
            figures[f"{name}: named again, %"] = 100 * again / looks
        difference = (found - stacked[_PLAIN]).abs().amax(dim=1)
        same = found.argmax(1) == stacked[_PLAIN].argmax(1)
        figures[f"{name}: classes equal, %"] = 100 * float(same.float().mean())
        figures[f"{name}: largest logit difference"] = float(difference.max())
        figures[f"{name}: median logit difference"] = float(difference.median())
    return comparison(
        f"trained classifier, {config_file}, {dataset}, CPU seconds",
        {name: spread(found) for name, found in seconds.items()},
        reference,
        cfg.MODEL.DEVICE,
        per="slice",
        figures=figures,
        notes=bfloat16_notes(cfg.MODEL.DEVICE),
        config_file=config_file,
        dataset=dataset,
        seed=seed,
    )


def exported(*, config_file: str, side: int, repeats: int, seed: int) -> dict[str, Any]:
    """A classifier's files of both formats against the classifier, on the CPU.

    Args:
        config_file: of a classifier.
        side: of the noise slice, px.
    """
    cfg = read_cfg(config_file, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    slices = noise_slices(1, side, seed)
    model = calibrated_classifier(cfg, seed, slices)
    image = slices[0]["image"][None]
    forms = _forms(model, "cpu")
    ways = {name: lambda form=form: form(slices) for name, form in forms.items()}
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix in (("torch.export program", ".pt2"), ("ONNX Runtime", ".onnx")):
            path = Path(folder) / f"model{suffix}"
            difference = export_classifier(cfg, model, path, side, side)
            figures[f"{name}: file, MB"] = path.stat().st_size / 1e6
            figures[
                f"{name}: largest logit difference from the model (random weights: rows of like "
                "score swap)"
            ] = difference
            run = load_exported(path)
            ways[name] = lambda run=run: run(image)
    with torch.no_grad():
        times = interleaved(ways, repeats, clock=time.process_time)
    return comparison(
        f"exported classifier, {side} px, CPU seconds",
        times,
        _PLAIN,
        "cpu",
        figures=figures,
        config_file=config_file,
    )
