"""The benchmarks by name, with their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ctmasknet.benchmarks.agreement import agreement
from ctmasknet.benchmarks.classifier_inference import inference
from ctmasknet.benchmarks.classifier_training import heads_bn, heads_cache
from ctmasknet.benchmarks.exported import exported

_CLASSIFIER = ("configs/cls.yaml", "of a classifier")


@dataclass(frozen=True)
class Benchmark:
    """What ``tools/benchmark.py NAME`` runs.

    Args:
        help: one line.
        run: called with ``repeats``, ``seed`` and the options by keyword.
        options: name -> (default, help); a value has the type of its default.
    """

    help: str
    run: Callable[..., dict[str, Any]]
    options: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        for name, (default, text) in self.options.items():
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=type(default),
                default=default,
                help=f"{text} ({default})",
            )

    def __call__(self, args: argparse.Namespace) -> dict[str, Any]:
        options = {name: getattr(args, name) for name in self.options}
        return self.run(repeats=args.repeats, seed=args.seed, **options)


BENCHMARKS: dict[str, Benchmark] = {
    "inference": Benchmark(
        "the classifier against stock Detectron2, torchvision and the machine's limit",
        inference,
        {
            "config_file": _CLASSIFIER,
            "side": (512, "of the noise slices, px"),
            "batch": (1, "slices a call"),
        },
    ),
    "agreement": Benchmark(
        "classes and logits of the inference copy against the model's on a test set",
        agreement,
        {
            "config_file": ("configs/demo/cls.yaml", "of a classifier"),
            "weights": ("output/demo/cls/model_best.pth", "its checkpoint"),
        },
    ),
    "exported": Benchmark(
        "exported programs against the classifier they came from",
        exported,
        {"config_file": _CLASSIFIER, "side": (512, "of the noise slice, px")},
    ),
    "heads-cache": Benchmark(
        "training of heads on kept rows against images",
        heads_cache,
        {"config_file": _CLASSIFIER, "slices": (8, "noise slices to draw from")},
    ),
    "heads-bn": Benchmark(
        "training of heads_bn against a gradient for every weight",
        heads_bn,
        {"config_file": _CLASSIFIER, "batch": (2, "slices a step")},
    ),
}
