"""What an exported classifier costs beside the model it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from ctmasknet.benchmarks.classifier_inference import calibrated_classifier, noise_slices
from ctmasknet.benchmarks.timing import comparison, interleaved
from ctmasknet.engine.export import export_classifier, load_exported
from ctmasknet.engine.setup import read_cfg
from ctmasknet.modeling.inference import to_inference


def exported(*, config_file: str, side: int, repeats: int, seed: int) -> dict[str, Any]:
    """A classifier's files of both formats against the classifier, on the CPU.

    Args:
        config_file: of a classifier.
        side: of the noise slice, px.
        repeats: calls of each that are timed.
        seed: of weights and noise.
    """
    cfg = read_cfg(config_file, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    slices = noise_slices(1, side, seed)
    model = calibrated_classifier(cfg, seed, slices)
    copied = to_inference(model)
    image = slices[0]["image"][None]
    ways: dict[str, Any] = {
        "model as trained": lambda: model(slices),
        "inference copy": lambda: copied(slices),
    }
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
        times = interleaved(ways, repeats)
    return comparison(
        f"exported classifier, {side} px",
        times,
        "model as trained",
        "cpu",
        figures=figures,
        config_file=config_file,
    )
