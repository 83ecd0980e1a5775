"""``run.json``: what was run, on which data and hardware, so that a figure can be traced.

The file stands in ``OUTPUT_DIR`` and holds ``{"format": 1, "entries": [...]}``, one entry for every
training and evaluation (see :func:`recorded`), or the one of a prediction; each says what it ran
on and with (:func:`environment`). No result depends on it; a checkpoint that states another run
than it is refused (see :mod:`ctmasknet.engine.runs`).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

import ctmasknet
from ctmasknet.data.patients import PHANTOM_RECIPE
from ctmasknet.data.prepared import content_sha256
from ctmasknet.data.registry import dataset_dicts, parts_of
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, parse_json, plain, read_json, write_json
from ctmasknet.names import parse_lesion_name
from ctmasknet.schema import listing, names_of, one_of, record, text

#: Name of the file.
RUN_RECORD = "run.json"
_FORMAT = 1
_KINDS = ("training", "evaluation", "prediction")
_ROOT = Path(ctmasknet.__file__).resolve().parent.parent


def environment(cfg: CfgNode, num_gpus: int = 1) -> dict[str, Any]:
    """What a run of any kind ran on and with: ``hardware``, ``versions``, ``git_commit`` and
    ``config`` (all keys)."""
    return {
        "hardware": hardware(cfg.MODEL.DEVICE, num_gpus),
        "versions": {
            "ctmasknet": ctmasknet.__version__,
            "detectron2": detectron2.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "git_commit": git_commit(),
        "config": yaml.safe_load(cfg.dump()),
    }


def hardware(device: str, num_gpus: int = 1) -> dict[str, Any]:
    """``device``, ``cpu`` (model), ``cores`` (that this process may use), ``threads`` (that it
    computes with), ``gpu`` (name or None), ``num_gpus`` and ``processes`` (of the run, on all
    machines)."""
    with_gpu = device.startswith("cuda") and torch.cuda.is_available()
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return {
        "device": device,
        "cpu": _cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if with_gpu else None,
        "num_gpus": num_gpus if with_gpu else 0,
        "processes": comm.get_world_size(),
    }


def git_commit() -> str | None:
    """The commit of the clone that runs, with ``-dirty`` after local changes; None elsewhere."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(_ROOT), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside a clone of something else.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


