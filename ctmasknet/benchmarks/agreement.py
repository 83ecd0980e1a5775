"""Whether the inference copy decides as the model does, on a test set."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from ctmasknet.benchmarks.stock_peer import StockClassifier
from ctmasknet.benchmarks.timing import comparison, spread
from ctmasknet.engine.setup import load_model, setup_cfg
from ctmasknet.engine.trainer import Trainer
from ctmasknet.modeling.fused_layers import cpu_has_bfloat16
from ctmasknet.modeling.inference import rechecked, to_inference

_STOCK = "stock Detectron2, image head behind it"
_MODEL, _COPY, _HALF = "model as trained", "inference copy", "inference copy in bfloat16"
_CHECKED = "the same, close calls again in float32"


def agreement(*, config_file: str, weights: str, repeats: int, seed: int) -> dict[str, Any]:
    """A trained classifier's classes and logits in its forms, on the first of ``DATASETS.TEST``.

    Stock Detectron2 with its weights is timed beside them; its anchors are not rounded, so its
    logits are others.

    Args:
        config_file: of the classifier.
        weights: its checkpoint.
        repeats: passes over the set; every batch goes through all forms in turn.
        seed: not used, nothing is random.
    """
    cfg = setup_cfg(argparse.Namespace(config_file=config_file, opts=["MODEL.WEIGHTS", weights]))
    model = load_model(cfg)
    peer = StockClassifier(cfg).to(cfg.MODEL.DEVICE).eval()
    forms = {
        _STOCK: peer.take_weights(model).requires_grad_(False),
        _MODEL: model,
        _COPY: to_inference(model),
    }
    if cpu_has_bfloat16():
        forms[_HALF] = to_inference(model, torch.bfloat16)
        margin = cfg.MODEL.INFERENCE.RECHECK_MARGIN
        forms[_CHECKED] = rechecked(to_inference(model, torch.bfloat16), forms[_COPY], margin)
    dataset = cfg.DATASETS.TEST[0]
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in forms}
    for _ in range(repeats):
        for batch in Trainer.build_test_loader(cfg, dataset):
            for name, form in forms.items():
                begin = time.perf_counter()
                found = form(batch)
                seconds[name].append((time.perf_counter() - begin) / len(batch))
                logits[name] += found if name == _STOCK else [one["logits"] for one in found]
    stacked = {name: torch.stack(found) for name, found in logits.items()}
    figures = {f"slices of {dataset}": float(len(stacked[_MODEL]) // repeats)}
    if _CHECKED in forms:
        # Medians hide the few slices that are named twice
        total = sum(seconds[_STOCK]) / sum(seconds[_CHECKED])
        figures[f"{_CHECKED}: ratio of the seconds of all slices"] = total
    for name in forms:
        if name not in (_STOCK, _MODEL):
            difference = (stacked[name] - stacked[_MODEL]).abs().amax(dim=1)
            same = stacked[name].argmax(1) == stacked[_MODEL].argmax(1)
            figures[f"{name}: classes equal, %"] = 100 * float(same.float().mean())
            figures[f"{name}: largest logit difference"] = float(difference.max())
            figures[f"{name}: median logit difference"] = float(difference.median())
    return comparison(
        f"trained classifier, {config_file}",
        {name: spread(found) for name, found in seconds.items()},
        _STOCK,
        cfg.MODEL.DEVICE,
        per="slice",
        figures=figures,
        config_file=config_file,
        dataset=dataset,
    )
