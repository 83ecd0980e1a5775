"""Result folders: what was measured in them, on which data, and which variant they are a run of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ctmasknet.config_file import parse_yaml
from ctmasknet.engine.record import RUN_RECORD, read_record
from ctmasknet.engine.runs.identity import RUN
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import plain_file, read_json
from ctmasknet.paper.forms import counts_form, dice_form, entries_form
from ctmasknet.paper.published import LISTS
from ctmasknet.paper.variants import Structure, Variant, structure_of
from ctmasknet.schema import checked, record

_AGAIN = "run the evaluation again"
_INFERENCE, _CONFIG = "inference", "config.yaml"
#: Figures that tables show, by task and kind; the first kind of a task is always there.
_SHOWN = {
    "classification": {"slices": ("accuracy",)},
    "segmentation": {"bbox": ("AP50",), "segm": ("AP50",), "per_image": ("AP50", "AP75", "AP")},
}


@dataclass(frozen=True)
class Measured:
    """Figures of a run on a data set.

    Attributes:
        dataset: its registered name.
        figures: ``results.json``: {"slices": {...}} or {"bbox": {...}, "segm": ..., "per_image":
            ...}, percent, None where undefined.
        counts: ``slices_metrics.json`` of a classifier (``n``, ``class_names``,
            ``confusion_matrix``), else None.
        evaluation: the record of the evaluation that made them, None where nothing was
            recorded.
    """

    dataset: str
    figures: Mapping[str, Any]
    counts: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None

    def on(self) -> str:
        """Which data the figures were measured on, in words.

        The name of a data set proves nothing (phantoms are prepared under the same names as the
        real sets), so it is said what is in it as far as that is known.
        """
        known = {}
        if self.evaluation:
            tests = self.evaluation["datasets"]["test"]
            known = next((item for item in tests if item["name"] == self.dataset), {})
        images = known.get("images", (self.counts or {}).get("n"))
        published = LISTS.get(known.get("fingerprint"))
        if published:
            what = f"{images:,} slices, the {published}"
        elif known.get("phantoms"):
            what = f"{images:,} slices of phantoms"
        elif known:
            what = f"{images:,} slices, not a published list"
        else:
            what = f"{images:,} slices" if images else "unknown number of slices"
            what += ", origin not recorded"
        return f"{self.dataset}: {what}"


@dataclass(frozen=True)
class Run:
    """A folder that a training or evaluation left: ``variant`` is None when no config fits."""

    folder: Path
    structure: Structure
    variant: Variant | None
    training: Mapping[str, Any] | None
    measured: tuple[Measured, ...]
    output_dir: str = ""

    def trained_on(self, measured: Measured | None = None) -> str:
        """Training data, iterations and seed of what was measured, in words.

        Weights of another training (imported ones, for example) are named, for the one recorded
        here is not theirs: they state another run or, where a record states none, lie in another
        folder.
        """
        evaluation = (measured.evaluation if measured else None) or {}
        weights = Path(evaluation.get("weights", ""))
        if self.training is not None and self.training.get(RUN) and "weights_run" in evaluation:
            ours = evaluation["weights_run"] == self.training[RUN]
        else:
            ours = self.training is not None and weights.parent == Path(self.output_dir)
        if weights.name and not ours:
            return f"not recorded (weights {weights.name})"
        if self.training is None:
            return "not recorded"
        sets = ", ".join(_short(item) for item in self.training["datasets"]["train"])
        if drawn := self.training.get("train_patients"):
            sets += f", {drawn} patients of each class"
        seed = self.training["seed"]
        done = self.training.get("iterations")
        iterations = f"{done:,} iterations" if done else "iterations not recorded"
        status = self.training["status"]
        unfinished = "" if status == "finished" else f" ({status} of {self.training['max_iter']:,})"
        return f"{sets}; {iterations}{unfinished}; seed {seed if seed >= 0 else 'random'}"


def find_runs(folders: Iterable[str | os.PathLike], known: Sequence[Variant]) -> list[Run]:
    """All runs in ``folders`` and below, sorted by folder within each.

    Raises:
        CTMaskNetError: a folder that is missing or holds no run, or a file of a run that is broken.
    """
    runs: list[Run] = []
    for given in map(Path, folders):
        if not given.is_dir():
            raise CTMaskNetError(f"{given}: no such folder; `results` takes OUTPUT_DIR folders")
        found = [
            Path(parent)
            for parent, children, files in os.walk(given)
            if (_CONFIG in files and _INFERENCE in children) or _is_recorded(parent, files)
        ]
        if not found:
            raise CTMaskNetError(
                f"{given}: no results here or below; evaluate with tools/train_net.py "
                "and give its OUTPUT_DIR"
            )
        runs += [_read_run(folder, known) for folder in sorted(found)]
    return list({run.folder.resolve(): run for run in runs}.values())


def _is_recorded(folder: str, files: Sequence[str]) -> bool:
    """Whether a training or evaluation is recorded there; tools/predict.py keeps a record too."""
    return RUN_RECORD in files and (
        _CONFIG in files or any(entry["kind"] != "prediction" for entry in read_record(folder))
    )


def _read_run(folder: Path, known: Sequence[Variant]) -> Run:
    """Read one folder; see :func:`find_runs`."""
    path = folder / _CONFIG
    try:
        cfg = parse_yaml(plain_file(path).read_text(encoding="utf-8"))
        structure = structure_of(cfg)
    except OSError as error:
        raise CTMaskNetError(
            f"{path}: cannot be read ({error.strerror}); a run's folder needs it"
        ) from error
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise CTMaskNetError(
            f"{path}: not a configuration of this project ({type(error).__name__}: {error}); "
            "leave the folder out or run the evaluation again"
        ) from error
    entries = checked(
        folder / RUN_RECORD, read_record(folder), entries_form, "a run's record", "run it again"
    )
    training = next((item for item in reversed(entries) if item["kind"] == "training"), None)
    measured = tuple(
        _measured(file, structure.task, entries)
        for file in sorted(folder.glob(f"{_INFERENCE}/*/results.json"))
    )
    stated = next((entry["config_file"] for entry in reversed(entries)), None)
    variant = _match(folder, cfg, structure, stated, known)
    if entries:
        # The others were made on validation data while training ran, not with the best weights
        measured = tuple(item for item in measured if item.evaluation)
    return Run(folder, structure, variant, training, measured, str(cfg.get("OUTPUT_DIR", "")))


def _match(
    folder: Path,
    cfg: Mapping[str, Any],
    structure: Structure,
    config_file: str | None,
    known: Sequence[Variant],
) -> Variant | None:
    """The variant a run is of: one with the same model, whatever the command line called it.

    Of several, the config the run's record names; else the one that fewest keys differ from, and
    then the one that writes to a folder of this name.
    """
    fitting = [variant for variant in known if variant.structure == structure]
    if config_file:
        words = Path(config_file).with_suffix("").as_posix()
        # "seg" ends "demo/seg" too: the longest name is the one meant
        for variant in sorted(fitting, key=lambda item: -len(item.name)):
            if f"/{words}".endswith(f"/{variant.name}"):
                return variant
    values = _flat(cfg)

    def distance(variant: Variant) -> tuple[int, bool]:
        theirs = _flat(yaml.safe_load(variant.cfg.dump()))
        differing = sum(values.get(key) != value for key, value in theirs.items())
        return differing, Path(variant.cfg.OUTPUT_DIR).name != folder.name

    return min(fitting, key=distance, default=None)


def of_variant(runs: Iterable[Run], name: str) -> list[tuple[Run, Measured]]:
    """The figures of one variant by its name."""
    return [
        (run, measured)
        for run in runs
        if run.variant is not None and run.variant.name == name
        for measured in run.measured
    ]


def _measured(path: Path, task: str, entries: Sequence[Mapping[str, Any]]) -> Measured:
    dataset = path.parent.name
    figures = _read_json(path)
    _check_figures(path, figures, task)
    counts = path.with_name("slices_metrics.json")
    finished = [
        entry
        for entry in entries
        if (entry["kind"], entry["status"]) == ("evaluation", "finished")
        and dataset in (item["name"] for item in entry["datasets"]["test"])
    ]
    counted = None
    if counts.is_file():
        what = "counts of an evaluation"
        counted = checked(counts, _read_json(counts), counts_form, what, _AGAIN)
    return Measured(dataset, figures, counted, finished[-1] if finished else None)


def _check_figures(path: Path, figures: Any, task: str) -> None:
    """Refuse figures of another task, and those that lack one that tables show."""
    shown = _SHOWN[task]
    if not isinstance(figures, dict) or next(iter(shown)) not in figures:
        raise CTMaskNetError(
            f"{path}: holds no figures of {task}, the task of config.yaml; evaluate again"
        )
    for kind in shown.keys() & figures.keys():
        own = figures[kind] if isinstance(figures[kind], dict) else {}
        pairs = [key.replace("sensitivity-", "precision-") for key in own if "sensitivity-" in key]
        for key in (*shown[kind], *own, *pairs):
            if not isinstance(own.get(key, ""), int | float | None):
                raise CTMaskNetError(f"{path}: {kind} has no {key}; {_AGAIN}")
    checked(path, figures, record({}, {"dice": dice_form}), "figures of a run", _AGAIN)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: not readable as JSON ({error}); {_AGAIN}") from error


def _short(dataset: Mapping[str, Any]) -> str:
    published = LISTS.get(dataset.get("fingerprint"))
    kind = f", the {published}" if published else ", phantoms" if dataset["phantoms"] else ""
    return f"{dataset['name']} ({dataset['images']:,} slices{kind})"


def _flat(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values
