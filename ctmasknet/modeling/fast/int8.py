"""A classifier whose backbone and RPN compute in int8, kept in a file beside its weights.

NNCF quantizes the convolutions; the RPN's predictions, boxes and heads stay float32. Slices that it
was not quantized on tell how far the lead of one class over the next is overstated: a slice with
too small a lead is named again in float32 (:class:`.inference.RecheckedClassifier`).

Shapes: B slices, C classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import math
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import plain_file
from ctmasknet.modeling.fast.openvino import (
    dense_network,
    openvino_core,
    openvino_package,
    to_openvino,
)
from ctmasknet.modeling.meta_arch import CTMaskNet

SUFFIX = ".int8"
_FORMAT = "ctmasknet int8 1"
#: Convolutions that stay float32: what the RPN predicts with.
_FLOAT = ".*(objectness_logits|anchor_deltas).*"
#: Share of slices that may be expected to keep a wrong class, and that may be looked at twice.
_WRONG, _MOST_AGAIN = 0.001, 0.5
#: What torch raises for a file that is none of its own, or damaged.
_READ_ERRORS = (
    *(OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)
_LOGGER = logging.getLogger(__name__)


def nncf_installed() -> bool:
    """Whether the package that quantizes is there."""
    return importlib.util.find_spec("nncf") is not None


def quantized(model: CTMaskNet, slices: Sequence[Mapping[str, Any]]) -> Any:
    """:func:`.openvino.dense_network` of a classifier in int8.

    Args:
        model: with weights loaded, in evaluation mode; it is left alone.
        slices: its inputs, whose values tell the ranges of numbers.

    Raises:
        CTMaskNetError: NNCF is not installed; a layer has no form in OpenVINO.
    """
    if not nncf_installed():
        raise CTMaskNetError(
            "nncf is not installed, which makes models in int8; `pip install nncf openvino`"
        )
    network = dense_network(model)
    with _quiet():
        nncf = importlib.import_module("nncf")
        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            network,
            nncf.Dataset([model.preprocess_image([one]).tensor.numpy() for one in slices]),
            subset_size=len(slices),
            ignored_scope=nncf.IgnoredScope(patterns=[_FLOAT], validate=False),
        )


def calibrated(
    model: CTMaskNet, slices: Sequence[Mapping[str, Any]]
) -> tuple[CTMaskNet, Any, dict[str, Any]]:
    """A classifier in int8, and how far it can be trusted.

    Args:
        model: with weights loaded, in evaluation mode; it is left alone.
        slices: its inputs. The first quarter tells the ranges of numbers, the others the margin.

    Returns:
        the classifier, which looks once; the network of its dense part; and SHA-256 of the
        ``weights``, ``versions``, and of the others ``margin``, see :func:`margin_of`, ``tried``,
        so many slices, ``same_class``, so many have float32's class at the first look, ``again``,
        so many get a second.

    Raises:
        CTMaskNetError: fewer than four slices; more than half would get a second look; see
            :func:`quantized`.
    """
    if len(slices) < 4:
        raise CTMaskNetError(f"{len(slices)} slices to calibrate on; give 4 or more")
    first = len(slices) // 4
    network = quantized(model, slices[:first])
    fast, exact = to_openvino(model, dense=network), to_openvino(model)
    ours, theirs = (
        torch.stack([form([one])[0]["logits"] for one in slices[first:]]) for form in (fast, exact)
    )
    margin = margin_of(ours, theirs)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("openvino", "nncf")]
    told = {
        "weights": weights_sha256(model.state_dict().items()),
        "versions": versions,
        "margin": margin,
        "tried": len(ours),
        "same_class": int((ours.argmax(1) == theirs.argmax(1)).sum()),
        "again": int((leads(ours) < margin).sum()),
    }
    if told["again"] > _MOST_AGAIN * len(ours):
        raise CTMaskNetError(
            f"int8: {told['same_class']} of {len(ours)} slices keep their class and "
            f"{told['again']} would need a second look in float32, which takes longer than float32 "
            'alone; leave MODEL.INFERENCE.DTYPE at "" for this model'
        )
    return fast, network, told


def margin_of(ours: Tensor, theirs: Tensor) -> float:
    """The lead of a class, in logits, below which a slice needs a second look.

    Every slice's lead is set against what every slice's lead was overstated by: slices that lead by
    the margin or more are expected to keep a wrong class once in a thousand of all slices.

    Args:
        ours, theirs: (B, C) logits of the same slices at the first look and in float32.
    """
    best = ours.argmax(1, keepdim=True)
    gained = ours - theirs
    others = gained.scatter(1, best, torch.inf)
    overstated = gained.gather(1, best)[:, 0] - others.amin(1)
    lead = leads(ours).sort().values
    wrong = (overstated > lead[:, None]).float().mean(1)
    left = wrong.flip(0).cumsum(0).flip(0) / len(lead)
    enough = lead[left <= _WRONG]
    return float(enough[0]) if len(enough) else math.inf


def leads(logits: Tensor) -> Tensor:
    """(B, C) -> (B,) how much more the best class has than the next."""
    best = logits.topk(min(2, logits.shape[1])).values
    return best[:, 0] - best[:, -1]


def weights_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """Of tensors with their names, in any order."""
    found = hashlib.sha256()
    for name, value in sorted(named, key=lambda pair: pair[0]):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def int8_bytes(network: Any, told: Mapping[str, Any]) -> bytes:
    """A file's content: a network of :func:`quantized`, and what is told of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.xml"
        openvino_package().save_model(network, path, compress_to_fp16=False)
        parts = {"xml": path.read_text(encoding="utf-8")}
        parts["bin"] = torch.frombuffer(
            bytearray(path.with_suffix(".bin").read_bytes()), dtype=torch.uint8
        )
    stream = io.BytesIO()
    torch.save({"format": _FORMAT, "told": dict(told), **parts}, stream)
    return stream.getvalue()


