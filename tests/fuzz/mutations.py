"""Damage that knows the form of a file: a tree of values, the cells of a table, the bytes."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import random
from collections.abc import Mapping
from typing import Any

import torch

from tests.helpers.ct_damage import MUTATIONS

_ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 2**31, 2**63, 10**30, -(2**31), 0.5, -0.0, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "1",
        "nan",
        "x" * 5000,
        "a\nb",
        "a\rb",
        "\x1b[31m",
        "\0",
    ),
    *(
        "\0",
        "../../etc/passwd",
        "/etc/passwd",
        "=1+1",
        "é",
        "\ud800",
        [],
        {},
        [[]],
        [None],
        {"": 0},
    ),
    *([1e9] * 6, [0, 0, 2**31, 2**31, 5, 5], {"size": [9, 9], "counts": [0, 2**40]}),
)
_TENSORS = (
    lambda t: torch.full_like(t, float("nan")),
    lambda t: t.to(torch.complex64),
    lambda t: t.round().to(torch.int64),
    lambda t: t.to(torch.float16),
    lambda t: t[:0] if t.ndim else t.reshape(1),
    lambda t: t.reshape(-1),
    lambda t: -t,
    lambda t: t.new_zeros(()).expand(t.shape),
    lambda t: t.to_sparse(),
    lambda t: t * 1e38,
)


def _odd(rng: random.Random) -> Any:
    if rng.random() < 0.03:
        deep: Any = 0
        for _ in range(rng.choice((50, 400))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return copy.deepcopy(rng.choice(_ODD))


def tree(value: Any, rng: random.Random, most: int = 3) -> Any:
    """A copy of nested dictionaries, lists, tensors and plain values, changed in 1 to ``most``
    places: a value replaced, dropped, doubled, moved under another key, or of another type."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        value = _one(value, rng)
    return value


def _one(value: Any, rng: random.Random) -> Any:
    if isinstance(value, torch.Tensor):
        change = rng.choice(_TENSORS) if value.is_floating_point() else torch.neg
        return change(value) if rng.random() < 0.8 else _odd(rng)
    inner = isinstance(value, Mapping | list) and len(value)
    if not inner or rng.random() < 0.06:
        return _odd(rng)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        way = rng.random()
        if way < 0.1:
            del value[place]
        elif way < 0.2:
            value.insert(place, copy.deepcopy(value[rng.randrange(len(value))]))
        else:
            value[place] = _one(value[place], rng)
        return value
    key = rng.choice(list(value))
    way = rng.random()
    if way < 0.1:
        value.pop(key)
    elif way < 0.15:
        value[rng.choice(("", "x", 1, key * 2 if isinstance(key, str) else "k"))] = value.pop(key)
    elif way < 0.2:
        value[key] = copy.deepcopy(value[rng.choice(list(value))])
    else:
        value[key] = _one(value[key], rng)
    return value


def table(text: str, rng: random.Random) -> str:
    """A CSV file with cells, lines and columns changed."""
    rows = list(csv.reader(io.StringIO(text)))
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        way = rng.random()
        if way < 0.1:
            rows.append(list(row))
        elif way < 0.2 and len(rows) > 1:
            rows.remove(row)
        elif way < 0.3 and row:
            del row[rng.randrange(len(row))]
        elif way < 0.35:
            row.append("x")
        elif row:
            row[rng.randrange(len(row))] = str(_odd(rng))
    stream = io.StringIO()
    csv.writer(stream, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))).writerows(rows)
    return stream.getvalue()


def raw(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, cut, moved, overwritten; inside a gzip file half of the time."""
    inside = data[:2] == b"\x1f\x8b" and rng.random() < 0.5
    changed = bytearray(gzip.decompress(data) if inside else data)
    for mutate in rng.choices(MUTATIONS, k=rng.choice((1, 1, 2))):
        changed = mutate(changed, rng) if changed else changed
    return gzip.compress(bytes(changed)) if inside else bytes(changed)
