"""All that a card has to show in a few minutes, whatever part of it fails."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tabulate import tabulate

from ctmasknet.benchmarks.gpu.parity import parity
from ctmasknet.benchmarks.gpu.point import Point
from ctmasknet.benchmarks.gpu.resume import resume
from ctmasknet.benchmarks.gpu.speed import forward, steps
from ctmasknet.benchmarks.harness import circumstances
from ctmasknet.benchmarks.table import text_of
from ctmasknet.benchmarks.training import KINDS
from ctmasknet.errors import CTMaskNetError

_PARTS = {
    "forward": forward,
    **{f"step of {kind}": functools.partial(steps, kind) for kind in KINDS},
    "parity": parity,
    "resume": resume,
}


def gpu_check(
    *, device: str, side: int, batch: int, repeats: int, seed: int, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Time forward passes and training steps of every kind on a device, stock Detectron2's beside
    them, and check half precision, parity with the CPU and resuming there.

    A part that fails is told among the problems; the others are run all the same.

    Args:
        device: ``cuda``, ``cuda:1``; ``cpu`` runs the same without memory, to try the check itself.
        side: of the slices, px.
        batch: slices a call or step; inference is timed on one slice too.
        repeats: times each way is measured.
        seed: of weights, slices and samples.
        overrides: ``KEY VALUE`` words over every configuration.

    Returns:
        ``results``, each as of :func:`ctmasknet.benchmarks.harness.comparison`; ``checks``
        (``check``, ``figure``, ``limit``, ``holds``); ``problems``, a sentence each; ``seconds`` of
        each part; ``circumstances``, with ``gpu_memory_mb``, ``cuda`` and ``capability``.

    Raises:
        CTMaskNetError: no such device.
    """
    more = _device_facts(device)
    point = Point(device, side, batch, repeats, seed, tuple(map(str, overrides)))
    found: dict[str, Any] = {"results": [], "checks": [], "problems": [], "seconds": {}}
    for name, part in _PARTS.items():
        begin = time.perf_counter()
        try:
            results, checks = part(point)
        except CTMaskNetError as error:
            found["problems"].append(f"{name}: {error}")
        except Exception as error:  # of a driver, a kernel, memory: what this run is to find out
            told = " ".join(f"{type(error).__name__}: {error}".split())
            found["problems"].append(f"{name}: {told[:500]}")
        else:
            found["results"] += results
            found["checks"] += checks
        found["seconds"][name] = round(time.perf_counter() - begin, 1)
    return {**found, "circumstances": {**circumstances(device), **more}}


def _device_facts(device: str) -> dict[str, Any]:
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cuda", "cpu"):
        raise CTMaskNetError(f"`device` {device}: give cuda, cuda:1, ... or cpu")
    if kind.type == "cpu":
        return {}
    number = kind.index or 0
    if number >= torch.cuda.device_count():
        raise CTMaskNetError(
            f"`device` {device}: torch {torch.__version__} finds {torch.cuda.device_count()} CUDA "
            "devices; run this where nvidia-smi shows a card and torch is built for its driver"
        )
    torch.cuda.set_device(number)
    card = torch.cuda.get_device_properties(number)
    return {
        "gpu_memory_mb": round(card.total_memory / 1e6),
        "cuda": torch.version.cuda,
        "capability": f"{card.major}.{card.minor}",
    }


def gpu_text(found: Mapping[str, Any]) -> str:
    """A result of :func:`gpu_check` for the terminal."""
    texts = [text_of(result) for result in found["results"]]
    rows = [
        [check["check"], f"{check['figure']:.2g}", f"{check['limit']:.2g}", _WORDS[check["holds"]]]
        for check in found["checks"]
    ]
    headers = ["check", "figure", "limit", ""]
    texts.append(tabulate(rows, headers=headers, disable_numparse=True))
    texts += [f"failed: {problem}" for problem in found["problems"]]
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["seconds"].items())
    texts.append(f"{sum(found['seconds'].values()):.0f} s in all: {each}")
    return "\n\n".join(texts)


_WORDS = {True: "holds", False: "DOES NOT HOLD"}
