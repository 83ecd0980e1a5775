"""What no network is needed for: classes of slices by their grey levels alone, or by the most
similar slice. A network that is no better says nothing of lungs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image
from scipy.special import expit

from ctmasknet.console.progress import tracked
from ctmasknet.ct.pictures import read_grey
from ctmasknet.data.registry import dataset_dicts, known_sets, register_prepared
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import SlicePrediction

_BINS = 64
_SIDE = 64


def grey_histogram(picture: np.ndarray) -> np.ndarray:
    """(H, W) uint8 to (64,) shares of its px."""
    counts = np.bincount(picture.ravel() // (256 // _BINS), minlength=_BINS)
    return counts / counts.sum()


def small_picture(picture: np.ndarray) -> np.ndarray:
    """(H, W) uint8 to (4096,): 64 px a side, of mean 0 and variance 1."""
    small = Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64).ravel()
    return (values - values.mean()) / max(float(values.std()), 1e-6)


def _by_histogram(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Logistic regression, standardized."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    logits = model.fit(known, labels).decision_function(asked)
    return np.stack([-logits, logits], axis=1) if logits.ndim == 1 else logits


def _by_neighbour(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The nearest slice of each class, by the root mean square difference."""
    from sklearn.metrics import pairwise_distances

    far = pairwise_distances(asked, known) / np.sqrt(known.shape[1])
    return -np.stack([far[:, labels == c].min(axis=1) for c in np.unique(labels)], axis=1)


#: By name: what is taken of a slice, and (n, F), (n,) labels, (m, F) -> (m, C) logits.
BASELINES: dict[str, tuple[Callable, Callable]] = {
    "grey_histogram": (grey_histogram, _by_histogram),
    "nearest_neighbour": (small_picture, _by_neighbour),
}


def predict_by_baseline(
    name: str, trained_on: Sequence[str], evaluated_on: str, root: str | os.PathLike
) -> tuple[list[SlicePrediction], list[str]]:
    """Predictions as an evaluation would write them, and the names of the classes.

    Args:
        name: of :data:`BASELINES`.
        trained_on, evaluated_on: sets of slices with classes.
        root: of the prepared sets.

    Raises:
        CTMaskNetError: no such set, sets of other classes, a class without a slice to learn from, a
            slice that cannot be read.
    """
    from detectron2.data import MetadataCatalog

    register_prepared(root)
    sets = [*trained_on, evaluated_on]
    for one in sets:
        if not known_sets([one]):
            raise CTMaskNetError(f"{one}: no such set of slices below {root}; prepare it first")
    of_slice, predicted = BASELINES[name]
    known = [entry for one in trained_on for entry in dataset_dicts(one)]
    asked = dataset_dicts(evaluated_on)
    classes = {tuple(MetadataCatalog.get(one).get("image_classes") or ()) for one in sets}
    if len(classes) > 1:
        raise CTMaskNetError(f"{', '.join(sets)}: are of other classes; prepare them alike")
    names = list(classes.pop())
    labels = np.array([entry["label"] for entry in known])
    if lacking := [names[c] for c in range(len(names)) if c not in labels]:
        raise CTMaskNetError(f"{', '.join(trained_on)}: has no slice of {lacking[0]}")
    logits = predicted(_read(known, of_slice), labels, _read(asked, of_slice))
    rows = [
        SlicePrediction(
            file=entry["file_name"],
            patient=str(entry.get("patient") or ""),
            scan=str(entry.get("scan") or ""),
            label=entry["label"],
            pred=int(own.argmax()),
            logits=tuple(map(float, own)),
            scores=tuple(map(float, expit(own))),
        )
        for entry, own in zip(asked, logits, strict=True)
    ]
    return rows, names


def _read(entries: Iterable[dict], of_slice: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    told = tracked(list(entries), "slices")
    return np.stack([of_slice(read_grey(entry["file_name"])) for entry in told])
