"""The forms of the JSON files of a run that tables are made of: its record, its figures."""

from __future__ import annotations

from typing import Any

from ctmasknet.schema import (
    UnlikeForm,
    anything,
    form,
    listing,
    maybe,
    names_of,
    number,
    one_of,
    record,
    text,
    whole_from_0,
)


@form("a whole number")
def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError
    return value


_SETS = listing(
    record(
        {"name": text, "images": whole_from_0, "phantoms": one_of(False, True)},
        {"fingerprint": maybe(text)},
    )
)
_COMMON = {"status": text, "config_file": text, "command": text, "weights": text}
_HARDWARE = record({"cpu": text, "cores": whole_from_0, "gpu": maybe(text), "num_gpus": _whole})
_OPTIONAL = {"seconds": number, "weights_run": maybe(text), "run": maybe(text)}
_OPTIONAL |= {"train_patients": whole_from_0}


def _entry(kind: str, *splits: str) -> Any:
    sets = record(dict.fromkeys(splits, _SETS))
    forms = {"kind": one_of(kind), **_COMMON, "datasets": sets, "hardware": _HARDWARE}
    if kind == "training":
        forms |= {"seed": _whole, "max_iter": whole_from_0, "iterations": maybe(whole_from_0)}
    return record(forms, _OPTIONAL)


_KINDS = {
    "training": _entry("training", "train", "val"),
    "evaluation": _entry("evaluation", "test"),
}


def entries_form(value: Any, key: str) -> list[dict[str, Any]]:
    """The form of the entries of a run's record, as :func:`ctmasknet.engine.record.recorded` writes
    trainings and evaluations."""
    return [
        _KINDS.get(entry["kind"], anything)(entry, f"{key}[{index}]")
        for index, entry in enumerate(value)
    ]


def counts_form(value: Any, key: str) -> dict[str, Any]:
    """The form of ``slices_metrics.json``."""
    found = record({"n": whole_from_0}, {"class_names": listing(text)})(value, key)
    classes = len(found.get("class_names", ()))
    matrix = listing(listing(whole_from_0, classes), classes)
    return record({"confusion_matrix": matrix} if classes else {})(found, key)


def dice_form(value: Any, key: str) -> dict[str, Any]:
    """The form of the entry ``dice`` of a detector's figures: three of each class."""
    found = names_of(maybe(number))(value, key)
    for name in (one.removeprefix("mean-") for one in found if one.startswith("mean-")):
        for kind in ("maximum", "at-0.5"):
            if f"{kind}-{name}" not in found:
                raise UnlikeForm(f"{key}.{kind}-{name}", None, "a number")
    return found