class Found(dict):
    """What a run finds out for its entry in ``run.json``.

    Attributes:
        datasets: split -> :func:`describe_dataset` of its sets; None in processes that do not write
            the record.
    """

    def __init__(
        self,
        write: Callable[[Mapping[str, Any]], None] | None = None,
        datasets: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self._write = write
        self.datasets = datasets

    def note(self, **values: Any) -> None:
        """Put this into the entry at once, in case that the run is killed."""
        self.update(values)
        if self._write is not None:
            self._write(values)


@contextlib.contextmanager
def recorded(cfg: CfgNode, args: argparse.Namespace) -> Iterator[Found]:
    """Keep a record of the training or evaluation inside the block in ``OUTPUT_DIR/run.json``.

    The entry is written when the block begins, with status ``running``, and completed when it ends:
    status ``finished`` or ``stopped``, end and seconds, and for a training the iterations done. A
    training replaces all earlier entries, but for the trainings it resumes; an evaluation replaces
    the earlier one of the same data sets. What stops before it made anything (an evaluation, or a
    training before its first line in ``metrics.json``) leaves the file, and ``config.yaml``, as it
    was. Only the main process writes.

    Args:
        cfg: the run's configuration.
        args: ``eval_only``, ``resume``, ``num_gpus`` and ``words`` (the command line).

    Yields:
        a dict; what the block puts there stands in the completed entry, such as ``metrics``, and
        what it notes there in that of a killed run too.
    """
    if not comm.is_main_process():
        yield Found()
        return
    path = Path(cfg.OUTPUT_DIR) / RUN_RECORD
    metrics = Path(cfg.OUTPUT_DIR) / "metrics.json"
    untouched = _stamp(metrics)
    before = {
        file: file.read_bytes() if file.is_file() else None
        for file in (path, path.with_name("config.yaml"))
    }
    entry = _new_entry(cfg, args)
    entries = [*_kept(path, entry, bool(getattr(args, "resume", False))), entry]
    write_record(path.parent, entries)

    def write(values: Mapping[str, Any]) -> None:
        entry.update(plain(dict(values)))
        write_record(path.parent, entries)

    found = Found(write, entry["datasets"])
    start = time.monotonic()
    try:
        yield found
    except BaseException as error:
        entry["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        iterations = _iterations(metrics, untouched) if entry["kind"] == "training" else None
        if iterations is None:
            for file, text in before.items():
                _restore(file, text)
            raise
        write_record(path.parent, [*entries[:-1], _ended(entry, start, "stopped", iterations)])
        raise
    done = _iterations(metrics, None) or cfg.SOLVER.MAX_ITER
    ended = _ended({**entry, **plain(found)}, start, "finished", done)
    write_record(path.parent, [*entries[:-1], ended])


def _new_entry(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """What is known when a run begins; ``args`` as in :func:`recorded`.

    Returns:
        ``kind`` ("training" or "evaluation"), ``status``, ``start``, ``config_file``, ``overrides``
        (list), ``command``, ``seed`` (-1: drawn anew each time), ``weights``, ``max_iter``,
        ``images_per_batch``, ``datasets`` ({"train", "val"}, of a model of two branches "lesions"
        too, or {"test"}: lists of :func:`describe_dataset`), ``train_patients`` (of each class,
        where ``DATASETS.TRAIN_PATIENTS`` draws some), ``hardware``, ``versions``,
        ``git_commit`` (None outside of a clone), ``config`` (all keys).
    """
    training = not args.eval_only
    splits = {"train": cfg.DATASETS.TRAIN, "val": cfg.DATASETS.VAL}
    splits |= {"lesions": cfg.DATASETS.LESIONS} if cfg.DATASETS.LESIONS else {}
    splits = splits if training else {"test": cfg.DATASETS.TEST}
    skip_bad = cfg.DATALOADER.BAD_SLICES == "skip"
    drawn = cfg.DATASETS.TRAIN_PATIENTS
    return {
        "kind": "training" if training else "evaluation",
        "status": "running",
        "start": now(),
        "config_file": args.config_file,
        "overrides": [str(item) for item in args.opts],
        "command": shlex.join(["python", "tools/train_net.py", *args.words]),
        "seed": cfg.SEED,
        "weights": cfg.MODEL.WEIGHTS,
        "max_iter": cfg.SOLVER.MAX_ITER,
        "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
        "datasets": {
            split: [describe_dataset(name, skip_bad) for name in names]
            for split, names in splits.items()
        },
        **({"train_patients": drawn} if training and drawn else {}),
        **environment(cfg, getattr(args, "num_gpus", 1)),
    }


def describe_dataset(name: str, skip_bad: bool = False) -> dict[str, Any]:
    """A data set in a record.

    Args:
        name: of the data set.
        skip_bad: an image that cannot be read is no error.

    Returns:
        ``name``, ``images``, ``patients`` (counts), ``phantoms`` (their recipe stands beside the
        images), ``fingerprint`` (which slices, see :func:`fingerprint`) and ``content_sha256``
        (what they show, and their labels or lesions); of a joined set ``parts``, the same of each.

    Raises:
        CTMaskNetError: no such data set; an image that cannot be read.
    """
    dicts, parts = dataset_dicts(name), []
    if parts_of(name) != [name]:
        parts = [describe_dataset(part, skip_bad) for part in parts_of(name)]
    root = Path(MetadataCatalog.get(name).get("image_root") or os.devnull)
    phantoms = any((folder / PHANTOM_RECIPE).is_file() for folder in (root, root.parent))
    return {
        "name": name,
        "images": len(dicts),
        "patients": len({entry["patient"] for entry in dicts if "patient" in entry}),
        "phantoms": phantoms or any(part["phantoms"] for part in parts),
        "fingerprint": fingerprint(dicts),
        "content_sha256": content_sha256(
            dicts, ["label", "annotations"], allow_unreadable=skip_bad
        ),
        **({"parts": parts} if parts else {}),
    }


def fingerprint(dicts: Iterable[Mapping[str, Any]]) -> str | None:
    """SHA-256 over which slices a data set holds, whatever their order, folder and file type.

    A slice counts by class, patient, scan and number, a lesion slice by patient and number; so a
    set is known to be that of a published list without the list. None where names do not tell.
    """
    names, of_slices = [], ("label", "patient", "scan", "slice")
    for entry in dicts:
        if all(key in entry for key in of_slices):
            names.append("_".join(str(entry[key]) for key in of_slices))
            continue
        try:
            parsed = parse_lesion_name(entry["file_name"])
        except CTMaskNetError:
            return None
        names.append(f"{parsed.patient}_{parsed.slice}")
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


#: An entry. Records of others may lack what is optional; what they have is of this form.
_ENTRY = record(
    {"kind": one_of(*_KINDS)},
    {"status": text, "datasets": names_of(listing(record({"name": text})))},
)
_RECORD = record({"entries": listing(_ENTRY)})


def read_record(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of ``<folder>/run.json``, oldest first; none without the file.

    Raises:
        CTMaskNetError: the file is not such a record.
    """
    path = Path(folder) / RUN_RECORD
    try:
        document = read_json(path)
        entries = _RECORD(document, "")["entries"]
    except (FileNotFoundError, NotADirectoryError):  # and so no such folder
        return []
    except OSError as error:
        raise CTMaskNetError(
            f"{path}: cannot be read ({error.strerror}); get permission, or choose another folder"
        ) from error
    except ValueError as error:  # UnlikeForm is one
        raise CTMaskNetError(f"{path}: not a run's record ({error}); remove the file") from error
    return entries


def _kept(path: Path, entry: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """Earlier entries that still say something about what is in the folder."""
    if entry["kind"] == "training":
        # Weights change: no evaluation so far is of what will be in the folder
        earlier = read_record(path.parent) if resume else []
        killed = {"status": "stopped", "error": "killed"}
        return [
            {**old, **(killed if old.get("status") == "running" else {})}
            for old in earlier
            if old["kind"] == "training"
        ]
    tested = [item["name"] for item in entry["datasets"]["test"]]
    return [
        old
        for old in read_record(path.parent)
        if old["kind"] == "training" or _tested(old) != tested
    ]


def _tested(entry: Mapping[str, Any]) -> list[str]:
    return [item["name"] for item in entry.get("datasets", {}).get("test", ())]


def write_record(folder: str | os.PathLike, entries: list[dict[str, Any]]) -> None:
    """Write ``<folder>/run.json`` with these entries, whole or not at all."""
    write_json(Path(folder) / RUN_RECORD, {"format": _FORMAT, "entries": entries}, 1)


def _restore(path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_write(path, "wb") as stream:
            stream.write(before)


def _ended(entry: dict[str, Any], start: float, status: str, iterations: int) -> dict[str, Any]:
    done = {"iterations": iterations} if entry["kind"] == "training" else {}
    seconds = round(time.monotonic() - start, 1)
    return {**entry, "status": status, "end": now(), "seconds": seconds, **done}


def _iterations(metrics: Path, untouched: tuple[int, int] | None) -> int | None:
    """Iterations done by the last line of ``metrics.json``, which a training may begin anew or cut
    back when it resumes; None when it is as it was."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        if _stamp(metrics) != untouched:
            lines = metrics.read_text(encoding="utf-8").splitlines()
            return int(parse_json(lines[-1])["iteration"]) + 1
    return None


def _stamp(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        return path.stat().st_size, path.stat().st_mtime_ns
    return None


def now() -> str:
    """ISO time of this second, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
