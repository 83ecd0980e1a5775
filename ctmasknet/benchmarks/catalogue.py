"""The benchmarks by name, with their options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ctmasknet.benchmarks import growth, inference, loading, long_lists, parts, training, whole_job
from ctmasknet.engine.processes import keep_freed_memory

_CLASSIFIER = ("configs/cls.yaml", "of a classifier")


@dataclass(frozen=True)
class Benchmark:
    """What ``tools/benchmark.py NAME`` runs.

    Args:
        help: one line.
        run: called with ``repeats``, ``seed`` and the options by keyword.
        options: name -> (default, help) or (default, help, all values there are); a value has the
            type of its default.
        draw: draws a result into a PNG file, where there is something to draw.
    """

    help: str
    run: Callable[..., dict[str, Any]]
    options: Mapping[str, tuple[Any, ...]]
    draw: Callable[[Mapping[str, Any], str], None] | None = None

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        for name, (default, text, *values) in self.options.items():
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=type(default),
                default=default,
                choices=values[0] if values else None,
                help=f"{text} ({default})",
            )

    def __call__(self, args: argparse.Namespace) -> dict[str, Any]:
        # As every tool does
        keep_freed_memory()
        options = {name: getattr(args, name) for name in self.options}
        return self.run(repeats=args.repeats, seed=args.seed, **options)


BENCHMARKS: dict[str, Benchmark] = {
    "inference": Benchmark(
        "the classifier against stock Detectron2, torchvision and the machine's limit",
        inference.inference,
        {
            "config_file": _CLASSIFIER,
            "side": (512, "of the noise slices, px"),
            "batch": (1, "slices a call"),
        },
    ),
    "engines": Benchmark(
        "a detector or classifier by each engine, against stock Detectron2",
        inference.engines,
        {
            "config_file": ("configs/seg.yaml", "of a detector or classifier"),
            "side": (512, "of the noise slices, px"),
            "batch": (1, "slices a call"),
        },
    ),
    "agreement": Benchmark(
        "classes and logits of a model's other forms against the model's on a test set",
        inference.agreement,
        {
            "config_file": ("configs/demo/cls.yaml", "of a classifier"),
            "weights": ("output/demo/cls/model_best.pth", "its checkpoint"),
            "calibration": ("covidx_ct_train", "data set that int8 is calibrated on"),
            "slices": (256, "so many of it"),
        },
    ),
    "exported": Benchmark(
        "exported programs against the classifier they came from",
        inference.exported,
        {"config_file": _CLASSIFIER, "side": (512, "of the noise slice, px")},
    ),
    "heads-cache": Benchmark(
        "training of heads on cached rows against images",
        training.heads_cache,
        {"config_file": _CLASSIFIER, "slices": (8, "noise slices to draw from")},
    ),
    "heads-bn": Benchmark(
        "training of heads_bn against a gradient for every weight",
        training.heads_bn,
        {"config_file": _CLASSIFIER, "batch": (2, "slices a step")},
    ),
    "coco-evaluation": Benchmark(
        "COCO evaluation by faster-coco-eval against pycocotools",
        loading.coco_evaluation,
        {"slices": (650, "slices"), "detections": (100, "detections of each slice")},
    ),
    "mask-conversion": Benchmark(
        "masks to COCO annotations against scikit-image and pycocotools",
        loading.mask_conversion,
        {"patients": (8, "phantom patients")},
    ),
    "mask-conversion-processes": Benchmark(
        "image and mask files to COCO annotations in several processes",
        loading.mask_conversion_processes,
        {
            "patients": (8, "phantom patients"),
            "rounds": (10, "times that their slices are converted"),
            "most": (2, "processes"),
        },
    ),
    "loading": Benchmark(
        "PNG files to the model's input against Detectron2's mapper",
        loading.loading,
        {
            "kind": ("lesions", "with boxes and masks, or slices alone", ("lesions", "slices")),
            "slices": (20, "of a phantom patient"),
        },
    ),
    "registration": Benchmark(
        "a large set registered and checked for leaks, against parsing its files",
        loading.registration,
        {
            "slices": (100_000, "slices in three splits"),
            "workers": (1, "threads that compare hashes"),
        },
    ),
    "long-lists": Benchmark(
        "lists as long as COVIDx-CT's prepared, registered and checked for leaks",
        long_lists.long_lists,
        {
            "slices": (358_000, "lines of the train list"),
            "workers": (os.cpu_count() or 1, "processes"),
        },
    ),
    "mask-targets": Benchmark(
        "what the mask head learns, against Detectron2",
        training.mask_targets,
        {"proposals": (192, "that match a lesion"), "lesions": (4, "in the slice")},
    ),
    "training-step": Benchmark(
        "a training step against stock Detectron2",
        training.training_step,
        {
            "kind": ("segmentation", "of step", tuple(training.KINDS)),
            "batch": (2, "slices a step"),
            "side": (512, "of the slices, px"),
        },
    ),
    "parts": Benchmark(
        "what each speed-up pays: the whole against the same without it",
        parts.parts,
        {
            "kind": ("inference", "of the classifier, or of a training step", parts.PART_KINDS),
            "batch": (1, "slices a call or step"),
            "side": (512, "of the slices, px"),
        },
    ),
    "whole-job": Benchmark(
        "a whole prediction: the share of its time in which the model computes",
        whole_job.whole_job,
        {
            "config_file": _CLASSIFIER,
            "dicom_slices": (300, "of a DICOM series of 512 px; a quarter of it too"),
            "picture_slices": (500, "PNG of 512 px; a quarter of them too"),
        },
    ),
    "growth": Benchmark(
        "speed and memory of a classifier against batch, N, image side, slices, processes",
        growth.growth,
        {"config_file": _CLASSIFIER, "images": (4, "slices of one measurement, at least")},
        growth.draw_growth,
    ),
}
