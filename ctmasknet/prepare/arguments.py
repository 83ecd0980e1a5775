"""Values of the preparation tools' command lines, read."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ctmasknet.classes import MASK_LABELS
from ctmasknet.data.bad_slices import BadSlices
from ctmasknet.data.label_masks import LABEL_NAMES, label_values, parse_labels
from ctmasknet.data.splits import split_named
from ctmasknet.errors import CTMaskNetError, OptionsFormatter
from ctmasknet.prepare.masks.colours import read_colors
from ctmasknet.prepare.masks.instances import read_instance_table
from ctmasknet.prepare.pairs.by_class import parse_mask_classes
from ctmasknet.prepare.pairs.stated import Pairing, read_pairing

#: Other words for columns of a list.
_COLUMNS = {"file": "path", "label": "class"}


def show_warnings() -> None:
    """Let what is logged as a warning be a line on the terminal that says so."""
    handler = logging.StreamHandler()
    handler.setFormatter(OptionsFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def bad_slices_from(args: argparse.Namespace) -> BadSlices:
    """The arguments as :class:`~ctmasknet.data.bad_slices.BadSlices`."""
    return BadSlices(
        {},
        mode=args.bad,
        max_share=args.max_bad_share,
        keys=("`bad`", "`max_bad_share`"),
        unit="files",
    )


def parse_assignments(values: Sequence[str], argument: str) -> dict[str, str]:
    """``["train=a.txt", "val=b.txt"]`` -> ``{"train": "a.txt", "val": "b.txt"}``, order kept.

    Raises:
        CTMaskNetError: a value without ``=`` or a name given twice; it names ``argument``.
    """
    assigned: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise CTMaskNetError(f"`{argument}` {value}: expected NAME=VALUE")
        if key in assigned:
            raise CTMaskNetError(f"`{argument}` {value}: {key} is given twice")
        assigned[key] = text
    return assigned


def parse_split_files(values: Sequence[str], argument: str) -> dict[str, str]:
    """As :func:`parse_assignments`, of splits, which may go by another name such as ``valid``."""
    found: dict[str, str] = {}
    for name, file in parse_assignments(values, argument).items():
        if (split := split_named(name)) in found:
            raise CTMaskNetError(f"`{argument}` {name}={file}: {split} is given twice")
        found[split] = file
    return found


def parse_columns(text: str | None) -> dict[str, str]:
    """``"path=file name,class=finding"`` -> ``{"path": "file name", "class": "finding"}``; ``file``
    and ``label`` are other words for path and class.

    Raises:
        CTMaskNetError: another form, a column named twice.
    """
    if text is None:
        return {}
    given = [part.strip() for part in text.split(",")]
    stated = parse_assignments(given, "columns")
    found = {_COLUMNS.get(name, name): column.strip() for name, column in stated.items()}
    if len(found) < len(stated) or not all(found.values()):
        raise CTMaskNetError(f"`columns` {text}: expected OURS=THEIRS, each once")
    return found


def parse_class_folders(values: Sequence[str]) -> dict[str, list[str]]:
    """``["normal=ct0", "covid=ct1,ct2"]`` -> ``{"normal": ["ct0"], "covid": ["ct1", "ct2"]}``."""
    assigned = parse_assignments(values, "class_folder")
    return {name: [part for part in text.split(",") if part] for name, text in assigned.items()}


def parse_samples(values: Sequence[str]) -> dict[str, int]:
    """``["train=1000"]`` -> ``{"train": 1000}``.

    Raises:
        CTMaskNetError: not a positive whole number.
    """
    counts = {}
    for name, text in parse_assignments(values, "sample").items():
        if not text.isdecimal() or int(text) < 1:
            raise CTMaskNetError(f"`sample` {name}={text}: expected a whole number of at least 1")
        counts[name] = int(text)
    return counts


def parse_grey_window(text: str) -> tuple[int, int]:
    """``"20,110"`` -> ``(20, 110)``, 8-bit grey levels.

    Raises:
        CTMaskNetError: another form, or not 0 <= LOW < HIGH <= 255.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise CTMaskNetError(f"`grey_window` {text}: expected LOW,HIGH, two 8-bit grey levels")
    low, high = map(int, parts)
    if not low < high <= 255:
        raise CTMaskNetError(f"`grey_window` {text}: expected 0 <= LOW < HIGH <= 255")
    return low, high


def mask_options(
    args: argparse.Namespace, columns: Mapping[str, str]
) -> tuple[dict[int, str], Pairing, dict[str, Any]]:
    """What the arguments say of masks: the labels, the pairing, and the further fields of a
    :class:`~ctmasknet.prepare.masks_to_coco.Conversion`. ``columns``: of a table of pairs, those
    that it calls otherwise.

    Raises:
        CTMaskNetError: two arguments that say what masks hold, or one that cannot be read.
    """
    names = ("labels", "mask_classes", "colors", "instances")
    given = [name for name in names if getattr(args, name) is not None]
    if len(given) > 1:
        raise CTMaskNetError(
            f"`{given[0]}` and `{given[1]}`: both say what masks hold; give one of them"
        )
    words = parse_mask_classes(args.mask_classes)
    pairing = read_pairing(args.pairs, args.unlabelled, words, columns)
    if args.colors is not None:
        colors = read_colors(args.colors)
        return label_values(colors.values()), pairing, {"colors": colors}
    if args.instances is not None:
        table = read_instance_table(args.instances)
        return label_values(table.names), pairing, {"instances": table}
    if words:
        return label_values(words), pairing, {}
    labels = dict(MASK_LABELS) if args.labels is None else parse_labels(args.labels)
    return labels, pairing, {}


def parse_segments(values: Sequence[str]) -> dict[str, str]:
    """``["Infiltrate=lesion"]`` -> ``{"Infiltrate": "lesion"}``.

    Raises:
        CTMaskNetError: another form, or a label not in :data:`LABEL_NAMES`.
    """
    segments = {}
    for value in values:
        name, _, label = value.rpartition("=")
        if not name or label not in LABEL_NAMES:
            raise CTMaskNetError(
                f"`segment` {value}: expected NAME=LABEL with a label of {', '.join(LABEL_NAMES)}"
            )
        segments[name] = label
    return segments
