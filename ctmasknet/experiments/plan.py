"""A plan: one question, asked of several arms on the same data with the same seeds.

A YAML file of ``configs/experiments/``::

    title: Does the wider head name slices better?
    config_file: configs/cls_light.yaml
    evaluated_on: covidx_ct_test
    seeds: [1, 2, 3]
    opts: [SOLVER.MAX_ITER, 500]
    against: narrow
    folds:
      one:
        datasets: output/one/datasets
        prepare:
          - {command: datasets/prepare_slices.py ..., makes: output/one/datasets/covidx_ct}
    arms:
      narrow: {opts: [MODEL.IMAGE_HEAD.FC_DIM, 64]}
      wide: {opts: [MODEL.IMAGE_HEAD.FC_DIM, 256]}

A fold is data and what is trained on it before (a detector): ``prepare`` are tools that make it, in
order, each left out where what it ``makes`` is there; ``$NAME`` in a command is of the environment,
``datasets`` of a step another folder than the fold's.
A fold with an ``evaluated_on`` of its own goes before the plan's. A run is an arm on a fold with a
seed. Arms that name a ``series`` and their ``x`` become lines of the plot.

With ``task: lesions`` arms are detectors or other networks that find lesions. All folds together
are then one set, each slice found by the model that was not trained on it, and ``normals`` names a
set without lesions on which false positives are counted. An arm with a ``baseline``
(:mod:`ctmasknet.experiments.baselines`) trains no network. Where ``DATASETS.VAL`` is empty, the
last weights are evaluated, else the best. ``minutes`` is about how long all runs of a plan take on
two CPU cores, which is told before any of them is measured.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ctmasknet.config_file import parse_yaml
from ctmasknet.errors import CTMaskNetError
from ctmasknet.experiments.baselines import BASELINES
from ctmasknet.files import plain_file
from ctmasknet.model_zoo import get_config_file
from ctmasknet.registration import IMPORT_KEY, refuse_import
from ctmasknet.schema import checked, form, listing, maybe, names_of, number, one_of, record, text
from ctmasknet.schema import whole_from_0 as seed_form

#: Names of plans, folds and arms, of which files are named.
_NAME = re.compile(r"[A-Za-z0-9][\w+-]*")
_MAX_RUNS = 10_000
#: What arms do: name slices, or find lesions.
TASKS = ("slices", "lesions")


@dataclass(frozen=True)
class Step:
    """A tool that prepares a fold.

    Attributes:
        words: of its command line, the tool first.
        makes: the file or folder by which it is known to be done.
        datasets: folder of the prepared sets that it reads.
    """

    words: tuple[str, ...]
    makes: Path
    datasets: str

    def command(self) -> list[str]:
        """The words, with what the environment says.

        Raises:
            CTMaskNetError: it does not say something.
        """
        try:
            return [string.Template(word).substitute(os.environ) for word in self.words]
        except (KeyError, ValueError) as error:
            name = error.args[0] if isinstance(error, KeyError) else "a name"
            raise CTMaskNetError(
                f"{shlex.join(self.words)}: the environment has no {name}, which makes {self.makes}"
                f"; export {name}=..."
            ) from None


@dataclass(frozen=True)
class Fold:
    """Data, and what was trained on it before.

    Attributes:
        name: of it.
        datasets: folder of its prepared sets (``DETECTRON2_DATASETS``).
        opts: ``KEY VALUE`` pairs of its runs.
        prepare: what makes it.
        evaluated_on: the set that its runs are evaluated on.
    """

    name: str
    datasets: str
    opts: tuple[str, ...]
    prepare: tuple[Step, ...]
    evaluated_on: str


@dataclass(frozen=True)
class Arm:
    """One of the ways that are compared.

    Attributes:
        name, title: of it; the title stands in tables.
        config_file: of its runs.
        opts: ``KEY VALUE`` pairs of its runs.
        baseline: what names slices in place of a network; None: the network does.
        series, x: of the line that it is a point of, and where; None of one that is no such point.
    """

    name: str
    title: str
    config_file: str
    opts: tuple[str, ...]
    baseline: str | None
    series: str | None
    x: float | None


@dataclass(frozen=True)
class ArmRun:
    """An arm on a fold with a seed."""

    fold: Fold
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.fold.name}/{self.arm.name}/{self.seed}"


@dataclass(frozen=True)
class Plan:
    """See the module; ``name`` is that of the file, ``against`` that of an arm."""

    file: str
    name: str
    title: str
    task: str
    normals: str | None
    opts: tuple[str, ...]
    seeds: tuple[int, ...]
    against: str
    folds: tuple[Fold, ...]
    arms: tuple[Arm, ...]
    x_label: str
    minutes: float | None

    @property
    def runs(self) -> list[ArmRun]:
        """All of them, one of every arm before the next seed."""
        return [
            ArmRun(fold, arm, seed)
            for seed in self.seeds
            for fold in self.folds
            for arm in self.arms
        ]


@form("a list of texts and numbers")
def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(str(word) for word in value)


_STEP = record({"command": text, "makes": text, "datasets": maybe(text)})
_FORM = record(
    {
        "title": text,
        "task": maybe(one_of(*TASKS)),
        "config_file": text,
        "evaluated_on": text,
        "normals": maybe(text),
        "seeds": listing(seed_form),
        "opts": maybe(_words),
        "against": text,
        "x_label": maybe(text),
        "minutes": maybe(number),
        "folds": names_of(
            record(
                {
                    "datasets": text,
                    "evaluated_on": maybe(text),
                    "opts": maybe(_words),
                    "prepare": maybe(listing(_STEP)),
                }
            )
        ),
        "arms": names_of(
            record(
                {
                    "title": maybe(text),
                    "config_file": maybe(text),
                    "opts": maybe(_words),
                    "baseline": maybe(one_of(*BASELINES)),
                    "series": maybe(text),
                    "x": maybe(number),
                }
            )
        ),
    }
)


def read_plan(path: str | os.PathLike) -> Plan:
    """Read a plan.

    Raises:
        CTMaskNetError: there is no such file, or it is no plan; names what is wrong.
    """
    try:
        content = _named(parse_yaml(plain_file(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CTMaskNetError(f"{path}: no plan can be read ({reason})") from None
    remedy = "write it as those of configs/experiments/"
    content = checked(path, content, _FORM, "a plan of experiments", remedy)
    _check(path, content)
    return Plan(
        file=os.fspath(path),
        name=Path(path).stem,
        title=" ".join(content["title"].split()),
        task=content["task"] or TASKS[0],
        normals=content["normals"],
        opts=content["opts"] or (),
        seeds=tuple(content["seeds"]),
        against=content["against"],
        x_label=content["x_label"] or "x",
        minutes=content["minutes"],
        folds=tuple(_fold(path, name, item, content) for name, item in content["folds"].items()),
        arms=tuple(_arm(name, item, content) for name, item in content["arms"].items()),
    )


def _named(value: Any) -> Any:
    """Names as texts, which YAML may take for numbers."""
    if not isinstance(value, dict):
        return value
    return {str(name): _named(item) for name, item in value.items()}


def _fold(
    path: str | os.PathLike, name: str, item: Mapping[str, Any], plan: Mapping[str, Any]
) -> Fold:
    steps = []
    for step in item["prepare"] or ():
        try:
            words = tuple(shlex.split(step["command"]))
        except ValueError as error:
            raise CTMaskNetError(
                f"{path}: fold {name} has the command {step['command'][:80]!a} ({error}); write it "
                "as on a command line"
            ) from None
        datasets = step["datasets"] or item["datasets"]
        steps.append(Step(words, Path(step["makes"]), datasets))
    evaluated_on = item["evaluated_on"] or plan["evaluated_on"]
    return Fold(name, item["datasets"], item["opts"] or (), tuple(steps), evaluated_on)


def _arm(name: str, item: Mapping[str, Any], plan: Mapping[str, Any]) -> Arm:
    config_file = item["config_file"] or plan["config_file"]
    title = item["title"] or name
    return Arm(
        *(name, title, config_file, item["opts"] or ()),
        *(item["baseline"], item["series"], item["x"]),
    )


def _check(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Refuse what the form does not tell."""
    fields = ("folds", "arms")
    for kind, names in [("plan", [Path(path).stem]), *((k, list(content[k])) for k in fields)]:
        for name in names:
            if not _NAME.fullmatch(name):
                raise CTMaskNetError(
                    f"{path}: {kind} {name!r} names files: use letters, digits, _, + and - alone"
                )
        if not names:
            raise CTMaskNetError(f"{path}: {kind} is empty; name one at least")
    if not content["seeds"] or len(set(content["seeds"])) < len(content["seeds"]):
        raise CTMaskNetError(f"{path}: seeds is {content['seeds']}; name some, each once")
    runs = math.prod(len(content[kind]) for kind in ("folds", "arms", "seeds"))
    if runs > _MAX_RUNS:
        raise CTMaskNetError(f"{path}: asks for {runs} runs; plans have at most {_MAX_RUNS}")
    if content["against"] not in content["arms"]:
        raise CTMaskNetError(
            f"{path}: against is {content['against']!r}; name one of the arms "
            f"{', '.join(content['arms'])}"
        )
    if content["normals"] and content["task"] != "lesions":
        raise CTMaskNetError(f"{path}: normals goes with task: lesions; leave it out")
    every = [content, *content["folds"].values(), *content["arms"].values()]
    for opts in (item["opts"] or () for item in every):
        _check_opts(path, opts)
    for name, arm in content["arms"].items():
        if arm["baseline"] and content["task"] == "lesions":
            raise CTMaskNetError(f"{path}: arm {name} has a baseline, which finds no lesions")
        if (arm["series"] is None) != (arm["x"] is None):
            raise CTMaskNetError(f"{path}: arm {name} has only one of series and x; give both")
        get_config_file(arm["config_file"] or content["config_file"])


def _check_opts(path: str | os.PathLike, opts: Sequence[str]) -> None:
    if len(opts) % 2:
        raise CTMaskNetError(f"{path}: opts are KEY and VALUE in turn; {opts[-1]!r} has no partner")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == IMPORT_KEY:
            refuse_import(value, os.fspath(path))
    own = [key for key in opts[::2] if key in ("OUTPUT_DIR", "SEED", "DATASETS.TEST")]
    if own:
        raise CTMaskNetError(
            f"{path}: opts set {own[0]}, which the plan sets itself (seeds, evaluated_on)"
        )
