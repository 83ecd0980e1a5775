"""A small pooling learned on validation patients: logistic regression on a patient's slice logits.

Shapes: n slices of one scan or patient, C classes, F features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.pooling import TOP_K, PooledPrediction, group_slices, pool_slices
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.files import read_json
from ctmasknet.schema import UnlikeForm, whole_from_1

_FORMAT = "ctmasknet learned pooling 1"
_STATISTICS = ("mean", "max", "top_k_mean", "quantile_10", "quantile_50", "quantile_90")
_QUANTILES = (0.1, 0.5, 0.9)
# Inverse strength of the L2 penalty on standardised features: candidates, and the choice where
# there are too few patients to choose by cross-validation.
_INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
_CAUTIOUS_PENALTY = 0.1
_FOLDS = 5


@dataclass(frozen=True)
class LearnedPooling:
    """Logistic regression on :func:`group_features`; call it as any pooling.

    Attributes:
        class_names: C names in the order of logits and scores.
        top_k: slices of the feature ``top_k_mean``.
        mean: (F,) subtracted from the features.
        scale: (F,) that divides them afterwards.
        coefficients: (C, F).
        intercepts: (C,).
        fit: how it was fitted (``seed``, ``inverse_penalty``, ``patients`` a class, ...).
    """

    class_names: tuple[str, ...]
    top_k: int
    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray
    fit: Mapping[str, Any]

    name = "learned"

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """(n, C) logits to (C,) scores that sum to 1."""
        features = (group_features(logits, self.top_k) - self.mean) / self.scale
        return softmax(self.coefficients @ features + self.intercepts)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers under names; :func:`learned_pooling_from_json` reads them back."""
        return {
            "format": _FORMAT,
            "class_names": list(self.class_names),
            "top_k": self.top_k,
            "features": feature_names(self.class_names),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "coefficients": self.coefficients.tolist(),
            "intercepts": self.intercepts.tolist(),
            "fit": dict(self.fit),
        }


def feature_names(class_names: Sequence[str]) -> list[str]:
    """Names of the F = 6 C features, ``<statistic>-<class>``."""
    return [f"{statistic}-{name}" for statistic in _STATISTICS for name in class_names]


def group_features(logits: np.ndarray, top_k: int = TOP_K) -> np.ndarray:
    """Describe the slices of one scan or patient, whatever their number and order.

    Args:
        logits: (n, C), n >= 1.
        top_k: slices of ``top_k_mean``; all where there are fewer.

    Returns:
        (6 C,): mean, max, mean of the top k, and 10 %, 50 %, 90 % quantiles of each class' logit.
    """
    logits = np.asarray(logits, dtype=np.float64)
    top = np.sort(logits, axis=0)[-min(top_k, len(logits)) :]
    quantiles = np.quantile(logits, _QUANTILES, axis=0)
    return np.concatenate([logits.mean(axis=0), top[-1], top.mean(axis=0), *quantiles])


def fit_learned_pooling(
    rows: Sequence[SlicePrediction],
    class_names: Sequence[str],
    *,
    top_k: int = TOP_K,
    seed: int = 0,
) -> LearnedPooling:
    """Fit on the patients of validation predictions, one example a patient.

    The L2 penalty is the best of five by log loss in 5-fold cross-validation over patients (fewer
    folds where a class has fewer patients; a cautious fixed one where a class has a single
    patient). The result serves scans as well.

    Args:
        rows: validation predictions.
        class_names: C names in the order of the logits.
        top_k: slices of the feature ``top_k_mean``.
        seed: of the folds.

    Raises:
        CTMaskNetError: a class has no patient with that one label.
    """
    # Slow to import, and only needed for fitting
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    groups = _patients_of_one_label(rows)
    features = [group_features([row.logits for row in group], top_k) for group, _ in groups]
    labels = [label for _, label in groups]
    counts = np.bincount(np.array(labels, dtype=np.int64), minlength=len(class_names))
    if not counts.all():
        raise CTMaskNetError(
            f"learned pooling: validation has no patient of class "
            f"{class_names[int(np.argmin(counts))]}; give validation predictions with patients of "
            "every class, or choose another pooling"
        )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=_CAUTIOUS_PENALTY, max_iter=10_000)
    )
    folds = min(_FOLDS, int(counts.min()))
    if folds >= 2:
        search = GridSearchCV(
            model,
            {"logisticregression__C": _INVERSE_PENALTIES},
            scoring="neg_log_loss",
            cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        )
        model = search.fit(features, labels).best_estimator_
    else:
        model.fit(features, labels)
    scaler, regression = model[0], model[-1]
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(class_names) == 2:
        # One row for the second class; the first gets zeros, which softmax turns into the same
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    return LearnedPooling(
        class_names=tuple(class_names),
        top_k=top_k,
        mean=scaler.mean_,
        scale=scaler.scale_,
        coefficients=coefficients,
        intercepts=intercepts,
        fit={
            "seed": seed,
            "folds": folds if folds >= 2 else 0,
            "inverse_penalty": float(regression.C),
            "patients": {name: int(n) for name, n in zip(class_names, counts, strict=True)},
        },
    )


