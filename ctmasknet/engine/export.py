"""A trained classifier as one file (``tools/export.py``): that runs without Detectron2, or in int8
here."""

from __future__ import annotations

import io
import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ctmasknet.config import ranks_boxes
from ctmasknet.console.progress import tracked
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.data.prepared import content_sha256
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.engine.checkpoint import spec_of
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, writing
from ctmasknet.modeling.fast.int8 import calibrated, int8_bytes
from ctmasknet.modeling.fast.program import ExportableClassifier
from ctmasknet.modeling.meta_arch import CTMaskNet

#: A file's suffix -> what it holds.
FORMATS = {".pt2": "torch.export", ".onnx": "ONNX"}
#: Names of the program's input and outputs.
INPUT, OUTPUTS = "image", ("logits", "ranked_boxes")
#: Where the file keeps what its checkpoint carries (classes, N, window, ...), as JSON.
SPEC_NAME = "ctmasknet.json"
#: ONNX's version of the operators; RoiAlign is as Detectron2's since 16.
_OPSET = 17
#: Largest difference between program and model, of logits and of rows' numbers.
_TOLERANCE = 1e-3
#: What torch raises where it cannot write or run a part as a program.
_NO_FORM = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError)


def export_classifier(
    cfg: CfgNode, model: CTMaskNet, path: str | os.PathLike, height: int, width: int
) -> float:
    """Write a classifier as a program from a slice (1, 3, H, W), float32 RGB 0..255 as the mapper
    resizes it, to ``logits`` (1, C) and ``ranked_boxes`` (1, N, 5).

    The file is tried on some drawn slices before it gets its name.

    Args:
        cfg: of ``model``.
        model: with its weights loaded.
        path: ends in ``.pt2`` (:func:`torch.export.load`) or ``.onnx`` (standard operators alone).
        height: H, px.
        width: W, px.

    Returns:
        the largest difference between the file's logits and the model's on those slices.

    Raises:
        CTMaskNetError: not a classifier, another suffix, sides that are not positive, a missing
            package, a part of the model that has no form in the file, or a file that gives other
            logits than the model: a part computes otherwise than the program knows.
    """
    path = Path(path)
    _check_exported(cfg)
    if cfg.MODEL.IMAGE_HEAD.READS:
        raise CTMaskNetError(
            f"{path}: MODEL.IMAGE_HEAD.READS is {list(cfg.MODEL.IMAGE_HEAD.READS)}; only heads "
            "that read scores and deltas alone are exported"
        )
    if path.suffix not in FORMATS:
        raise CTMaskNetError(f"{path}: end the name in {' or '.join(FORMATS)}")
    if min(height, width) < 1:
        raise CTMaskNetError(f"height {height}, width {width}: give both in px, above 0")
    model = model.eval().cpu()
    images = _drawn(height, width)
    expected = [model([{"image": image[0]}])[0] for image in images]
    spec = json.dumps(spec_of(cfg))
    write = _onnx if path.suffix == ".onnx" else _program
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = write(model, images[0], spec)
            run = load_exported(content, path.suffix)
            found = [run(image) for image in images]
    except _NO_FORM as error:
        raise CTMaskNetError(
            f"{path}: this model has no form in {FORMATS[path.suffix]} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); export one of "
            "configs/cls*.yaml"
        ) from error
    differences = [
        float((logits[0] - theirs["logits"]).abs().max())
        for (logits, _), theirs in zip(found, expected, strict=True)
    ]
    for difference, (logits, rows), theirs in zip(differences, found, expected, strict=True):
        if difference <= _TOLERANCE:
            continue
        # Boxes of like score may change places, which an image head may take for something else.
        by_head = (model.image_head(rows) - logits).abs().max() <= _TOLERANCE
        if not (by_head and _same_rows(rows[0], theirs["ranked_boxes"])):
            raise CTMaskNetError(
                f"{path}: its logits would differ by {difference:.2g} from the model's, so it is "
                "not written: a part of the model computes otherwise than the program knows; "
                "export one of configs/cls*.yaml"
            )
    with writing(path), atomic_write(path, "wb") as stream:
        stream.write(content)
    return max(differences)


def _check_exported(cfg: CfgNode) -> None:
    if not ranks_boxes(cfg):
        raise CTMaskNetError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only classifiers "
            "(configs/cls*.yaml) are exported: their output has a fixed shape"
        )
    if cfg.MODEL.META_ARCHITECTURE != "CTMaskNet":
        raise CTMaskNetError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; CTMaskNet alone is exported"
        )


