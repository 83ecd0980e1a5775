"""A scan head: attention over the slices of a scan, learned on validation patients.

Every class asks which slices tell of it (a small network on a slice's logits weighs them), and the
scan is named by the weighted means of their logits. Order and number of slices do not matter, and a
slice that is there twice weighs twice. It begins as the mean of the logits and is held near it by
weight decay, so that few patients change little.

Shapes: n slices of a scan or patient, C classes, H hidden numbers, P examples.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.learned_pooling import check_fitted_pooling, read_fitted_pooling
from ctmasknet.evaluation.pooling import group_slices
from ctmasknet.evaluation.predictions import SlicePrediction

_FORMAT = "ctmasknet attention pooling 1"
_HIDDEN, _STEPS, _RATE, _DECAY = 8, 300, 0.02, 0.01
#: Slices of an example that are looked at in fitting, at most, spread evenly over it.
_MOST_SLICES = 64


@dataclass(frozen=True)
class AttentionPooling:
    """Call it as any pooling.

    Attributes:
        class_names: C names in the order of logits and scores.
        weights: by name: ``mean`` and ``scale`` (C,) that standardise logits; ``hidden`` (H, C)
            and ``hidden_bias`` (H,); ``queries`` (C, H); ``out`` (C, C, C), class by query by
            logit, and ``out_bias`` (C,).
        fit: how it was fitted (``seed``, ``patients`` a class, ...).
    """

    class_names: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
    fit: Mapping[str, Any]

    name = "attention"

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """(n, C) logits to (C,) scores that sum to 1."""
        return softmax(_named(*self._given(logits))[0].numpy())

    def attention(self, logits: np.ndarray) -> np.ndarray:
        """(n, C) logits to (n, C) weights of the slices; those of a class sum to 1."""
        return _weights(*self._given(logits))[0].numpy()

    def _given(self, logits: np.ndarray) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        values = {key: torch.as_tensor(value) for key, value in self.weights.items()}
        slices = torch.tensor(np.ascontiguousarray(logits, dtype=np.float64))
        slices = (slices - values["mean"]) / values["scale"]
        return values, slices[None], torch.ones(1, len(slices), dtype=torch.bool)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers under names; :func:`attention_pooling_from_json` reads them back."""
        return {
            "format": _FORMAT,
            "class_names": list(self.class_names),
            "weights": {key: value.tolist() for key, value in self.weights.items()},
            "fit": dict(self.fit),
        }


def fit_attention_pooling(
    rows: Sequence[SlicePrediction], class_names: Sequence[str], *, seed: int = 0
) -> AttentionPooling:
    """Fit on the scans of validation predictions (patients, where slices tell no scan), one example
    each, all patients alike in weight.

    Args:
        rows: validation predictions.
        class_names: C names in the order of the logits.
        seed: of the weights that it begins with.

    Raises:
        CTMaskNetError: a class has no patient with that one label.
    """
    level = "scans" if group_slices(rows, "scans") else "patients"
    examples, labels, patients = [], [], []
    seen: list[set[str]] = [set() for _ in class_names]
    for (patient, *_), group in group_slices(rows, level).items():
        found = {row.label for row in group} - {None}
        if len(found) == 1:
            shown = np.linspace(0, len(group) - 1, min(len(group), _MOST_SLICES)).round()
            examples.append(np.array([group[int(index)].logits for index in shown], np.float64))
            labels.append(found.pop())
            patients.append(patient)
            seen[labels[-1]].add(patient)
    counts = np.array([len(its) for its in seen])
    if not counts.all():
        raise CTMaskNetError(
            f"attention pooling: validation has no patient of class "
            f"{class_names[int(np.argmin(counts))]}; give validation predictions with patients of "
            "every class, or choose another pooling"
        )
    every = np.concatenate(examples)
    mean, scale = every.mean(0), np.maximum(every.std(0), 1e-6)
    longest = max(map(len, examples))
    slices = torch.zeros(len(examples), longest, len(class_names), dtype=torch.float64)
    known = torch.zeros(len(examples), longest, dtype=torch.bool)
    for index, example in enumerate(examples):
        slices[index, : len(example)] = torch.as_tensor((example - mean) / scale)
        known[index, : len(example)] = True
    scans_of = Counter(patients)
    shares = torch.tensor([1 / scans_of[patient] for patient in patients], dtype=torch.float64)
    values = _first_weights(len(class_names), scale, mean, seed)
    usual = {key: value.detach().clone() for key, value in values.items()}
    optimizer = torch.optim.Adam(list(values.values()), lr=_RATE)
    target = torch.tensor(labels)
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            losses = F.cross_entropy(_named(values, slices, known), target, reduction="none")
            away = sum(((value - usual[key]) ** 2).sum() for key, value in values.items())
            loss = (losses * shares).sum() / shares.sum() + _DECAY * away
            loss.backward()
            optimizer.step()
    weights = {key: value.detach().numpy() for key, value in values.items()}
    return AttentionPooling(
        class_names=tuple(class_names),
        weights={"mean": mean, "scale": scale, **weights},
        fit={
            "seed": seed,
            "level": level,
            "patients": {name: int(n) for name, n in zip(class_names, counts, strict=True)},
        },
    )


