"""The forms of the JSON files that a report is made of: ``report.json``, ``burden.json``,
``bad_slices.json``, ``comparison.json``."""

from __future__ import annotations

from collections.abc import Sequence

from ctmasknet.evaluation.comparison import COMPARISON_FORMAT, SHOWN_METRICS
from ctmasknet.evaluation.lesions.burden import ANY
from ctmasknet.evaluation.lesions.burden_files import BURDEN_FORMAT
from ctmasknet.evaluation.pooling import POOLED_LEVELS
from ctmasknet.evaluation.report import REPORT_FORMAT
from ctmasknet.evaluation.validation_fit import POOLINGS
from ctmasknet.schema import (
    Form,
    UnlikeForm,
    anything,
    listing,
    maybe,
    names_of,
    number,
    one_of,
    record,
    text,
    whole_from_0,
    whole_from_1,
    within,
)

#: 0..1, and of whole shares in percent what rounding makes of 100.
_SHARE, _PERCENT = within(0, 1), within(0, 100.001)
_INTERVAL = record({"value": maybe(number), "low": maybe(number), "high": maybe(number)})
_BINS = listing(record({"n": whole_from_0, "confidence": _SHARE, "share": _SHARE}))
_HEADLINES = ("accuracy", "sensitivity-macro", "auroc-macro", "ece")
_POINT_METRICS = ("sensitivity", "specificity", "precision", "npv")
#: Which predictions a ``report.json`` is of; the rest depends on their classes.
EVALUATION_HEAD = record({"format": one_of(REPORT_FORMAT), "class_names": listing(text)})
BAD_SLICES_FORM = record({"sets": names_of(record({"bad": whole_from_0, "total": whole_from_0}))})


def evaluation_form(class_names: Sequence[str]) -> Form:
    """The form of ``report.json`` beside its head, see
    :func:`ctmasknet.evaluation.report.classification_report`.

    Args:
        class_names: C names of the predictions it has to be of.
    """
    slices = _level(class_names, ("no_label", "no_patient"))
    pooled = {level: maybe(_level(class_names, ())) for level in POOLED_LEVELS}
    figures = record(dict.fromkeys(_HEADLINES, _INTERVAL))
    return record(
        {
            "settings": record(
                {
                    "pooling": text,
                    "top_k": whole_from_0,
                    "normal_class": maybe(text),
                    "n_boot": whole_from_0,
                    "seed": whole_from_0,
                    "confidence": _SHARE,
                    "interval": text,
                    "stated_sensitivity": maybe(_SHARE),
                    "validation": maybe(names_of(whole_from_0)),
                }
            ),
            "levels": _same_metrics(record({"slices": slices, **pooled})),
            "poolings": names_of(names_of(figures)),
            # Reports of an earlier version have none
            "subgroups": maybe(_subgroups(class_names)),
        }
    )


def _subgroups(class_names: Sequence[str]) -> Form:
    shown = ("accuracy", *(f"sensitivity-{name}" for name in class_names), "auroc-macro")
    level = record(
        {
            "n": whole_from_0,
            "n_patients": whole_from_0,
            "metrics": record(dict.fromkeys(shown, _INTERVAL)),
        }
    )
    group = record({"small": one_of(False, True), "levels": names_of(maybe(level))})
    return record({"small_below": whole_from_0, "columns": names_of(names_of(group))})


_TEST = record({"p_value": maybe(_SHARE), "p_holm": maybe(_SHARE)})


def comparison_form(value, key):
    """The form of ``comparison.json``, see
    :func:`ctmasknet.evaluation.comparison.compare_systems`."""
    head = record(
        {
            "format": one_of(COMPARISON_FORMAT),
            "class_names": listing(text),
            "settings": record(
                {"n_boot": whole_from_0, "seed": whole_from_0, "confidence": _SHARE}
            ),
            "levels": names_of(record({"n": whole_from_0, "n_patients": whole_from_0})),
        }
    )(value, key)
    for level in head["levels"]:
        one_of("slices", *POOLED_LEVELS)(level, "levels")
    metrics = record(dict.fromkeys(SHOWN_METRICS, _INTERVAL))
    pair = record(
        {
            "differences": metrics,
            "mcnemar": _TEST,
            "delong": record(dict.fromkeys(head["class_names"], maybe(_TEST))),
        }
    )

    def of_levels(of):
        return record(dict.fromkeys(head["levels"], of))

    costs = record({"parameters": whole_from_0, "multiply_adds": number, "seconds": number})
    systems = listing(record({"name": text, "levels": of_levels(metrics), "costs": maybe(costs)}))
    pairs = listing(record({"first": text, "second": text, "levels": of_levels(pair)}))
    return record({"systems": systems, "pairs": pairs})(head, key)


