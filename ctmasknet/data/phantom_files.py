"""Trees of files made by several processes: whole, or absent."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ctmasknet.data.patient_ids import PHANTOM_RECIPE
from ctmasknet.data.workers import map_in_processes
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import write_json, writing


def save_picture(path: Path, picture: np.ndarray, *options: int) -> None:
    """Encode first, then write: OpenCV's own writer reports a full disk as nothing but False."""
    good, data = cv2.imencode(path.suffix, picture, options)
    if not good:
        raise CTMaskNetError(f"{path}: OpenCV could not encode the picture; check its installation")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def write_tree(
    target: Path,
    recipe: dict,
    tasks: Sequence,
    work: Callable[..., dict],
    summary: Callable[[list[dict]], dict],
    workers: int | None,
    overwrite: bool,
    finish: Callable[[Path, list[dict]], None] = lambda folder, results: None,
) -> dict:
    """Draw all patients into a sibling of ``target``; put it in place when all is there."""
    if os.path.lexists(target):
        done = _stored(target)
        if done is not None and done["recipe"] == recipe:
            return done["summary"]
        if not overwrite:
            raise CTMaskNetError(
                f"{target}: exists and was not made with these arguments; "
                "choose another folder or pass --overwrite"
            )
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        folder.chmod(0o755)
        results = _map(partial(work, folder=folder), tasks, workers, desc=target.name)
        finish(folder, results)
        made = summary(results)
        files = sum(len(names) for _, _, names in os.walk(folder))
        write_json(
            folder / PHANTOM_RECIPE, {"recipe": recipe, "summary": made, "files": files}, indent=1
        )
        if os.path.lexists(target):
            _remove(target)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return made


def _stored(target: Path) -> dict | None:
    """The recipe file of a tree; None when there is none or files of the tree are missing."""
    try:
        stored = json.loads((target / PHANTOM_RECIPE).read_text(encoding="utf-8"))
        files = sum(len(names) for _, _, names in os.walk(target)) - 1
        return (
            stored if {"recipe", "summary"} <= stored.keys() and stored["files"] == files else None
        )
    except (OSError, ValueError, AttributeError, KeyError):
        return None


def _remove(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink()


def _map(work: Callable, tasks: Sequence, workers: int | None, desc: str) -> list[dict]:
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise CTMaskNetError(f"workers = {workers}: ask for at least 1")
    return list(map_in_processes(work, tasks, workers, title=desc, unit="patient", chunksize=1))