def load_attention_pooling(path: str | os.PathLike, class_names: Sequence[str]) -> AttentionPooling:
    """Read :meth:`AttentionPooling.to_json` from a file.

    Raises:
        CTMaskNetError: the file is missing, no such file, or of other classes.
    """
    document = read_fitted_pooling(path, "an attention pooling")
    return attention_pooling_from_json(document, class_names, source=str(path))


def attention_pooling_from_json(
    document: Any, class_names: Sequence[str], *, source: str = "attention pooling"
) -> AttentionPooling:
    """The pooling that :meth:`AttentionPooling.to_json` described.

    Raises:
        CTMaskNetError: not such a document, or of other classes than ``class_names``.
    """
    check_fitted_pooling(document, _FORMAT, class_names, source)
    weights = {}
    for key, shape in _shapes(len(class_names)).items():
        try:
            weights[key] = np.array(document["weights"][key], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise CTMaskNetError(
                f"{source}: {key} is no list of numbers ({error}); fit the pooling anew"
            ) from error
        if weights[key].shape != shape or not np.isfinite(weights[key]).all():
            raise CTMaskNetError(
                f"{source}: {key} has the shape {weights[key].shape} instead of {shape}, or holds "
                "what is no number; fit the pooling anew"
            )
    return AttentionPooling(tuple(class_names), weights, document.get("fit", {}))


def _shapes(classes: int) -> dict[str, tuple[int, ...]]:
    return {
        **{"mean": (classes,), "scale": (classes,)},
        **{"hidden": (_HIDDEN, classes), "hidden_bias": (_HIDDEN,), "queries": (classes, _HIDDEN)},
        **{"out": (classes, classes, classes), "out_bias": (classes,)},
    }


def _first_weights(
    classes: int, scale: np.ndarray, mean: np.ndarray, seed: int
) -> dict[str, Tensor]:
    """Those that name a scan by the mean of its slices' logits, all slices alike."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.zeros(classes, classes, classes, dtype=torch.float64)
    for index in range(classes):
        out[index, index, index] = float(scale[index])
    values = {
        "hidden": torch.randn(_HIDDEN, classes, generator=generator, dtype=torch.float64),
        "hidden_bias": torch.zeros(_HIDDEN, dtype=torch.float64),
        "queries": torch.zeros(classes, _HIDDEN, dtype=torch.float64),
        "out": out,
        "out_bias": torch.as_tensor(mean, dtype=torch.float64).clone(),
    }
    return {key: value.requires_grad_() for key, value in values.items()}


def _weights(values: Mapping[str, Tensor], slices: Tensor, known: Tensor) -> Tensor:
    """(P, n, C) standardised logits and (P, n) which are slices -> (P, n, C) weights."""
    hidden = torch.tanh(slices @ values["hidden"].T + values["hidden_bias"])
    return (hidden @ values["queries"].T).masked_fill(~known[..., None], -torch.inf).softmax(1)


def _named(values: Mapping[str, Tensor], slices: Tensor, known: Tensor) -> Tensor:
    """-> (P, C) logits of the scans."""
    pooled = torch.einsum("pnq,pnc->pqc", _weights(values, slices, known), slices)
    return torch.einsum("pqc,kqc->pk", pooled, values["out"]) + values["out_bias"]
