"""What a training is: its configuration and data, which stay what they were when it is resumed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from detectron2.config import CfgNode

from ctmasknet.data.patients import first_few
from ctmasknet.errors import CTMaskNetError

#: Key of a training's id in the specification that its checkpoints carry, and in records.
RUN = "run"
#: How long, how often, where and by how many it is computed: no part of what a run is.
_FREE = {
    *("SOLVER.MAX_ITER", "SOLVER.MAX_EPOCHS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
    *("SOLVER.CHECKPOINT_EPOCHS", "TEST.EVAL_EPOCHS", "SOLVER.LOG_PERIOD", "VIS_PERIOD"),
    *("TEST.AUG.ENABLED", "TEST.AUG.FLIP", "TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE"),
    *("TEST.ENSEMBLE", "TEST.PICTURES"),
    *(
        "DATALOADER.NUM_WORKERS",
        "OUTPUT_DIR",
        "MODEL.TRANSFER",
        "DATASETS.IMPORT",
        "MODEL.DEVICE",
        "MODEL.RANKED_BOXES.CACHE_DIR",
    ),
}
#: May be changed on the way, and then hold as they are now: whether a bad slice ends the training,
#: when no better value does, and what is only looked at to warn.
_TAKEN = {
    *("DATALOADER.BAD_SLICES", "DATALOADER.MAX_BAD_SHARE", "SOLVER.EARLY_STOPPING_PATIENCE"),
    *("DATASETS.TEST", "DATASETS.SHARED_PATIENTS", "CUDNN_BENCHMARK"),
}
#: Read at the beginning alone.
_START = "MODEL.WEIGHTS"
#: Digits of an id.
_DIGITS = 16
#: What of a data set's record tells one from another.
_OF_DATA = ("name", "images", "content_sha256")


@dataclass(frozen=True)
class Identity:
    """Plain values, so that a checkpoint may carry them.

    Attributes:
        run: the training's id (see :func:`run_id`), None of one that states none.
        config: key -> value of all keys that belong to it.
        data: split -> its data sets (``name``, ``images``, ``content_sha256``); None: not known.
    """

    run: str | None
    config: Mapping[str, Any]
    data: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, cfg: CfgNode, seed: int, datasets: Mapping[str, Sequence[Mapping]] | None = None
    ) -> Identity:
        """
        Args:
            cfg: with which a training begins.
            seed: by which it draws data.
            datasets: split -> :func:`ctmasknet.engine.record.describe_dataset` of its sets.
        """
        config = {
            key: value for key, value in _flat(yaml.safe_load(cfg.dump())) if key not in _FREE
        }
        data = datasets and {
            split: [{key: one[key] for key in _OF_DATA} for one in sets]
            for split, sets in datasets.items()
        }
        return cls(run_id(cfg, seed, data), config, data)

    def state(self) -> dict[str, Any]:
        return {RUN: self.run, "config": dict(self.config), "data": self.data}

    def recorded(self) -> dict[str, Any]:
        """What ``run.json`` says of it: the id, and the weights it was begun with."""
        return {RUN: self.run, "weights": self.config[_START]}

    def resumed(self, state: Mapping[str, Any] | None, where: str) -> Identity:
        """Go on with the training of a checkpoint, by this configuration.

        Args:
            state: :meth:`state` in the checkpoint, None where it has none.
            where: the training's folder, for messages.

        Returns:
            what the training is from now on: the id and the start are the checkpoint's.

        Raises:
            CTMaskNetError: a key or a data set is another; names all of them.
        """
        if state is None:
            logging.getLogger(__name__).warning(
                "%s: the checkpoint does not state its configuration; that of now is not compared",
                where,
            )
            return Identity(None, self.config, self.data)
        before, now = state["config"], self.config
        changed = [key for key in now if key in before and before[key] != now[key]]
        told = {key: f"{key} is {now[key]!r} but was {before[key]!r}" for key in changed}
        unlike = [told[key] for key in changed if key not in _TAKEN and key != _START]
        if self.data is not None and state["data"] is not None and not unlike:
            unlike = _unlike_data(state["data"], self.data, now.get("DATALOADER.BAD_SLICES"))
        if unlike:
            raise CTMaskNetError(
                f"{where}: the last checkpoint's training state does not fit "
                f"({'; '.join(unlike)}); resume with the configuration and the data it was begun "
                "with, or start anew without `resume` in another OUTPUT_DIR"
            )
        for key in changed:
            effect = "has no effect on a training that goes on" if key == _START else "holds now"
            logging.getLogger(__name__).warning("Resumed: %s, which %s", told[key], effect)
        config = {**now, **({_START: before[_START]} if _START in before else {})}
        return Identity(state[RUN], config, self.data or state["data"])


def run_id(cfg: CfgNode, seed: int, data: Mapping[str, Any] | None) -> str:
    """The id of a training that begins: of all that its result depends on, so that trainings of one
    id end alike."""
    config = dict(_flat(yaml.safe_load(cfg.dump())))
    free = ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "MODEL.RANKED_BOXES.CACHE_DIR")
    for key in (*free, "DATASETS.IMPORT"):
        config.pop(key, None)
    text = json.dumps([config, seed, data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _unlike_data(before: Mapping[str, Any], now: Mapping[str, Any], bad: str) -> list[str]:
    found = []
    for split, sets in now.items():
        for old, new in zip(before.get(split, []), sets, strict=False):
            if old["images"] != new["images"]:
                found.append(f"{new['name']} has {new['images']} images but had {old['images']}")
            elif old["content_sha256"] != new["content_sha256"]:
                found.append(f"{new['name']} has other images, labels or lesions than it had")
    if found and bad == "skip" and all("other images" in text for text in found):
        # It may be one that could not be read, then or now
        logging.getLogger(__name__).warning("Resumed: %s", first_few(found))
        return []
    return found


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{above}{name}.")
        else:
            found.append((f"{above}{name}", value))
    return found