def _same_metrics(levels: Form) -> Form:
    """Levels of which each has every metric of the slices."""

    def checking(value, key):
        found = levels(value, key)
        forms = record(dict.fromkeys(found["slices"]["metrics"], _INTERVAL))
        for level in POOLED_LEVELS:
            if found[level]:
                forms(found[level]["metrics"], f"{key}.{level}.metrics")
        return found

    return checking


def _level(class_names: Sequence[str], left_out: Sequence[str]) -> Form:
    classes = len(class_names)
    metrics = (*_HEADLINES, "loss")
    of_classes = ("auroc", "average_precision")
    named = [f"{metric}-{name}" for metric in of_classes for name in class_names]
    point = record({"threshold": _SHARE, "test": record(dict.fromkeys(_POINT_METRICS, _INTERVAL))})
    curve = record(
        {
            "roc": _axes("false_positive_rate", "true_positive_rate"),
            "precision_recall": _axes("recall", "precision"),
        }
    )
    reliability = record({"top_label": _BINS})
    calibrated = {
        "temperature": record({"value": number}),
        "metrics": record({"ece": _INTERVAL}),
        "reliability": reliability,
    }

    def checking(value, key):
        found = record(
            {
                "n": whole_from_1,
                "n_per_class": record(dict.fromkeys(class_names, whole_from_0)),
                "n_patients": whole_from_0,
                "left_out": _both(
                    names_of(whole_from_0), record(dict.fromkeys(left_out, whole_from_0))
                ),
                "confusion_matrix": listing(listing(whole_from_0, classes), classes),
                "metrics": _both(
                    names_of(_INTERVAL), record(dict.fromkeys((*metrics, *named), _INTERVAL))
                ),
                "curves": record(dict.fromkeys(class_names, maybe(curve))),
                "reliability": reliability,
                "calibrated": maybe(record(calibrated)),
                # Reports that lack it may hold scores at a temperature that is no fair fit
                "why_not_calibrated": _text_or_null,
                "operating_points": maybe(names_of(point)),
            }
        )(value, key)
        return found | {"why_not_calibrated": found["why_not_calibrated"] or ""}

    return checking


def _text_or_null(value, key):
    return maybe(text)(anything(value, key), key)


def _axes(*names: str) -> Form:
    """Points of a curve, as many along each axis."""

    def checking(value, key):
        found = record(dict.fromkeys(names, listing(_SHARE)))(value, key)
        if len({len(found[name]) for name in names}) > 1:
            raise UnlikeForm(key, value, "lists of one length")
        return found

    return checking


def _both(first: Form, second: Form) -> Form:
    return lambda value, key: second(first(value, key), key)


def burden_form(value, key):
    """The form of ``burden.json``, see
    :func:`ctmasknet.evaluation.lesions.burden_files.measure_burden`."""
    head = {
        "format": one_of(BURDEN_FORMAT),
        "lesions": text,
        "of": text,
        "classes": listing(text),
        "outside_lung_px": whole_from_0,
        "cautions": maybe(listing(text)),
    }
    found = record(head)(value, key)
    names = (*found["classes"], ANY)
    item = record(
        {
            "patient": text,
            "scan": text,
            "file": text,
            "slices": whole_from_0,
            "weighted_by": text,
            "percent": record(dict.fromkeys(names, maybe(_PERCENT))),
            "ml": maybe(record(dict.fromkeys(names, number))),
        }
    )
    lists = record({"slices": listing(item), "scans": listing(item)})(found, key)
    return lists | {"cautions": found["cautions"] or []}


#: Of a scan and a slice in the ``predictions.jsonl`` of a lesion detector.
LESIONS_OF_SCAN = record(
    {
        **{"patient": maybe(text), "scan": maybe(text), "slices": whole_from_0},
        "slices_with": names_of(whole_from_0),
        **{"series": maybe(text), "counts": maybe(one_of(False, True))},
    }
)
LESIONS_OF_SLICE = record(
    {
        **{"file": text, "boxes": listing(record({"score": _SHARE})), "lesions": whole_from_0},
        **{"patient": maybe(text), "scan": maybe(text)},
    }
)


#: Of a scan whose study holds several.
SERIES_OF_STUDY = record(
    {
        **{"patient": maybe(text), "scan": maybe(text), "series": maybe(text)},
        **{"slices": whole_from_0, "pred": maybe(text), "reconstruction": text},
        "counts": one_of(False, True),
    }
)


def pooled_form(class_names: Sequence[str]) -> Form:
    """The form of a scan or a patient in ``predictions.jsonl``."""

    def pooling(value, key):
        name = text(value, key)
        # With what belongs to it, such as "top_k_mean (k = 5)"
        one_of(*POOLINGS)(name.split(" ")[0], key)
        return name

    return record(
        {
            "pooling": pooling,
            "patient": text,
            "scan": maybe(text),
            "pred": one_of(*class_names),
            "scores": record(dict.fromkeys(class_names, _SHARE)),
            "slices": whole_from_0,
        }
    )
