"""The form of a checkpoint's training state: hostile or damaged ones are told before they are used.

What belongs to torch (optimizer, schedule, scaler of gradients) is held against the state that this
training has at its start: names, kinds of values and shapes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ctmasknet.engine.runs.identity import RUN
from ctmasknet.schema import (
    Form,
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

_FLAG = one_of(False, True)


@form("a whole number")
def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError
    return value


@form("a value and its iteration")
def _point(value: Any) -> Any:
    x, iteration = value
    if type(x) not in (int, float) or type(iteration) not in (int, float) or iteration < 0:
        raise ValueError
    return value


_DATA = listing(record({"images": whole_from_0, "content_sha256": text}))
_IDENTITY = record({RUN: maybe(text), "config": names_of(anything), "data": maybe(names_of(_DATA))})
_SCALAR = record({"smooth": anything, "values": listing(_point)})
_FILE = record({"last_write": _whole, "bytes": whole_from_0})
_HOOKS = {
    "Validation": record(
        {},
        {
            **{"best": maybe(number), "best_iteration": maybe(whole_from_0)},
            **{"since_best": whole_from_0, "stopped": _FLAG, "pending": _FLAG},
            "results": maybe(names_of(anything)),
        },
    ),
    "MetricWriters": record({"scalars": names_of(_SCALAR), "files": names_of(_FILE)}),
    "RandomStates": record({"processes": listing(names_of(anything))}),
    "GatherBadSlices": record({"found": text}),
}


def resumed_state(
    state: Any,
    schedule: Mapping[str, Any],
    trainer: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """A training state that can be loaded.

    Args:
        state: of a checkpoint.
        schedule, trainer: states of the schedule and of Detectron2's trainer of this training, at
            its start.
        optimizer: of this training.

    Raises:
        UnlikeForm: it is of another form; names the entry.
    """
    found = record(
        {"iteration": whole_from_0, "data_seed": _whole, "_trainer": names_of(anything)},
        {RUN: maybe(_IDENTITY), "hooks": record({}, _HOOKS)},
    )(state, "")
    hooks = dict(found.get("hooks", {}))
    if "LRScheduler" in hooks:
        hooks["LRScheduler"] = _like(schedule)(hooks["LRScheduler"], "hooks.LRScheduler")
    inner = dict(found["_trainer"])
    for name in inner.keys() & trainer.keys() - {"optimizer"}:
        inner[name] = _like(trainer[name])(inner[name], f"_trainer.{name}")
    given = record({"param_groups": anything, "state": anything})(
        inner.get("optimizer"), "_trainer.optimizer"
    )
    groups = _like(trainer["optimizer"]["param_groups"])(given["param_groups"], "param_groups")
    inner["optimizer"] = {"param_groups": groups, "state": _moments(given["state"], optimizer)}
    return {**found, "hooks": hooks, "_trainer": inner}


def _like(own: Any) -> Form:
    """Values of the kinds of ``own``: names that are missing have its values, others are left
    out."""

    def checking(value: Any, key: str) -> Any:
        if isinstance(own, Mapping):
            if not isinstance(value, dict):
                raise UnlikeForm(key, value, "an object")
            return {
                name: _like(usual)(value[name], f"{key}.{name}") if name in value else usual
                for name, usual in own.items()
            }
        if isinstance(own, list | tuple):
            if not isinstance(value, list | tuple) or len(value) != len(own):
                raise UnlikeForm(key, value, f"a list of {len(own)}")
            pairs = enumerate(zip(value, own, strict=True))
            return type(own)(_like(usual)(one, f"{key}[{n}]") for n, (one, usual) in pairs)
        if isinstance(own, bool) or own is None:
            return one_of(own, *(() if own is None else (not own,)))(value, key)
        if isinstance(own, int):
            return _whole(value, key)
        return number(value, key) if isinstance(own, float) else anything(value, key)

    return checking


def _moments(state: Any, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """What the optimizer keeps of each weight."""
    key = "_trainer.optimizer.state"
    if not isinstance(state, dict):
        raise UnlikeForm(key, state, "an object")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    names = _kept(optimizer) if state else set()
    for index, kept in state.items():
        if type(index) is not int or not 0 <= index < len(weights):
            raise UnlikeForm(key, index, "the number of a weight")
        if not isinstance(kept, dict) or set(kept) != names:
            raise UnlikeForm(f"{key}[{index}]", kept, f"an object of {', '.join(sorted(names))}")
        for name, value in kept.items():
            if not _is_moment(value, weights[index].shape):
                raise UnlikeForm(f"{key}[{index}].{name}", value, "numbers of the weight's shape")
    return state


def _is_moment(value: Any, shape: Sequence[int]) -> bool:
    if isinstance(value, torch.Tensor):
        plain = value.layout is torch.strided and value.is_floating_point()
        fits = plain and tuple(value.shape) in (tuple(shape), ())
        return fits and bool(value.isfinite().all())
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _kept(optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of what an optimizer of this kind keeps of a weight."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    known = inspect.signature(type(optimizer)).parameters
    other = type(optimizer)([weight], **{k: v for k, v in optimizer.defaults.items() if k in known})
    other.step()
    return set(other.state[weight])
