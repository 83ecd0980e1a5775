"""How often a slice is drawn in training, so that classes, or slices with and without lesions, come
alike. The factors are for Detectron2's RepeatFactorTrainingSampler."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from ctmasknet.errors import CTMaskNetError

#: Words of ``DATALOADER.SAMPLER_TRAIN``.
CLASS_BALANCED, LESION_BALANCED = "ClassBalancedSampler", "LesionBalancedSampler"


def balanced_factors(
    name: str, dicts: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> torch.Tensor:
    """How often each slice comes in a pass: once in the largest group, in others more often, so
    that every group comes as often.

    Args:
        name: :data:`CLASS_BALANCED`, groups are the slices of a class; :data:`LESION_BALANCED`,
            those with and those without lesions.
        dicts: dataset dicts with ``label``, or with ``annotations``.
        classes: names of the slice classes.

    Returns:
        (n,) float, 1 or more.

    Raises:
        CTMaskNetError: one group has no slice, or a slice no label.
    """
    if name == CLASS_BALANCED:
        groups: list[Hashable] = [entry.get("label") for entry in dicts]
        expected: dict[Hashable, str] = {i: f"of class {word}" for i, word in enumerate(classes)}
        if None in groups:
            file = dicts[groups.index(None)]["file_name"]
            raise CTMaskNetError(
                f"DATALOADER.SAMPLER_TRAIN is {name!r}, but {file} has no class; set it to "
                "TrainingSampler, or prepare a set with classes"
            )
    else:
        groups = [bool(entry.get("annotations")) for entry in dicts]
        expected = {True: "with lesions", False: "without lesions"}
    counts = Counter(groups)
    for group, words in expected.items():
        if not counts[group]:
            raise CTMaskNetError(
                f"DATALOADER.SAMPLER_TRAIN is {name!r}, but the training sets hold no slice "
                f"{words} to balance; set it to TrainingSampler"
            )
    most = max(counts.values())
    told = ", ".join(f"{counts[group]} {words}" for group, words in expected.items())
    logging.getLogger(__name__).info("Drawn alike: slices %s", told)
    return torch.tensor([most / counts[group] for group in groups])
