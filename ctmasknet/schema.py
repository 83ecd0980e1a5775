"""What a JSON file that a tool reads back, or an entry of a checkpoint, has to hold, as a form.

A form is a function of a value and its key that returns the value as it is used. What means the
same is taken (a whole number for a number, 3.0 for a count); the rest is told in one line: file,
key, what was found, what is expected.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from ctmasknet.errors import CTMaskNetError

#: (value, its key such as ``levels.slices.n``) -> the value.
Form = Callable[[Any, str], Any]
#: Stands for a value that is missing.
_MISSING = object()


class UnlikeForm(ValueError):
    """A value of another form; the message says key, value and form."""

    def __init__(self, key: str, value: Any, expected: str):
        found = "missing" if value is _MISSING else _shown(value)
        super().__init__(f"{key or 'its content'} is {found}, where {expected} is expected")


def checked(path: str | os.PathLike, value: Any, form: Form, what: str, remedy: str) -> Any:
    """The content of a file, of the form it has to have.

    Args:
        path: the file, for messages.
        value: its content.
        form: of it.
        what: the file should be, such as "a run's record".
        remedy: what to do if it is of another.

    Raises:
        CTMaskNetError: it is of another; names file, key, what was found and what is expected.
    """
    try:
        return form(value, "")
    except UnlikeForm as error:
        raise CTMaskNetError(f"{os.fspath(path)}: not {what} ({error}); {remedy}") from None


def form(expected: str) -> Callable[[Callable[[Any], Any]], Form]:
    """Make a form of a function that returns the value, or raises TypeError or ValueError."""

    def of(read: Callable[[Any], Any]) -> Form:
        @functools.wraps(read)
        def checking(value: Any, key: str) -> Any:
            try:
                if value is not _MISSING:
                    return read(value)
            except (TypeError, ValueError, OverflowError):
                pass
            raise UnlikeForm(key, value, expected) from None

        return checking

    return of


def _expect(good: bool, value: Any) -> Any:
    if not good:
        raise ValueError
    return value


@form("a text")
def text(value: Any) -> str:
    return _expect(isinstance(value, str), value)


@form("a number")
def number(value: Any) -> float:
    found = float(_expect(type(value) in (int, float), value))
    return _expect(math.isfinite(found), found)


@form("a whole number from 0")
def whole_from_0(value: Any) -> int:
    found = int(_expect(type(value) in (int, float) and value == int(value), value))
    return _expect(0 <= found < 2**63, found)


@form("a whole number from 1")
def whole_from_1(value: Any) -> int:
    found = int(_expect(type(value) in (int, float) and value == int(value), value))
    return _expect(1 <= found < 2**63, found)


def index_below(count: int) -> Form:
    """A whole number from 0 to below ``count``."""

    @form(f"a whole number from 0 to {count - 1}")
    def read(value: Any) -> int:
        return _expect(type(value) is int and 0 <= value < count, value)

    return read


def within(low: float, high: float) -> Form:
    """A number from ``low`` to ``high``."""

    @form(f"a number within {low:g}..{high:g}")
    def read(value: Any) -> float:
        found = float(_expect(type(value) in (int, float), value))
        return _expect(low <= found <= high, found)

    return read


def one_of(*words: Any) -> Form:
    """One of these values."""
    listed = " or ".join(_shown(word) for word in words)
    return form(listed)(lambda value: words[words.index(value)])


def anything(value: Any, key: str) -> Any:
    """Any value; of a record, one that has to be there."""
    if value is _MISSING:
        raise UnlikeForm(key, value, "a value")
    return value


def maybe(of: Form) -> Form:
    """This form, or null, or missing."""
    return lambda value, key: None if value is None or value is _MISSING else of(value, key)


def listing(of: Form, length: int | None = None) -> Form:
    """A list of values of a form, ``length`` of them if that is given."""
    expected = "a list" if length is None else f"a list of {length}"

    def checking(value: Any, key: str) -> list[Any]:
        if not isinstance(value, list) or length not in (None, len(value)):
            raise UnlikeForm(key, value, expected)
        return [of(item, f"{key}[{index}]") for index, item in enumerate(value)]

    return checking


def names_of(of: Form) -> Form:
    """An object with values of one form under any names."""

    def checking(value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise UnlikeForm(key, value, "an object")
        return {name: of(item, _inner(key, name)) for name, item in value.items()}

    return checking


def record(forms: Mapping[str, Form], optional: Mapping[str, Form] | None = None) -> Form:
    """An object with a form for each of these names, and for each optional one that it has; others
    in it are passed over unchanged."""
    optional = optional or {}

    def checking(value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise UnlikeForm(key, value, "an object")
        found = {
            name: of(value.get(name, _MISSING), _inner(key, name)) for name, of in forms.items()
        }
        found |= {
            name: of(value[name], _inner(key, name))
            for name, of in optional.items()
            if name in value
        }
        return value | found

    return checking


def _inner(key: str, name: str) -> str:
    name = name if len(name) <= 40 else f"{name[:37]}..."
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    """A value from outside, short."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else f"{value[:57]}...")
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of many digits"
    return str(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
