"""A detector with a NaN is an error that names the slice.

Detectron2 drops boxes and scores that are no finite numbers, so that a diverged detector finds
nothing. Here nothing is found only where scores are finite and low.

Shapes: B images a batch, R boxes of all images, R_i of one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctmasknet.errors import CTMaskNetError


class NotFiniteError(CTMaskNetError):
    """A part of a model gave a NaN or an infinity for one image of its batch."""

    def __init__(self, part: str, index: int, name: str | None = None):
        """
        Args:
            part: of the model, such as ``box head``.
            index: of the image in its batch.
            name: the slice's, where it is known.
        """
        self.part, self.index = part, index
        where = name or f"slice {index} of its batch"
        #: What is wrong, without what to do.
        self.problem = f"{where}: the model's {part} gives numbers that are not finite"
        super().__init__(
            f"{self.problem}; its weights have diverged, take an earlier checkpoint, or train anew "
            "with a lower SOLVER.BASE_LR"
        )


def check_images(part: str, values: Sequence[Tensor]) -> None:
    """Raise :class:`NotFiniteError` unless all values (B, ...) are finite."""
    with torch.no_grad():
        # A sum is finite where all its parts are, and one number an image to look at.
        finite = sum(value.flatten(1).sum(1, dtype=torch.float32) for value in values).isfinite()
        if not finite.all():
            raise NotFiniteError(part, int(finite.logical_not().nonzero()[0]))


def check_boxes(part: str, values: Sequence[Tensor], counts: Sequence[int]) -> None:
    """Raise :class:`NotFiniteError` unless all values (R, ...) are finite; ``counts`` are the R_i
    of the B images."""
    with torch.no_grad():
        if sum(value.sum(dtype=torch.float32) for value in values).isfinite():
            return
        for value in values:
            for index, image in enumerate(value.split(list(counts))):
                if not image.isfinite().all():
                    raise NotFiniteError(part, index)


@contextlib.contextmanager
def slices_named(batch: Callable[[], Sequence[Mapping[str, Any]]]) -> Iterator[None]:
    """Within it, :class:`NotFiniteError` names the slice; ``batch`` gives the model's inputs."""
    try:
        yield
    except NotFiniteError as error:
        name = batch()[error.index].get("file_name")
        raise NotFiniteError(error.part, error.index, name) from None


class NamingSlices(nn.Module):
    """A model whose :class:`NotFiniteError` names the slice."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        with slices_named(lambda: batched_inputs):
            return self.model(batched_inputs)