def export_int8(
    cfg: CfgNode, model: CTMaskNet, path: str | os.PathLike, dataset: str, slices: int, seed: int
) -> dict[str, Any]:
    """Write a classifier in int8 for ``MODEL.INFERENCE.DTYPE``, see
    :mod:`ctmasknet.modeling.fast.int8`.

    Args:
        cfg: of ``model``.
        model: with its weights loaded.
        path: of the file, which is looked for beside the weights, under their name.
        dataset: registered set of slices such as it will name: what it was trained on.
        slices: at most so many of them, drawn by ``seed``.

    Returns:
        what the file tells of itself: ``calibration`` (``dataset``, ``slices``, ``seed``,
        ``sha256`` of their files), and what :func:`ctmasknet.modeling.fast.int8.calibrated` tells.

    Raises:
        CTMaskNetError: not a classifier, an unknown set, a slice that cannot be read, a missing
            package; see ``calibrated``.
    """
    _check_exported(cfg)
    dicts, inputs = calibration_slices(cfg, dataset, slices, seed)
    _, network, told = calibrated(model.eval().cpu(), inputs)
    told["calibration"] = {
        "dataset": dataset,
        "slices": len(dicts),
        "seed": seed,
        "sha256": content_sha256(dicts),
    }
    content = int8_bytes(network, told)
    with writing(path), atomic_write(path, "wb") as stream:
        stream.write(content)
    return told


def calibration_slices(
    cfg: CfgNode, dataset: str, slices: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Dataset dicts drawn from a registered set, and the model's inputs of them; arguments and
    errors as of :func:`export_int8`."""
    dicts, mapper = list(dataset_dicts(dataset)), SliceMapper(cfg, False)
    dicts = random.Random(seed).sample(dicts, min(slices, len(dicts)))
    return dicts, [mapper(entry) for entry in tracked(dicts, f"slices of {dataset}")]


def _same_rows(rows: Tensor, expected: Tensor) -> bool:
    """Whether (N, 5) rows are those expected but for their order, and for the few that suppression
    may decide otherwise by rounding."""
    near = _TOLERANCE * (1 + expected.abs().max())
    apart = [
        torch.cdist(a, b, p=torch.inf).amin(1) for a, b in ((rows, expected), (expected, rows))
    ]
    same_scores = ((rows[:, 0] - expected[:, 0]).abs() <= near).all()
    return bool(same_scores) and all((one <= near).float().mean() >= 0.9 for one in apart)


def _drawn(height: int, width: int) -> list[Tensor]:
    """Slices (1, 3, H, W) to try a program on: noise of single px, of patches, and of both."""
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(1, 3, height, width, generator=generator) * 255
    patches = torch.rand(1, 1, 8, 8, generator=generator) * 255
    coarse = F.interpolate(patches, (height, width), mode="bilinear").expand(-1, 3, -1, -1)
    return [fine, coarse, (fine + coarse) / 2]


def load_exported(
    file: bytes | str | os.PathLike, suffix: str | None = None
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The program of a file as a function of a slice (1, 3, H, W).

    Args:
        file: its path, or its content.
        suffix: of the content's format.

    Raises:
        CTMaskNetError: a missing package.
    """
    if not isinstance(file, bytes):
        suffix, file = Path(file).suffix, Path(file).read_bytes()
    if suffix != ".onnx":
        program = torch.export.load(io.BytesIO(file)).module()
        return lambda image: program(image)
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda image: tuple(
        torch.from_numpy(found) for found in session.run(list(OUTPUTS), {INPUT: image.numpy()})
    )


def _program(model: CTMaskNet, image: Tensor, spec: str) -> bytes:
    exportable = ExportableClassifier(model, *image.shape[2:]).eval()
    program = torch.export.export(exportable, (image,), strict=False)
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={SPEC_NAME: spec})
    return stream.getvalue()


def _onnx(model: CTMaskNet, image: Tensor, spec: str) -> bytes:
    onnx = _package("onnx")
    exportable = ExportableClassifier(model, *image.shape[2:], standard_operators=True).eval()
    stream = io.BytesIO()
    # The exporter by tracing: torchvision's operators have standard forms in it.
    names = {"input_names": [INPUT], "output_names": list(OUTPUTS)}
    torch.onnx.export(exportable, (image,), stream, dynamo=False, opset_version=_OPSET, **names)
    made = onnx.load_from_string(stream.getvalue())
    onnx.helper.set_model_props(made, {SPEC_NAME: spec})
    onnx.checker.check_model(made)
    return made.SerializeToString()


def _package(name: str):
    try:
        return __import__(name)
    except ImportError:
        raise CTMaskNetError(
            f"{name} is not installed; `pip install onnx onnxruntime`, or write a .pt2 file"
        ) from None