def read_int8(path: str | os.PathLike) -> dict[str, Any]:
    """A file of :func:`int8_bytes`: ``told``, and what :func:`network_of` takes.

    Raises:
        CTMaskNetError: it is missing, or none.
    """
    path = Path(path)
    remedy = f"make it with tools/export.py (`output` {path}, `dataset` what it was trained on)"
    if not path.is_file():
        raise CTMaskNetError(f"{path}: no such file, which MODEL.INFERENCE.DTYPE int8 is; {remedy}")
    try:
        with zipfile.ZipFile(plain_file(path)) as file:
            # Compressed entries could hold any size
            if any(one.compress_type for one in file.infolist()) or file.testzip():
                raise ValueError("check sum")
        found = torch.load(path, weights_only=True)
        if dict(found)["format"] == _FORMAT:
            return {**found, "path": path, "margin": float(found["told"]["margin"])}
    except _READ_ERRORS as error:
        raise CTMaskNetError(
            f"{path}: no model in int8 ({type(error).__name__}); {remedy}"
        ) from None
    raise CTMaskNetError(f"{path}: written by another version of ctmasknet; {remedy}")


def network_of(content: Mapping[str, Any], model: CTMaskNet) -> Any:
    """The network of a file's content.

    Raises:
        CTMaskNetError: it is of other weights, or damaged.
    """
    path, told = content["path"], content["told"]
    if told.get("weights") != weights_sha256(model.state_dict().items()):
        raise CTMaskNetError(
            f"{path}: made of other weights than those beside it; make it anew with tools/export.py"
        )
    version = f"openvino {importlib.metadata.version('openvino')}"
    if version not in told["versions"]:
        _LOGGER.warning(
            "%s: calibrated with %s, computed by %s", path, ", ".join(told["versions"]), version
        )
    try:
        return openvino_core().read_model(
            model=content["xml"].encode(), weights=content["bin"].numpy().tobytes()
        )
    except (*_READ_ERRORS, AttributeError) as error:
        raise CTMaskNetError(
            f"{path}: no model in int8 ({type(error).__name__}); make it anew with tools/export.py"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress of its own, and torch warns of a compiler that is not used."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
