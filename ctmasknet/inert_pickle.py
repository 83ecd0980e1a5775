"""Reads a pickle as data: nothing is imported, and nothing that the file names is called.

``pickletools.genops`` splits a pickle into its instructions; the small stack machine below carries
out those that build plain containers. Names, calls and references go to
:class:`ctmasknet.torch_objects.TorchObjects`, which knows the few that a checkpoint needs.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from ctmasknet.errors import CTMaskNetError
from ctmasknet.torch_objects import (
    AnchorData,
    StorageData,
    TorchObjects,
    checked_key,
    refusal,
    shown,
)

#: Bounds on one pickle. The largest published file, a ResNet-50 with the state of Adam, needs under
#: 1 MB and 50,000 instructions.
MAX_PICKLE_BYTES = 16 << 20
MAX_INSTRUCTIONS = 1_000_000
MAX_NESTING = 32
MAX_INTEGER_BITS = 128

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def parse(stream: BinaryIO, path: str, on_storage: Callable[[StorageData], None]) -> Any:
    """Read one pickle from ``stream`` and leave the stream just behind it.

    Args:
        stream: seekable binary file at the start of a pickle.
        path: the file's name for messages.
        on_storage: called for each storage referred to; raises when the file cannot hold it.

    Returns:
        None, bool, int, float, str, tuple, list and dict (also for OrderedDict; sets become lists),
        and the records of :mod:`ctmasknet.torch_objects`.

    Raises:
        CTMaskNetError: the pickle names something that is not allowed, is broken, or passes one of
            the bounds above.
    """
    start = stream.tell()
    window = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    machine = _Machine(path, TorchObjects(path, on_storage))
    try:
        value = machine.run(window)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        # pickletools and the machine's own checks signal a malformed pickle by any of these.
        raise CTMaskNetError(
            f"{path}: not a whole torch checkpoint: its pickle breaks off or is malformed near "
            f"byte {start + window.tell()} ({shown(error)}); fetch or copy the file again"
        ) from None
    _check_nesting(value, path)
    stream.seek(start + window.tell())
    return value


class _Machine:
    """Carries out the instructions of one pickle."""

    def __init__(self, path: str, objects: TorchObjects) -> None:
        self.path = path
        self.objects = objects
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, window: BinaryIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(window)):
            if count >= MAX_INSTRUCTIONS:
                raise refusal(
                    self.path, f"its pickle has more than {MAX_INSTRUCTIONS} instructions"
                )
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        value = self.pop()
        if self.stack:
            raise ValueError("values left over at the end")
        return value

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NUMBERS:
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise refusal(self.path, "its pickle holds an integer of absurd size")
            stack.append(argument)
        elif name in _STRINGS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "APPEND":
            item = self.pop()
            self.top_of(list).append(item)
        elif name in ("APPENDS", "ADDITEMS"):
            items = self.pop_to_mark()
            self.top_of(list).extend(items)
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self.top_of(dict)[checked_key(key)] = value
        elif name == "SETITEMS":
            items = self.pop_to_mark()
            target = self.top_of(dict)
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[checked_key(key)] = value
        elif name == "GLOBAL":
            stack.append(self.objects.named(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(self.objects.named(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, target = self.pop(), self.pop()
            stack.append(self.objects.call(target, arguments))
        elif name == "BUILD":
            state, target = self.pop(), self.top()
            self.objects.set_state(target, state)
        elif name == "BINPERSID":
            stack.append(self.objects.persistent(self.pop()))
        elif name == "INST":  # names a global and calls it in one instruction
            self.objects.named(argument.replace(" ", ".", 1))
            raise refusal(self.path, "its pickle builds an object by the instruction INST")
        elif name not in ("PROTO", "FRAME"):
            raise refusal(
                self.path, f"its pickle uses the instruction {name}, which no checkpoint needs"
            )

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("a value is missing")
        return self.stack[-1]

    def top_of(self, kind: type) -> Any:
        if not isinstance(self.top(), kind):
            raise ValueError(f"a {kind.__name__} is missing")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]


def _check_nesting(value: Any, path: str) -> None:
    """Refuse deeper containers than checkpoints hold; level by level, each object visited once."""
    level, seen = [value], set()
    for _ in range(MAX_NESTING):
        following: list[Any] = []
        for item in level:
            if isinstance(item, AnchorData):
                item = item.state
            if not isinstance(item, list | tuple | dict) or id(item) in seen:
                continue
            seen.add(id(item))
            following.extend(item.values() if isinstance(item, dict) else item)
        if not following:
            return
        level = following
    raise refusal(path, f"its pickle nests containers more than {MAX_NESTING} deep")
