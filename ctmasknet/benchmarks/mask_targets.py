"""What the mask head learns: cuts of ground-truth masks for the proposals of a slice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import BitMasks
from torch import Tensor

from ctmasknet.benchmarks.harness import comparison, interleaved, peak_memory_of
from ctmasknet.engine.metrics import peak_memory_mb
from ctmasknet.modeling.masks import SharedBitMasks


def mask_targets(*, proposals: int, lesions: int, repeats: int, seed: int) -> dict[str, Any]:
    """Masks of lesions chosen for proposals and cut to 28 x 28, in a slice of 512 px.

    Peak memory is that of processes of their own, the imports among it.

    Args:
        proposals: that match a lesion; 192 at most in the published training.
        lesions: in the slice.
        repeats: times each is measured.
        seed: of lesions and proposals.
    """
    ways = _ways(proposals, lesions, seed)
    timings = interleaved(ways, repeats)
    if not torch.equal(*(way() for way in ways.values())):
        raise AssertionError("the two ways gave different targets")
    return comparison(
        f"mask targets of {proposals} proposals of {lesions} lesions, a slice of 512 px",
        timings,
        "Detectron2",
        "cpu",
        peak_memory_mb={
            way: peak_memory_of(__name__, way, proposals, lesions, seed) for way in ways
        },
    )


def _ways(proposals: int, lesions: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(lesions, 2, generator=generator) * 400
    boxes = torch.cat([corner, corner + 20 + torch.rand(lesions, 2, generator=generator) * 80], 1)
    masks = torch.zeros(lesions, 512, 512, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    owner = torch.arange(proposals) % lesions
    proposed = boxes[owner] + torch.rand(proposals, 4, generator=generator) * 4 - 2

    def cut(kind: type[BitMasks]) -> Callable[[], Tensor]:
        return lambda: kind(masks)[owner].crop_and_resize(proposed, 28)

    return {"Detectron2": cut(BitMasks), "ctmasknet": cut(SharedBitMasks)}


def _main(way: str, *numbers: str) -> None:
    _ways(*map(int, numbers))[way]()
    print(peak_memory_mb("cpu"))


if __name__ == "__main__":
    _main(*sys.argv[1:])