def pool_out_of_fold(
    rows: Sequence[SlicePrediction],
    class_names: Sequence[str],
    level: str,
    *,
    top_k: int = TOP_K,
    seed: int = 0,
    fit: Callable[[Sequence[SlicePrediction]], Callable[[np.ndarray], np.ndarray]] | None = None,
) -> list[PooledPrediction]:
    """Pool validation slices by learned poolings that have not seen their patient.

    A pooling fitted on the very patients it pools looks better than it is; thresholds and
    temperatures for it are to be chosen on these. Each fifth of the patients (fewer parts where a
    class has fewer patients) is pooled by a fit on the others.

    Args:
        rows: validation predictions; only patients of one label are pooled.
        class_names: C names in the order of the logits.
        level: ``"scans"`` or ``"patients"``.
        top_k: see :func:`fit_learned_pooling`.
        seed: of the folds.
        fit: makes a pooling of rows; default :func:`fit_learned_pooling`.

    Raises:
        CTMaskNetError: a class has fewer than two patients.
    """
    from sklearn.model_selection import StratifiedKFold

    groups = _patients_of_one_label(rows)
    labels = np.array([label for _, label in groups], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() < 2:
        raise CTMaskNetError(
            f"learned pooling: validation has {counts.min()} patients of class "
            f"{class_names[int(np.argmin(counts))]}, too few to try it on unseen ones; give more, "
            "or choose another pooling"
        )
    folds = StratifiedKFold(min(_FOLDS, int(counts.min())), shuffle=True, random_state=seed)
    pooled = []
    for kept, held_out in folds.split(labels, labels):
        seen = [row for index in kept for row in groups[index][0]]
        if fit is not None:
            fitted = fit(seen)
        else:
            fitted = fit_learned_pooling(seen, class_names, top_k=top_k, seed=seed)
        unseen = [row for index in held_out for row in groups[index][0]]
        pooled += pool_slices(unseen, level, fitted)
    return pooled


def load_learned_pooling(path: str | os.PathLike, class_names: Sequence[str]) -> LearnedPooling:
    """Read :meth:`LearnedPooling.to_json` from a file.

    Raises:
        CTMaskNetError: the file is missing, no such file, or of other classes.
    """
    document = read_fitted_pooling(path, "a learned pooling")
    return learned_pooling_from_json(document, class_names, source=str(path))


def read_fitted_pooling(path: str | os.PathLike, what: str) -> Any:
    """The content of the file of a fitted pooling.

    Raises:
        CTMaskNetError: it is missing or no JSON.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(
            f"{path}: cannot read {what} ({error}); tools/evaluate_predictions.py writes one from "
            "validation predictions"
        ) from error


def check_fitted_pooling(
    document: Any, known: str, class_names: Sequence[str], source: str
) -> None:
    """Raise :class:`CTMaskNetError` unless a fitted pooling has the format ``known`` and these
    classes."""
    if not isinstance(document, dict) or document.get("format") != known:
        raise CTMaskNetError(f"{source}: not a {known!r} file; fit the pooling anew")
    if document.get("class_names") != list(class_names):
        raise CTMaskNetError(
            f"{source}: fitted for the classes {document.get('class_names')} but the predictions "
            f"have {list(class_names)}; fit it on validation predictions of this model"
        )


def learned_pooling_from_json(
    document: Any, class_names: Sequence[str], *, source: str = "learned pooling"
) -> LearnedPooling:
    """The pooling that :meth:`LearnedPooling.to_json` described.

    Raises:
        CTMaskNetError: not such a document, or of other classes than ``class_names``.
    """
    check_fitted_pooling(document, _FORMAT, class_names, source)
    classes, features = len(class_names), len(feature_names(class_names))
    shapes = {
        "mean": (features,),
        "scale": (features,),
        "coefficients": (classes, features),
        "intercepts": (classes,),
    }
    arrays = {}
    for key, shape in shapes.items():
        try:
            arrays[key] = np.array(document[key], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise CTMaskNetError(
                f"{source}: {key} is no list of numbers ({error}); fit the pooling anew"
            ) from error
        if arrays[key].shape != shape or not np.isfinite(arrays[key]).all():
            raise CTMaskNetError(
                f"{source}: {key} has the shape {arrays[key].shape} instead of {shape}, or holds "
                "what is no number; fit the pooling anew"
            )
    try:
        top_k = whole_from_1(document.get("top_k"), "top_k")
    except UnlikeForm:
        top_k = None
    if document.get("features") != feature_names(class_names) or top_k is None:
        raise CTMaskNetError(f"{source}: made of other features; fit the pooling anew")
    return LearnedPooling(tuple(class_names), top_k, fit=document.get("fit", {}), **arrays)


def _patients_of_one_label(
    rows: Sequence[SlicePrediction],
) -> list[tuple[list[SlicePrediction], int]]:
    """Slices and label of every patient whose labelled slices agree."""
    found = []
    for group in group_slices(rows, "patients").values():
        labels = {row.label for row in group} - {None}
        if len(labels) == 1:
            found.append((group, labels.pop()))
    return found
